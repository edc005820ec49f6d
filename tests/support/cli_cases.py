"""The tiny config of a run that takes a second."""

from __future__ import annotations

from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
TINY = {
    "name": "tiny",
    "model": {
        "name": "point_mae",
        "num_classes": 3,
        "embed_dim": 24,
        "depth": 2,
        "num_heads": 2,
        "num_groups": 8,
        "group_size": 4,
        "encoder_widths": [8, 16, 32],
        "head_width": 16,
    },
    "adapter": {"method": "clora", "rank": 2, "num_spaces": 2},
    "data": {
        "name": "procedural",
        "classes": ["chair", "sofa", "mug"],
        "train_size": 24,
        "test_size": 12,
        "num_points": 48,
    },
    "optim": {"epochs": 2, "batch_size": 8, "warmup_epochs": 0},
    "train": {"progress": "off"},
}


def write_config(folder: Path, **sections: object) -> Path:
    """Write the tiny config, sections replaced, to a yaml file."""
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump({**TINY, "output": str(folder / "runs"), **sections}))
    return path
