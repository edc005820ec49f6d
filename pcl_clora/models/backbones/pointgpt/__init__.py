"""PointGPT, in its three sizes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from pcl_clora.models.backbones.pointgpt.keys import HUB_TABLES
from pcl_clora.models.backbones.pointgpt.network import (
    PointGPT,
    PointGPTBConfig,
    PointGPTLarge,
    PointGPTLConfig,
    PointGPTSConfig,
)
from pcl_clora.models.backbones.pointgpt.pretraining import PointGPTLargePretraining, PointGPTPretraining
from pcl_clora.models.backbones.pointgpt.segmentation import PointGPTLargeSegmenter, PointGPTSegmenter
from pcl_clora.models.config import Task
from pcl_clora.models.entry import BackboneEntry, FileFacts, OfficialFiles
from pcl_clora.models.key_map import LeftOut
from pcl_clora.models.layers import family_keys

_WIDTH_OF_L = 1024
_TASKS: dict[Task, type[nn.Module]] = {
    "classification": PointGPT,
    "part_segmentation": PointGPTSegmenter,
    "pretraining": PointGPTPretraining,
}
_LARGE_TASKS: dict[Task, type[nn.Module]] = {
    "classification": PointGPTLarge,
    "part_segmentation": PointGPTLargeSegmenter,
    "pretraining": PointGPTLargePretraining,
}


def _width(file: FileFacts) -> int:
    return file.width("norm.weight", "blocks.ln_f.weight")


def _is_large(file: FileFacts) -> bool:
    return file.has("encoder.first_conv.6.weight")


def _are_s(file: FileFacts) -> bool:
    return file.has("blocks.layers.0.ln_1.weight") and not _is_large(file)


def _are_b(file: FileFacts) -> bool:
    return file.has("blocks.layers.0.ln_1.weight") and _is_large(file) and _width(file) != _WIDTH_OF_L


def _are_l(file: FileFacts) -> bool:
    return file.has("blocks.layers.0.ln_1.weight") and _is_large(file) and _width(file) == _WIDTH_OF_L


def _read_task(file: FileFacts) -> Task | None:
    """The missing class token shows that nothing was fine-tuned yet, where no prefix does (hub files)."""
    task = family_keys.read_task(file)
    return task or (
        "pretraining" if "GPT_Transformer." in file.wrappers or not file.has("cls_token") else None
    )


def _read_sizes(file: FileFacts) -> dict[str, Any]:
    width, hidden = _width(file), file.width("blocks.layers.0.mlp.0.weight")
    sizes: dict[str, Any] = {
        "num_classes": file.width("blocks.cls_head_finetune.8.weight"),
        "embed_dim": width,
        "depth": file.count(r"blocks\.layers\.(\d+)\."),
        "generator_depth": file.count(r"generator_blocks\.layers\.(\d+)\."),
        "group_size": file.width("generator_blocks.increase_dim.0.weight") // 3,
        "mlp_ratio": hidden / width if width and hidden != 4 * width else 0,
    }
    shared = family_keys.read_sizes(file)
    kept: dict[str, Any] = {
        name: shared[name] for name in ("encoder_dim", "encoder_widths") if name in shared
    }
    if _is_large(file):
        parts = ("first_conv.3", "first_conv.6", "second_conv.0")
        widths = tuple(file.width(f"encoder.{part}.weight") for part in parts)
        first = file.width("encoder.first_conv.0.weight")
        kept["encoder_widths"] = widths if widths != (512, 1024, 2048) else 0
        kept["encoder_first_width"] = first if first != 256 else 0
    found = {**sizes, **kept, **family_keys.segmentation_sizes(file)}
    return {name: value for name, value in found.items() if value}


_FILES_OF_S = OfficialFiles(
    are=_are_s,
    task=_read_task,
    sizes=_read_sizes,
    wrappers={"GPT_Transformer.": "extractor and generator of PointGPT"},
    left_out=(
        (r"^generator_blocks\.", LeftOut("pretraining", "generator, used by the generation loss only")),
        (r"^blocks\.increase_dim\.", LeftOut("unused", "not used by the published network")),
        (r"^(sos_pos|blocks\.sos)$", LeftOut("token", "learned token, which this model does not have")),
    ),
    hub_tables=HUB_TABLES,
    trained_with=family_keys.TRAINED_WITH,
)
ENTRIES = (
    BackboneEntry("pointgpt_s", "PointGPT-S", PointGPTSConfig, _TASKS, files=_FILES_OF_S),
    BackboneEntry(
        "pointgpt_b", "PointGPT-B", PointGPTBConfig, _LARGE_TASKS, files=replace(_FILES_OF_S, are=_are_b)
    ),
    BackboneEntry(
        "pointgpt_l", "PointGPT-L", PointGPTLConfig, _LARGE_TASKS, files=replace(_FILES_OF_S, are=_are_l)
    ),
)
