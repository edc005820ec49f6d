"""Tiny copies of the official layouts, made on the spot: only the layouts are real."""

import json
import pickle
from pathlib import Path

import h5py
import numpy as np

CLASSES = ("airplane", "night_stand", "tv_stand")
SIZES = {"train": 7, "test": 4}


def clouds(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype(np.float32)


def labels_of(count: int) -> np.ndarray:
    return np.arange(count) % len(CLASSES)


def make_hdf5(root: Path, *, num_points: int = 64, listing: bool = True, id_lists: bool = True) -> Path:
    """Two train files (5 and 2 shapes) and one test file (4 shapes), as in modelnet40_ply_hdf5_2048."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "shape_names.txt").write_text("\n".join(CLASSES) + "\n")
    files = {"train": ("ply_data_train0", "ply_data_train1"), "test": ("ply_data_test0",)}
    for split, names in files.items():
        everything, labels, start = (
            clouds(len(split), SIZES[split], num_points, 3),
            labels_of(SIZES[split]),
            0,
        )
        for name, end in zip(names, (5, 7) if split == "train" else (4,), strict=True):
            with h5py.File(root / f"{name}.h5", "w") as file:
                file["data"] = everything[start:end]
                file["label"] = labels[start:end, None].astype(np.uint8)
            if id_lists:
                ids = [f"{CLASSES[k]}/{CLASSES[k]}_{row:04d}.ply" for row, k in enumerate(labels[start:end])]
                (root / f"{name[:-1]}_{name[-1]}_id2file.json").write_text(json.dumps(ids))
            start = end
        if listing:
            paths = [f"data/modelnet40_ply_hdf5_2048/{name}.h5" for name in names]
            (root / f"{split}_files.txt").write_text("\n".join(paths) + "\n")
    return root


def make_text(root: Path, *, num_points: int = 64, dat: bool = False) -> Path:
    """Text files and lists, as in modelnet40_normal_resampled; with dat also the official pickles."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "modelnet40_shape_names.txt").write_text("\n".join(CLASSES) + "\n")
    number = 0
    for split, count in SIZES.items():
        table, ids = clouds(count, count, num_points, 6), []
        for cloud, label in zip(table, labels_of(count), strict=True):
            number += 1
            ids.append(f"{CLASSES[label]}_{number:04d}")
            folder = root / CLASSES[label]
            folder.mkdir(exist_ok=True)
            np.savetxt(folder / f"{ids[-1]}.txt", cloud, fmt="%.6f", delimiter=",")
        (root / f"modelnet40_{split}.txt").write_text("\n".join(ids) + "\n")
        if dat:
            labels = [np.array([label], dtype=np.int32) for label in labels_of(count)]
            content = [[cloud[::-1].copy() for cloud in table], labels]
            (root / f"modelnet40_{split}_8192pts_fps.dat").write_bytes(pickle.dumps(content))
    return root


def make_folder(
    root: Path, layout: str, *, num_points: int = 40, suffix: str = ".npy", count: int = 3
) -> Path:
    """Point files of two classes in one of the three arrangements."""
    for s, split in enumerate(("train", "test")):
        for c, name in enumerate(("ant", "bee")):
            parts = {"split/class": (split, name), "class/split": (name, split), "class": (name,)}[layout]
            folder = root.joinpath(*parts)
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                points = clouds(100 * s + 10 * c + number, num_points, 3)
                file = folder / f"{split}{number}{suffix}"
                if suffix == ".npy":
                    np.save(file, points)
                else:
                    np.savetxt(file, points)
    return root
