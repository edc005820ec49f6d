"""Tiny models with adapters, and finished runs written by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from pcl_clora.adapters import attach_adapter
from pcl_clora.config import build, dump_yaml
from pcl_clora.engine import RunConfig
from pcl_clora.models import create_model

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
    return model if method is None else attach_adapter(model, {"method": method, **settings})


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


@pytest.fixture
def write_run(tmp_path: Path) -> Callable[..., Path]:
    """Write the folder of a finished run with given numbers: write_run("a", method=..., seed=..., oa=...)."""

    def write(
        folder: str,
        *,
        method: str = "clora",
        seed: int = 0,
        oa: float = 0.5,
        changes: dict[str, Any] | None = None,
        result_changes: dict[str, Any] | None = None,
    ) -> Path:
        cfg = build(RunConfig, {**run_values(method), "seed": seed, **(changes or {})})
        path = tmp_path / folder
        (path / "best").mkdir(parents=True)
        (path / "best" / "adapter.safetensors").write_bytes(b"x" * 2048)
        (path / "config.yaml").write_text(dump_yaml(cfg))
        result = {
            "name": folder,
            "config_hash": "0123456789ab",
            "protocol": {
                "name": cfg.protocol.name,
                "select": cfg.protocol.select,
                "votes": 1,
                "val_fraction": 0.0,
            },
            "seed": seed,
            "augment": cfg.augment,
            "git": "abc",
            "versions": {"torch": "2"},
            "model": "point_mae",
            "data": {
                "name": "procedural",
                "num_train": 20,
                "num_validation": 0,
                "num_test": 10,
                "num_points": 64,
            },
            "method": method,
            "metrics": {
                "oa": oa,
                "macc": oa - 0.1,
                "loss": 1.25,
                "per_class": {"bed": 1.0, "chair": 0.25, "desk": None, "sofa": 0.5, "table": 0.75},
                "confusion": [[2, 0, 0, 0, 0], [3, 1, 0, 0, 0], [0] * 5, [0, 0, 0, 1, 1], [0, 0, 1, 0, 3]],
            },
            "params": {"total": 1000, "trainable": 500, "adapter": 300, "head": 150, "tokens": 50},
            "epochs": 2,
            "steps": 4,
            "train_seconds": 12.5,
            "best": {"epoch": 1, "selected_on": "last"},
            "adapter_bytes": 2048,
            **(result_changes or {}),
        }
        (path / "result.json").write_text(json.dumps(result))
        (path / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in EVENTS))
        return path

    return write


EVENTS: list[dict[str, Any]] = [
    {"kind": "train", "step": 1, "epoch": 0, "loss": 2.0, "lr": 0.1},
    {"kind": "epoch", "split": "train", "step": 2, "epoch": 0, "loss": 1.5, "oa": 0.25, "lr": 0.1},
    {"kind": "eval", "split": "validation", "step": 2, "epoch": 0, "oa": 0.4, "macc": 0.4, "loss": 1.4},
    {"kind": "epoch", "split": "train", "step": 4, "epoch": 1, "loss": 1.0, "oa": 0.75, "lr": 0.01},
    {"kind": "eval", "split": "test", "step": 4, "epoch": 1, "oa": 0.5, "macc": 0.4, "loss": 1.25},
]
