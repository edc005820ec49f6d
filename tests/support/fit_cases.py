"""Files that a user might bring, made on the spot."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pcl_clora.io import write_points

SMALL = ("adapter.rank=2", "optim.batch_size=8")


def shape(kind: str, rng: np.random.Generator, count: int = 96) -> np.ndarray:
    """Points of a rod, a plate or a ball; rods and plates stand on y."""
    points = rng.normal(size=(count, 3))
    points /= np.linalg.norm(points, axis=1, keepdims=True)
    return points * {"ball": (1, 1, 1), "plate": (1, 0.05, 1), "rod": (0.1, 1, 0.1)}[kind] + rng.normal(
        scale=0.02, size=(count, 3)
    )


def write_folder(root: Path, *, each: int = 8, splits: bool = False, kinds=("ball", "plate", "rod")) -> Path:
    """Files of mixed formats, a folder a class."""
    rng = np.random.default_rng(0)
    for kind in kinds:
        for number in range(each):
            part = ("test" if number % 4 == 0 else "train") if splits else "."
            place = root / part / kind
            place.mkdir(parents=True, exist_ok=True)
            if number % 2:
                np.savetxt(place / f"{number}.xyz", shape(kind, rng))
            else:
                np.save(place / f"{number}.npy", shape(kind, rng).astype(np.float32))
    return root


def write_labelled(root: Path, *, each: int = 8, splits: bool = False) -> Path:
    """Rods on plates: labels 1 (plate) and 4 (rod), and the yaml that names them."""
    rng = np.random.default_rng(1)
    for number in range(each):
        place = root / (("test" if number % 4 == 0 else "train") if splits else ".")
        place.mkdir(parents=True, exist_ok=True)
        plate, rod = shape("plate", rng), shape("rod", rng) + np.array([0, 1, 0])
        labels = np.repeat([1, 4], 96)
        write_points(place / f"{number}.ply", np.concatenate([plate, rod]), {"part": labels})
    (root / "parts.yaml").write_text("1: plate\n4: rod\n")
    return root


def silent(_: str) -> None:
    """Say nothing."""
