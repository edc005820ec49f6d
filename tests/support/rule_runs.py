"""One tiny trained run for every data set that reads files, and one with a wider pool where that differs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from pcl_clora.config import build, merge
from pcl_clora.data.packed.write import pack_dataset
from pcl_clora.data.registry import parse_data_config
from pcl_clora.engine import RunConfig, Trainer
from tests.support.cli_cases import TINY
from tests.support.data_layouts import make_folder, make_hdf5, make_text
from tests.support.part_layouts import make_part_hdf5, make_part_text
from tests.support.scan_layouts import make_fewshot, make_raw, make_scan

PARTS = {
    "task": "part_segmentation",
    "num_parts": 5,
    "num_categories": 2,
    "num_classes": 40,
    "propagation_widths": [16, 12],
    "segmentation_widths": [12, 8],
    "label_width": 4,
    "fetch_layers": [0, 1],
}
CUBE = np.array(
    [[0, 1, 2], [0, 2, 3], [4, 5, 6], [4, 6, 7], [0, 1, 5], [0, 5, 4], [2, 3, 7], [2, 7, 6]], np.int64
)


def make_unit_hdf5(root: Path, *, num_points: int = 64) -> Path:
    """The layout of ModelNet40 as its official files are: every cloud fills the unit sphere."""
    make_hdf5(root, num_points=num_points)
    for file in root.glob("*.h5"):
        with h5py.File(file, "r+") as handle:
            points = handle["data"][()].astype(np.float64)
            points -= points.mean(axis=1, keepdims=True)
            points /= np.linalg.norm(points, axis=2).max(axis=1)[:, None, None]
            handle["data"][...] = points.astype(np.float32)
    return root


def make_meshes(root: Path) -> Path:
    """Boxes of two classes in off files, far from the origin and not of unit size."""
    for label, name in enumerate(("flat", "tall")):
        for number in range(6):
            size = np.random.default_rng(10 * label + number).uniform(1, 2, 3) * (
                [1, 9, 1] if label else [9, 1, 9]
            )
            corners = np.array([[x, y, z] for z in (0, 1) for x, y in ((0, 0), (1, 0), (1, 1), (0, 1))])
            lines = [" ".join(map(repr, map(float, row))) for row in corners * size + 40]
            lines += [f"3 {a} {b} {c}" for a, b, c in CUBE.tolist()]
            file = root / name / f"{number}.off"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("OFF\n8 8 0\n" + "\n".join(lines) + "\n")
    return root


def make_large_folder(root: Path) -> Path:
    """Clouds of far more points than a model sees, sorted by height, as text."""
    make_folder(root, "class", num_points=300, suffix=".txt", count=4)
    for file in root.rglob("*.txt"):
        points = np.loadtxt(file) * [1, 2, 3] + 7
        np.savetxt(file, points[points[:, 2].argsort()])
    return root


def make_packed(root: Path) -> Path:
    source = make_large_folder(root / "source")
    pack_dataset(parse_data_config({"name": "folder", "root": str(source), "num_points": 80}), root / "pack")
    return root / "pack"


# name -> what makes the files, settings of the data, settings of the model
CASES: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "hdf5": (make_unit_hdf5, {"name": "modelnet40_hdf5"}, {}),
    "hdf5 that is cut": (lambda root: make_unit_hdf5(root, num_points=160), {"name": "modelnet40_hdf5"}, {}),
    "hdf5 of any size": (lambda root: make_hdf5(root, num_points=160), {"name": "modelnet40_hdf5"}, {}),
    "hdf5 that is moved": (
        lambda root: make_hdf5(root, num_points=160),
        {"name": "modelnet40_hdf5", "normalize": True},
        {},
    ),
    "text": (make_text, {"name": "modelnet40_txt", "cache": "none"}, {}),
    "text with a pool": (make_text, {"name": "modelnet40_txt", "cache": "none", "pool_points": 60}, {}),
    "text as it is": (make_text, {"name": "modelnet40_txt", "cache": "none", "normalize": False}, {}),
    "dat": (
        lambda root: make_text(root, dat=True),
        {"name": "modelnet40_txt", "cache": "none", "source": "dat"},
        {},
    ),
    "scan": (lambda root: make_scan(root, num_points=96), {"name": "scanobjectnn"}, {}),
    "scan that is moved": (
        lambda root: make_scan(root, num_points=96),
        {"name": "scanobjectnn", "normalize": True},
        {},
    ),
    "raw": (lambda root: make_raw(root, count=140), {"name": "scanobjectnn_raw"}, {}),
    "raw without background": (
        lambda root: make_raw(root, count=140),
        {"name": "scanobjectnn_raw", "background": False, "repeat": True},
        {},
    ),
    "part text": (make_part_text, {"name": "shapenetpart_txt"}, PARTS),
    "part hdf5": (lambda root: make_part_hdf5(root, num_points=90), {"name": "shapenetpart_hdf5"}, PARTS),
    "official folds": (
        lambda root: make_fewshot(root, folds=1, num_points=70),
        {"name": "modelnet_fewshot", "ways": 5, "shots": 2},
        {"num_classes": 5},
    ),
    "made folds": (
        make_large_folder,
        {
            "name": "fewshot",
            "ways": 2,
            "shots": 2,
            "test_per_class": 2,
            "source": {"name": "folder"},
            "test_from": "train",
        },
        {"num_classes": 2},
    ),
    "folder": (make_large_folder, {"name": "folder"}, {"num_classes": 2}),
    "folder with a pool": (make_large_folder, {"name": "folder", "pool_points": 100}, {"num_classes": 2}),
    "folder as it is": (make_large_folder, {"name": "folder", "normalize": False}, {"num_classes": 2}),
    "folder filled up": (
        lambda root: make_folder(root, "class", num_points=20),
        {"name": "folder", "repeat": True},
        {"num_classes": 2},
    ),
    "folder with z up": (make_large_folder, {"name": "folder", "up": "z"}, {"num_classes": 2}),
    "meshes": (make_meshes, {"name": "folder"}, {"num_classes": 2}),
    "meshes with z up": (make_meshes, {"name": "folder", "up": "-z", "pool_points": 90}, {"num_classes": 2}),
    "packed": (make_packed, {"name": "packed"}, {"num_classes": 2}),
}


def train_case(name: str, root: Path, **sections: Any) -> Path:
    """Make the files of a case below root and train a run on them; returns its folder."""
    make, data, model = CASES[name]
    files = make(root / "data")
    values = merge(
        {**TINY, "data": {"num_points": 48, "root": str(files), **data}},
        {"model": model, "optim": {"epochs": 1, "batch_size": 2}, "output": str(root / "runs"), **sections},
    )
    return Trainer(build(RunConfig, values), run_dir=root / "run").fit().run_dir


def header_without_rule(run: Path) -> None:
    """Take the rule out of a run's files, as if an older version had written them."""
    from pcl_clora.engine import RunFolder
    from pcl_clora.io import load_tensors, save_tensors

    files = RunFolder(run)
    tensors, header = load_tensors(files.chosen)
    del header["input_rule"]
    save_tensors(files.chosen, tensors, header)
    result = json.loads(files.result.read_text())
    del result["input_rule"], result["adapter_sha256"]
    files.result.write_text(json.dumps(result))
