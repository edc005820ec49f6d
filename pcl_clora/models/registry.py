"""Which backbones exist, and how to make one from its settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from pcl_clora.config import Registry
from pcl_clora.errors import UserValueError
from pcl_clora.models.backbones import act, pcp_mae, point_bert, point_mae, pointgpt, recon, timm_vit
from pcl_clora.models.config import ModelConfig, Task
from pcl_clora.models.entry import BackboneEntry, Variants

FAMILIES = (point_mae, act, pcp_mae, recon, point_bert, pointgpt, timm_vit)

_models: Registry[ModelConfig, BackboneEntry] = Registry("model", "name", ModelConfig)


def register_entry(entry: BackboneEntry) -> None:
    """Make a backbone known by name, with its official files.

    Raises:
        ValueError: if the name is taken.
    """
    _models.register(entry.name, entry.config, entry)


def register_model(name: str, config: type[ModelConfig], *, tasks: Mapping[Task, type[nn.Module]]) -> None:
    """Make a backbone known by name.

    Args:
        name: the name that `create_model` takes.
        config: the class of its settings.
        tasks: the network for each task it can do; every one is made from an instance of `config`.

    Raises:
        ValueError: if the name is taken.
    """
    register_entry(BackboneEntry(name, name, config, dict(tasks)))


for _family in FAMILIES:
    for _entry in _family.ENTRIES:
        register_entry(_entry)


def entries() -> tuple[BackboneEntry, ...]:
    """List all backbones, in the order in which they were registered."""
    return tuple(_models.makers().values())


def find_entry(name: str) -> BackboneEntry | None:
    """Look a backbone up by its name; None for a name that is not known."""
    return _models.makers().get(name)


def model_classes() -> dict[tuple[str, Task], type[nn.Module]]:
    """List the networks of all backbones: (name, task) -> class."""
    return {(entry.name, task): network for entry in entries() for task, network in entry.tasks.items()}


def list_models(pattern: str = "*") -> list[str]:
    """List the names of all backbones that match a shell-style pattern, sorted.

    A pattern that begins with "timm/" lists image transformers of timm, for example "timm/vit_base*".
    """
    for _, variants in _with_variants(pattern):
        return [variants.prefix + name for name in variants.list_names(pattern.removeprefix(variants.prefix))]
    return _models.names(pattern)


def parse_model_config(values: Mapping[str, Any] | ModelConfig) -> ModelConfig:
    """Turn a mapping with a `name` into that backbone's settings.

    Raises:
        ValueError: if the name is not known or a setting is wrong; the message names the nearest valid one.
    """
    if isinstance(values, ModelConfig):
        return values
    name = str(values.get("name", ""))
    for entry, variants in _with_variants(name):
        if variants.setting not in values:
            values = {**values, "name": entry, variants.setting: name.removeprefix(variants.prefix)}
    return _models.parse(values)


def _with_variants(name: str) -> list[tuple[str, Variants]]:
    """Find the backbone that has a name beyond its own: (its name, what names it has)."""
    return [
        (entry.name, entry.variants)
        for entry in entries()
        if entry.variants is not None and name.startswith(entry.variants.prefix)
    ]


def build_model(config: ModelConfig) -> nn.Module:
    """Make the network that a config describes, with random weights.

    Raises:
        ValueError: if the backbone has no network for the task; the message lists those it has.
    """
    tasks = _models.maker(config).tasks
    if config.task not in tasks:
        raise UserValueError(
            f"{config.name} has no network for task={config.task!r}; it has {', '.join(tasks)}."
        )
    return tasks[config.task](config)
