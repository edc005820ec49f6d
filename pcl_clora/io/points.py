"""Read and write point clouds in files of many kinds."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pcl_clora.errors import UserValueError
from pcl_clora.io import ply, tables
from pcl_clora.io.errors import DataError
from pcl_clora.io.safe import atomic_write


@dataclass(frozen=True)
class PointFile:
    """What a file of points holds.

    Attributes:
        points: (N, 3), float32 unless asked for otherwise, in the unit of the file; finite, N >= 1.
        fields: other values of the points by name, each (N, ...): "normals" (N, 3), "colors" (N, 3), "labels"
            (N,), names of the file, or "extra" (N, C) for columns without a name.
        faces: (F, 3), int64, triangles of a mesh whose vertices the points are; None where there are none.
    """

    points: np.ndarray
    fields: Mapping[str, np.ndarray] = field(default_factory=dict)
    faces: np.ndarray | None = None


Raw = tuple[np.ndarray, dict[str, np.ndarray], "np.ndarray | None"]

_READERS: dict[str, Callable[[Path, int | None, int | None], Raw]] = {
    ".npy": tables.read_npy,
    ".npz": tables.read_npz,
    ".txt": tables.read_text,
    ".xyz": tables.read_text,
    ".csv": tables.read_text,
    ".pts": tables.read_text,
    ".h5": tables.read_hdf5,
    ".hdf5": tables.read_hdf5,
    ".off": tables.read_off,
    ".ply": ply.read_ply,
}
POINT_SUFFIXES: tuple[str, ...] = tuple(_READERS)
"""File name endings that `read_points` knows."""


def read_points(
    path: str | Path, *, max_points: int | None = None, row: int | None = None, dtype: str = "float32"
) -> PointFile:
    """Read the points of one file; its ending says the format.

    npy: (N, C). npz: the array "points" (or xyz, pos, data, or the only one), the others of N rows become
    fields. txt, xyz, csv, pts: columns split by comma, semicolon or space, "#" starts a comment, a header
    line may name the columns. h5: the data set "points" (or xyz, pos, data), (N, C), or (n, N, C) with `row`;
    other data sets of numbers that are (N, ...), or (n, N, ...), become fields. off, ply: vertices, and the
    triangles of a mesh. The first three columns are x, y, z wherever a file does not name them.

    Args:
        path: the file; `file.h5#7` is row 7 of file.h5.
        max_points: read only the first ones; None for all. Text stops there, so it also is faster.
        row: which cloud of an h5 file that holds several.
        dtype: of the points; "float64" where coordinates are large.

    Returns:
        Points, fields and triangles.

    Raises:
        DataError: if the file is missing, empty, torn, of an unknown kind, has fewer than three columns or
            values that are not finite; the message names file, expectation and remedy.
    """
    path, row = _split_row(Path(path), row)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        known = ", ".join(POINT_SUFFIXES)
        raise DataError(path, f"files ending in {path.suffix!r} are not known; known: {known}", "convert it")
    if not path.is_file():
        raise DataError(path, "there is no such file", "check the path")
    points, fields, faces = reader(path, max_points, row)
    points = _checked(path, points, dtype)
    for name, values in fields.items():
        if len(values) != len(points):
            raise DataError(
                path, f"{name!r} has {len(values)} rows, the points {len(points)}", "mend the file"
            )
    return PointFile(points, fields, faces)


def _split_row(path: Path, row: int | None) -> tuple[Path, int | None]:
    name, mark, number = path.name.rpartition("#")
    if mark and number.isdigit() and row is None and Path(name).suffix.lower() in (".h5", ".hdf5"):
        return path.with_name(name), int(number)
    return path, row


def _checked(path: Path, points: np.ndarray, dtype: str) -> np.ndarray:
    if points.ndim != 2 or points.shape[1] != 3 or points.dtype.kind not in "iuf":
        raise DataError(
            path, f"points are {points.dtype} {points.shape}, expected numbers (N, 3)", "convert it"
        )
    if not len(points):
        raise DataError(path, "holds no points, expected at least one", "get the file again")
    points = np.ascontiguousarray(points, dtype=dtype)
    bad = np.flatnonzero(~np.isfinite(points).all(axis=1))
    if bad.size:
        raise DataError(
            path,
            f"{bad.size} of {len(points)} points are not finite, the first is point {bad[0]}: "
            f"{points[bad[0]].tolist()}",
            "remove these points or get the file again",
        )
    return points


def write_points(
    path: str | Path, points: np.ndarray, fields: Mapping[str, np.ndarray] | None = None
) -> None:
    """Write points to npy, npz, txt, xyz, csv or ply, whole or not at all; `read_points` gives the same back.

    Args:
        path: where to; the ending says the format. ply is binary.
        points: (N, 3), numbers; kept as float32 in ply, as they are elsewhere.
        fields: other values of the points by name, each (N,) or (N, C). npy has no room for any; text columns
            are in the order given, and only csv names them.

    Raises:
        ValueError: if points or fields have a wrong shape, or the format cannot hold them.
    """
    path, points, fields = Path(path), np.asarray(points), dict(fields or {})
    if points.ndim != 2 or points.shape[1] != 3:
        raise UserValueError(f"points must be (N, 3), not {points.shape}.")
    for name, values in fields.items():
        if np.asarray(values).shape[:1] != points.shape[:1]:
            raise UserValueError(
                f"field {name!r} is {np.asarray(values).shape}, expected {len(points)} rows."
            )
    suffix = path.suffix.lower()
    if suffix == ".npy" and not fields:
        atomic_write(path, lambda aside: np.save(aside, points, allow_pickle=False))
    elif suffix == ".npz" and not fields.keys() & {"points", "file", "allow_pickle"}:
        named: dict[str, Any] = {"points": points, **fields}
        atomic_write(path, lambda aside: np.savez(aside, **named))
    elif suffix in (".txt", ".xyz", ".csv"):
        atomic_write(path, lambda aside: tables.write_text(aside, points, fields))
    elif suffix == ".ply":
        atomic_write(path, lambda aside: ply.write_ply(aside, points, fields))
    else:
        held = f" with fields {sorted(fields)}" if fields else ""
        raise UserValueError(
            f"{path}: cannot write points{held} to {suffix!r}; use .npz, .csv or .ply, and "
            "names such as normals, colors and labels."
        )
