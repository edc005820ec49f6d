"""Tiny models with adapters, and the settings of a tiny run."""

from __future__ import annotations

from typing import Any

from torch import nn

from pcl_clora.adapters import attach_adapter
from pcl_clora.models import create_model
from tests.support.engine_cases import FITTING

TINY_MODEL = {
    "name": "point_mae",
    "num_classes": 5,
    "embed_dim": 48,
    "depth": 3,
    "num_heads": 3,
    "num_groups": 16,
    "group_size": 8,
    "encoder_widths": [16, 32, 64],
    "head_width": 32,
}
CLASSES = ["bed", "chair", "desk", "sofa", "table"]


def make_tiny(method: str | None = None, **settings: Any) -> nn.Module:
    """A tiny Point-MAE, with an adapter if a method is named."""
    model = create_model(**TINY_MODEL)
    if method is None:
        return model
    return attach_adapter(model, {"method": method, **FITTING.get(method, {}), **settings})


def run_values(method: str = "clora", **changes: Any) -> dict[str, Any]:
    """Settings of a tiny run on procedural shapes."""
    return {
        "name": f"{method}_{changes.get('seed', 0)}",
        "model": TINY_MODEL,
        "adapter": {"method": method},
        "data": {
            "name": "procedural",
            "classes": CLASSES,
            "train_size": 20,
            "test_size": 10,
            "num_points": 64,
        },
        "optim": {"epochs": 2, "batch_size": 10, "warmup_epochs": 0},
        "train": {"progress": "off"},
        **changes,
    }


EVENTS: list[dict[str, Any]] = [
    {"kind": "train", "step": 1, "epoch": 0, "loss": 2.0, "lr": 0.1},
    {"kind": "epoch", "split": "train", "step": 2, "epoch": 0, "loss": 1.5, "oa": 0.25, "lr": 0.1},
    {"kind": "eval", "split": "validation", "step": 2, "epoch": 0, "oa": 0.4, "macc": 0.4, "loss": 1.4},
    {"kind": "epoch", "split": "train", "step": 4, "epoch": 1, "loss": 1.0, "oa": 0.75, "lr": 0.01},
    {"kind": "eval", "split": "test", "step": 4, "epoch": 1, "oa": 0.5, "macc": 0.4, "loss": 1.25},
]
