"""Tiny copies of the two layouts of part data, made on the spot: only the layouts are real."""

import json
from pathlib import Path

import h5py
import numpy as np

FOLDERS = {"Cap": "02954340", "Mug": "03797390"}
TAXONOMY = {"Cap": ["panel", "peak"], "Mug": ["handle", "body", "rim"]}
IDS = {"Cap": [0, 1], "Mug": [2, 3, 4]}
COUNTS = {"train": 3, "val": 1, "test": 2}  # clouds of every category


def cloud(seed: int, size: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-3, 5, (size, 6)).astype(np.float32)


def labels(category: str, seed: int, size: int) -> np.ndarray:
    return np.random.default_rng(seed).choice(IDS[category], size)


def make_part_text(root: Path, *, sizes: tuple[int, int] = (30, 90)) -> Path:
    """Files of 30 and 90 rows in turn."""
    (root / "train_test_split").mkdir(parents=True)
    (root / "synsetoffset2category.txt").write_text("".join(f"{n}\t{f}\n" for n, f in FOLDERS.items()))
    (root / "seg_classes.json").write_text(json.dumps(IDS))
    number = 0
    for split, count in COUNTS.items():
        lines = []
        for category, folder in FOLDERS.items():
            (root / folder).mkdir(exist_ok=True)
            for _ in range(count):
                number += 1
                size = sizes[number % 2]
                rows = np.concatenate([cloud(number, size), labels(category, number, size)[:, None]], axis=1)
                np.savetxt(root / folder / f"{number:08x}.txt", rows, fmt="%.6f")
                lines.append(f"shape_data/{folder}/{number:08x}")
        (root / "train_test_split" / f"shuffled_{split}_file_list.json").write_text(json.dumps(lines))
    return root


def make_part_hdf5(root: Path, *, num_points: int = 64) -> Path:
    """One file a split, categories in turn."""
    root.mkdir(parents=True)
    (root / "all_object_categories.txt").write_text("".join(f"{n}\t{f}\n" for n, f in FOLDERS.items()))
    pairs = [[FOLDERS[name], k + 1] for name, ids in IDS.items() for k in range(len(ids))]
    (root / "overallid_to_catid_partid.json").write_text(json.dumps(pairs))
    for split, count in COUNTS.items():
        name = f"ply_data_{split}0.h5"
        (root / f"{split}_hdf5_file_list.txt").write_text(f"{name}\n")
        names = list(FOLDERS) * count
        with h5py.File(root / name, "w") as file:
            file["data"] = np.stack([cloud(k + len(split), num_points)[:, :3] for k in range(len(names))])
            file["label"] = np.array([list(FOLDERS).index(one) for one in names], np.uint8)[:, None]
            file["pid"] = np.stack([labels(one, k, num_points) for k, one in enumerate(names)]).astype(
                np.uint8
            )
    return root
