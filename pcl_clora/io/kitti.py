"""Scans as bare float32 numbers, as KITTI (x, y, z, reflectance) and nuScenes (and ring) keep them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pcl_clora.io.errors import DataError, explained
from pcl_clora.io.fields import Array, Read

_FARTHEST = 1e5  # metres from the scanner; numbers beyond are none of a scan


def read_kitti(path: Path, part: str, row: int | None, max_points: int | None) -> Read:
    """Read x, y, z, intensity of every point, little endian; five numbers a point where it ends in .pcd.bin.

    The format has no header, so a file is refused whose size or numbers cannot be those of a scan.
    """
    names = ("x", "y", "z", "intensity", *(("ring",) if path.name.lower().endswith(".pcd.bin") else ()))
    with explained(path, "read"):
        size = path.stat().st_size
        if size % (4 * len(names)):
            raise DataError(
                path,
                f"has {size} bytes, which are not {len(names)} float32 numbers ({', '.join(names)}) a point",
                "convert it to .npy, with a column for every number of a point",
            )
        count = -1 if max_points is None else max_points * len(names)
        table = np.fromfile(path, np.dtype("<f4"), count).astype(np.float32, copy=False)
    table = table.reshape(-1, len(names))
    far = ~(np.abs(table) <= _FARTHEST).all(axis=1)
    if far.any():
        worst = int(np.flatnonzero(far)[0])
        raise DataError(
            path,
            f"is no scan of float32 numbers: point {worst} is {table[worst].tolist()}",
            "convert it to .npy, with a column for every number of a point",
        )
    return table[:, :3], {name: table[:, 3 + at] for at, name in enumerate(names[3:])}, None


def write_kitti(path: Path, points: Array, fields: Mapping[str, Array], faces: Array | None) -> None:
    """Write x, y, z, intensity as float32; intensity is 0 where there is none."""
    table = np.zeros((len(points), 4), np.dtype("<f4"))
    table[:, :3] = points
    if "intensity" in fields:
        table[:, 3] = fields["intensity"]
    path.write_bytes(table.tobytes())
