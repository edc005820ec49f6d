"""Two tiny runs that several tests look at: one that classifies, one that segments."""

from __future__ import annotations

from pathlib import Path

import pytest

from pcl_clora.config import build
from pcl_clora.engine import RunConfig, Trainer
from tests.support.cli_cases import TINY

MODEL = TINY["model"]
PARTS = {
    "task": "part_segmentation",
    "num_parts": 10,
    "num_categories": 3,
    "num_classes": 40,
    "propagation_widths": [16, 12],
    "segmentation_widths": [12, 8],
    "label_width": 4,
    "fetch_layers": [0, 1],
}
DATA = {
    "name": "procedural",
    "classes": ["chair", "sofa", "mug"],
    "train_size": 24,
    "test_size": 6,
    "num_points": 48,
}


def train(folder: Path, model: dict, **sections: object) -> Path:
    values = {
        "name": "tiny",
        "model": model,
        "adapter": {"method": "clora", "rank": 2, "num_spaces": 2},
        "data": DATA,
        "optim": {"epochs": 1, "batch_size": 8, "warmup_epochs": 0},
        "train": {"progress": "off"},
        "output": str(folder),
        **sections,
    }
    Trainer(parse_run_config(values), run_dir=folder).fit()
    return folder


def parse_run_config(values: dict) -> RunConfig:
    return build(RunConfig, values, source="a test")


@pytest.fixture(scope="session")
def classification_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("runs") / "classes", MODEL)


@pytest.fixture(scope="session")
def segmentation_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from pcl_clora.data import build_dataset

    parts = build_dataset(DATA, "test").taxonomy.num_parts
    tensorboard = {"train": {"progress": "off", "tensorboard": True, "test_curve": True}}
    folder = tmp_path_factory.mktemp("runs") / "parts"
    return train(folder, {**MODEL, **PARTS, "num_parts": parts}, augment="isotropic", **tensorboard)
