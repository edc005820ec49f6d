"""Scans as bare float32 numbers, as KITTI (x, y, z, reflectance) and nuScenes (and ring) keep them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pcl_clora.errors import UserValueError
from pcl_clora.io.errors import DataError, explained
from pcl_clora.io.fields import Array, Read
from pcl_clora.io.raw_object import is_raw_object, read_raw_object

_FARTHEST = 1e5  # metres from the scanner; numbers beyond are none of a scan
_TINY = np.finfo(np.float32).tiny  # whole numbers that are taken for float32 are smaller
_CONVERT = "convert it to .npy, with a column for every number of a point"


def read_kitti(path: Path, part: str, row: int | None, max_points: int | None) -> Read:
    """Read x, y, z, intensity of every point, little endian; five numbers a point where it ends in .pcd.bin.

    The format has no header, so a file is refused whose size or numbers cannot be those of a scan: too large
    ones, whole numbers, a negative intensity. A raw object of ScanObjectNN, which ends in .bin too, is told
    by its first number.
    """
    if is_raw_object(path):
        raw = read_raw_object(path)
        return raw.points[:max_points], {name: each[:max_points] for name, each in raw.fields.items()}, None
    names = ("x", "y", "z", "intensity", *(("ring",) if path.name.lower().endswith(".pcd.bin") else ()))
    with explained(path, "read"):
        size = path.stat().st_size
        if size % (4 * len(names)):
            raise DataError(
                path,
                f"has {size} bytes, which are not {len(names)} float32 numbers ({', '.join(names)}) a point",
                _CONVERT,
            )
        count = -1 if max_points is None else max_points * len(names)
        table = np.fromfile(path, np.dtype("<f4"), count).astype(np.float32, copy=False)
    table = table.reshape(-1, len(names))
    size_of = np.abs(table)
    wrong = ~(size_of <= _FARTHEST) | ((size_of < _TINY) & (size_of > 0))
    wrong[:, 3:] |= table[:, 3:] < 0
    if wrong.any():
        worst = int(np.flatnonzero(wrong.any(axis=1))[0])
        raise DataError(
            path, f"is no scan of float32 numbers: point {worst} is {table[worst].tolist()}", _CONVERT
        )
    return table[:, :3], {name: table[:, 3 + at] for at, name in enumerate(names[3:])}, None


def write_kitti(path: Path, points: Array, fields: Mapping[str, Array], faces: Array | None) -> None:
    """Write x, y, z, intensity as float32; intensity is 0 where there is none, and never negative.

    Raises:
        ValueError: if an intensity is.
    """
    table = np.zeros((len(points), 4), np.dtype("<f4"))
    table[:, :3] = points
    if "intensity" in fields:
        least = np.min(fields["intensity"], initial=0)
        if least < 0:
            raise UserValueError(
                f"{path}: .bin holds no intensity below 0, and one is {least}; use .ply or .npz."
            )
        table[:, 3] = fields["intensity"]
    path.write_bytes(table.tobytes())
