"""A run small enough for tests, and ways to compare two runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from pcl_clora.config import build, merge
from pcl_clora.engine import RunConfig, RunFolder, read_metrics

VALUES: dict[str, Any] = {
    "name": "tiny",
    "model": {
        "name": "point_mae",
        "num_classes": 3,
        "embed_dim": 24,
        "depth": 2,
        "num_heads": 2,
        "num_groups": 8,
        "group_size": 8,
        "encoder_widths": [8, 16, 16],
        "head_width": 16,
    },
    "adapter": {"method": "full"},
    "data": {
        "name": "procedural",
        "classes": ["bottle", "chair", "table"],
        "train_size": 60,
        "test_size": 24,
        "num_points": 64,
    },
    "optim": {"epochs": 3, "batch_size": 12, "lr": 2e-3, "warmup_epochs": 1},
    "train": {"device": "cpu", "checkpoint_every_steps": 2, "progress": "off"},
}
STEPS_PER_EPOCH = 5
TIMES = ("seconds", "clouds_per_second")
FITTING: dict[str, dict[str, Any]] = {  # where the defaults need more blocks or patches
    "clora_geo": {"neighbors": 4},
    "gft": {"cross_blocks": [0, 1], "neighbors": 4},
    "idpt": {"neighbors": 4},
    "point_peft": {"neighbors": 4, "bank": False, "prompt_blocks": 1},
    "pointgst": {"local": 4},
    "pointlora": {"keep": [4, 2], "num_second": 4, "second_size": 12},
    "stag": {"start": 1, "per_down": 2, "per_graph": 1},
}
SEGMENTATION: dict[str, Any] = {
    "model": {
        "task": "part_segmentation",
        "num_parts": 9,
        "num_categories": 3,
        "num_classes": 40,
        "propagation_widths": [16, 12],
        "segmentation_widths": [12, 8],
        "label_width": 4,
    },
    "augment": "isotropic",
}
CLORA = {"adapter": {"method": "clora", "rank": 2, "num_spaces": 2, "sade": {"weight": 0.1}}}
EVERYTHING = {  # all that has state: method terms, moving average, validation, resampling, averaged votes
    **CLORA,
    "data": {"pool_points": 72},
    "optim": {"batch_size": 10, "label_smoothing": 0.1, "step_unit": "step"},
    "protocol": {"select": "validation", "val_fraction": 0.15, "votes": 2, "vote_augment": "rotate_y"},
    "train": {"ema_decay": 0.5, "test_curve": True},
}


def tiny_config(*changes: Mapping[str, Any]) -> RunConfig:
    """Settings of the tiny run with changes merged over them."""
    values = VALUES
    for change in changes:
        values = merge(values, change)
    return build(RunConfig, values)


def lines_without_times(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl as a list, without what a clock decides."""
    lines = read_metrics(RunFolder(folder).metrics)
    return [{key: value for key, value in line.items() if key not in TIMES} for line in lines]


def final_weights(folder: Path) -> dict[str, Tensor]:
    """Tensors of the adapter file of a finished run."""
    return load_file(RunFolder(folder).chosen)
