"""Which backbones exist, and how to make one from a name or from settings."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from pcl_clora.config import Registry
from pcl_clora.errors import UserValueError
from pcl_clora.models.backbones.act.network import ACT, ACTConfig
from pcl_clora.models.backbones.pcp_mae.network import PCPMAE, PCPMAEConfig
from pcl_clora.models.backbones.pcp_mae.pretraining import PCPMAEPretraining
from pcl_clora.models.backbones.point_bert.network import PointBERT, PointBERTConfig
from pcl_clora.models.backbones.point_bert.pretraining import PointBERTPretraining
from pcl_clora.models.backbones.point_bert.segmentation import PointBERTSegmenter
from pcl_clora.models.backbones.point_mae.network import PointMAE, PointMAEConfig
from pcl_clora.models.backbones.point_mae.pretraining import TwoViewAutoencoder
from pcl_clora.models.backbones.point_mae.tiny import PointMAETinyConfig
from pcl_clora.models.backbones.pointgpt.network import (
    PointGPT,
    PointGPTBConfig,
    PointGPTLarge,
    PointGPTLConfig,
    PointGPTSConfig,
)
from pcl_clora.models.backbones.pointgpt.pretraining import PointGPTLargePretraining, PointGPTPretraining
from pcl_clora.models.backbones.pointgpt.segmentation import PointGPTLargeSegmenter, PointGPTSegmenter
from pcl_clora.models.backbones.recon.network import ReCon, ReConConfig, ReConPlain, ReConPlainConfig
from pcl_clora.models.backbones.recon.pretraining import ReConPretraining
from pcl_clora.models.backbones.timm_vit.network import PREFIX, TimmConfig, TimmViT, list_timm_models
from pcl_clora.models.config import ModelConfig, Task
from pcl_clora.models.segmentation_models import (
    ACTSegmenter,
    PCPMAESegmenter,
    PointMAESegmenter,
    ReConPlainSegmenter,
    ReConSegmenter,
)
from pcl_clora.models.weights.load import load_weights

_models: Registry[ModelConfig, dict[Task, type[nn.Module]]] = Registry("model", "name", ModelConfig)


def register_model(name: str, config: type[ModelConfig], *, tasks: Mapping[Task, type[nn.Module]]) -> None:
    """Make a backbone known by name.

    Args:
        name: the name that `create_model` takes.
        config: the class of its settings.
        tasks: the network for each task it can do; every one is made from an instance of `config`.

    Raises:
        ValueError: if the name is taken.
    """
    _models.register(name, config, dict(tasks))


register_model(
    "point_mae",
    PointMAEConfig,
    tasks={
        "classification": PointMAE,
        "part_segmentation": PointMAESegmenter,
        "pretraining": TwoViewAutoencoder,
    },
)
register_model(
    "point_mae_tiny",
    PointMAETinyConfig,
    tasks={
        "classification": PointMAE,
        "part_segmentation": PointMAESegmenter,
        "pretraining": TwoViewAutoencoder,
    },
)
register_model("act", ACTConfig, tasks={"classification": ACT, "part_segmentation": ACTSegmenter})
register_model(
    "pcp_mae",
    PCPMAEConfig,
    tasks={
        "classification": PCPMAE,
        "part_segmentation": PCPMAESegmenter,
        "pretraining": PCPMAEPretraining,
    },
)
register_model(
    "recon",
    ReConConfig,
    tasks={"classification": ReCon, "part_segmentation": ReConSegmenter, "pretraining": ReConPretraining},
)
register_model(
    "recon_plain",
    ReConPlainConfig,
    tasks={"classification": ReConPlain, "part_segmentation": ReConPlainSegmenter},
)
register_model(
    "point_bert",
    PointBERTConfig,
    tasks={
        "classification": PointBERT,
        "part_segmentation": PointBERTSegmenter,
        "pretraining": PointBERTPretraining,
    },
)
register_model(
    "pointgpt_s",
    PointGPTSConfig,
    tasks={
        "classification": PointGPT,
        "part_segmentation": PointGPTSegmenter,
        "pretraining": PointGPTPretraining,
    },
)
register_model(
    "pointgpt_b",
    PointGPTBConfig,
    tasks={
        "classification": PointGPTLarge,
        "part_segmentation": PointGPTLargeSegmenter,
        "pretraining": PointGPTLargePretraining,
    },
)
register_model(
    "pointgpt_l",
    PointGPTLConfig,
    tasks={
        "classification": PointGPTLarge,
        "part_segmentation": PointGPTLargeSegmenter,
        "pretraining": PointGPTLargePretraining,
    },
)
register_model("timm", TimmConfig, tasks={"classification": TimmViT})


def model_classes() -> dict[tuple[str, Task], type[nn.Module]]:
    """List the networks of all backbones: (name, task) -> class."""
    return {
        (name, task): network for name, tasks in _models.makers().items() for task, network in tasks.items()
    }


def list_models(pattern: str = "*") -> list[str]:
    """List the names of all backbones that match a shell-style pattern, sorted.

    A pattern that begins with "timm/" lists image transformers of timm, for example "timm/vit_base*".
    """
    if pattern.startswith(PREFIX):
        return [PREFIX + name for name in list_timm_models(pattern.removeprefix(PREFIX))]
    return _models.names(pattern)


def parse_model_config(values: Mapping[str, Any] | ModelConfig) -> ModelConfig:
    """Turn a mapping with a `name` into that backbone's settings.

    Raises:
        ValueError: if the name is not known or a setting is wrong; the message names the nearest valid one.
    """
    name = "" if isinstance(values, ModelConfig) else str(values.get("name", ""))
    if isinstance(values, Mapping) and name.startswith(PREFIX) and "architecture" not in values:
        values = {**values, "name": "timm", "architecture": name.removeprefix(PREFIX)}
    return _models.parse(values)


def build_model(config: ModelConfig) -> nn.Module:
    """Make the network that a config describes, with random weights.

    Raises:
        ValueError: if the backbone has no network for the task; the message lists those it has.
    """
    tasks = _models.maker(config)
    if config.task not in tasks:
        raise UserValueError(
            f"{config.name} has no network for task={config.task!r}; it has {', '.join(tasks)}."
        )
    return tasks[config.task](config)


def create_model(
    name: str, *, task: str = "classification", weights: str | Path = "", **settings: Any
) -> nn.Module:
    """Make a backbone with its head.

    Args:
        name: one of `list_models()`, or "timm/" and the name of a vit_* or deit* model of timm.
        task: "classification", or another task that the backbone has a network for.
        weights: what `load_weights` takes, such as a file, or "builtin" for the weights in the package; empty
            for random ones.
        **settings: fields of the backbone's config, for example num_classes, embed_dim, depth, num_groups.

    Returns:
        A module that maps points (B, N, 3) to logits (B, num_classes) and follows
        `models.interface.Backbone`.

    Raises:
        ValueError: if the name or a setting is not known; the message names the nearest valid one.

    Example:
        >>> model = create_model("point_mae", num_classes=15, num_groups=64)
        >>> logits = model(points)
    """
    model = build_model(parse_model_config({"name": name, "task": task, **settings}))
    if weights:
        load_weights(model, weights)
    return model
