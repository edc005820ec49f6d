"""A checkpoint that was written before runs knew their data and precision goes on.

The fixture is a run of the settings below, killed in step 5, with the code of commit 492fbc8 on one core; the
losses are those of the same run when nothing stopped it.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pcl_clora.config import build
from pcl_clora.engine import RunConfig, RunFolder, Trainer, read_metrics
from pcl_clora.engine.run.checkpoint import read_checkpoint

OLD = Path(__file__).resolve().parents[1] / "golden" / "old_run"
VALUES = {
    "name": "tiny",
    "model": {
        "name": "point_mae",
        "num_classes": 3,
        "embed_dim": 16,
        "depth": 1,
        "num_heads": 2,
        "num_groups": 4,
        "group_size": 4,
        "encoder_widths": [4, 8, 8],
        "head_width": 8,
    },
    "adapter": {"method": "clora", "rank": 2, "num_spaces": 2, "sade": {"weight": 0.1}},
    "data": {
        "name": "procedural",
        "classes": ["bottle", "chair", "table"],
        "train_size": 24,
        "test_size": 12,
        "num_points": 32,
    },
    "optim": {"epochs": 2, "batch_size": 8, "lr": 2e-3, "warmup_epochs": 0},
    "train": {"device": "cpu", "checkpoint_every_steps": 2, "progress": "off"},
}
LOSSES = [1.055057, 1.017055, 1.195716, 1.134856, 1.323413, 1.288652]


def test_an_old_run_goes_on_to_the_numbers_it_would_have_reached(tmp_path: Path) -> None:
    files = RunFolder(tmp_path)
    files.checkpoint.parent.mkdir()
    shutil.copyfile(OLD / "checkpoint.safetensors", files.checkpoint)
    shutil.copyfile(OLD / "metrics.jsonl", files.metrics)
    Trainer(build(RunConfig, VALUES), run_dir=tmp_path).fit()
    losses = [line["loss"] for line in read_metrics(files.metrics) if line["kind"] == "train"]
    assert losses == pytest.approx(LOSSES, rel=1e-4)  # another processor adds in another order
    assert "data" in read_checkpoint(files.checkpoint)[0]  # from now on the run knows its data
