"""Tiny models with adapters, and finished runs written by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pcl_clora.config import build, config_hash, dump_yaml
from pcl_clora.engine import RunConfig
from tests.support.report_cases import EVENTS, run_values


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
        cfg = build(RunConfig, {**run_values(method), "name": folder, "seed": seed, **(changes or {})})
        path = tmp_path / folder
        (path / "best").mkdir(parents=True)
        (path / "best" / "adapter.safetensors").write_bytes(b"x" * 2048)
        (path / "config.yaml").write_text(dump_yaml(cfg))
        result = {
            "name": cfg.name,
            "config_hash": config_hash(cfg),
            "protocol": {
                "name": cfg.protocol.name,
                "select": cfg.protocol.select,
                "votes": cfg.protocol.votes,
                "val_fraction": 0.0,
            },
            "seed": seed,
            "augment": cfg.augment,
            "git": "abc",
            "versions": {"torch": "2"},
            "model": "point_mae",
            "data": {
                "name": cfg.data.name,
                "num_train": 20,
                "num_validation": 0,
                "num_test": 10,
                "num_points": cfg.data.num_points,
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
            "epochs": cfg.optim.epochs,
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
