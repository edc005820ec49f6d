"""Tiny copies of the layouts of ScanObjectNN and of few-shot folds, made on the spot."""

import pickle
from pathlib import Path

import h5py
import numpy as np

CLASSES = ("ant", "bee", "cow")
SIZES = {"training": 7, "test": 4}
VARIANTS = {
    "obj_bg": ("main_split", ""),
    "obj_only": ("main_split_nobg", ""),
    "pb_t50_rs": ("main_split", "_augmentedrot_scale75"),
}


def clouds(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def make_scan(root: Path, *, inner: str = "", num_points: int = 32) -> Path:
    """Three variants, train and test, with masks: -1 at the last quarter of the points, 7 elsewhere."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "shape_names.txt").write_text("\n".join(CLASSES) + "\n")
    for number, (folder, suffix) in enumerate(VARIANTS.values()):
        for split, size in SIZES.items():
            file = root / inner / folder / f"{split}_objectdataset{suffix}.h5"
            file.parent.mkdir(parents=True, exist_ok=True)
            mask = np.full((size, num_points), 7, np.int32)
            mask[:, num_points * 3 // 4 :] = -1
            with h5py.File(file, "w") as handle:
                handle["data"] = clouds(10 * number + size, size, num_points, 3)
                handle["label"] = (np.arange(size) % 3).astype(np.int32)
                handle["mask"] = mask
    return root


def raw_table(seed: int, count: int) -> np.ndarray:
    """Rows of a raw object: a third wall (1), a few unlabelled (0), the rest object (12) and a bit of 13."""
    table = clouds(seed, count, 11)
    table[:, :3] = table[:, :3] * 2 + 5  # metres, far from the origin
    table[:, 9] = 3
    table[:, 10] = 12
    table[: count // 3, 10] = 1
    table[-4:, 10] = (0, 0, 13, 13)
    return table


def write_raw(file: Path, table: np.ndarray) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    np.concatenate([[np.float32(len(table))], table.ravel()]).astype(np.float32).tofile(file)


def make_raw(root: Path, *, count: int = 60) -> Path:
    """Six objects of three classes and the list of the split: the second of each class is test."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "shape_names.txt").write_text("\n".join(CLASSES) + "\n")
    lines = []
    for label, name in enumerate(CLASSES):
        for number in range(2):
            file = f"{label:03d}_{number:05d}.bin"
            write_raw(root / "object_dataset" / name / file, raw_table(10 * label + number, count + number))
            lines.append(f"{file}\t{label}" + ("\tt" if number else ""))
        (root / "object_dataset" / name / f"{label:03d}_00000_part.bin").write_bytes(b"not an object")
    (root / "main_split.txt").write_text("\n".join(lines) + "\n")
    return root


def fold(ways: int = 5, shots: int = 2, *, test: int = 20, num_points: int = 24) -> dict[str, list]:
    def items(seed: int, count: int) -> list:
        return [(clouds(seed + k, num_points, 6), k % ways, 30 + k % ways) for k in range(count)]

    return {"train": items(0, ways * shots), "test": items(5000, ways * test)}


def make_fewshot(root: Path, *, folds: int = 2, **settings: int) -> Path:
    ways, shots = settings.get("ways", 5), settings.get("shots", 2)
    folder = root / f"{ways}way_{shots}shot"
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(folds):
        (folder / f"{number}.pkl").write_bytes(pickle.dumps(fold(**settings)))
    return root
