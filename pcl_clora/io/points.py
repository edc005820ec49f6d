"""Read and write point clouds in files of many kinds."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pcl_clora.errors import UserValueError
from pcl_clora.io import arrays, columns, hdf5, off, ply
from pcl_clora.io.errors import DataError, check_is_file
from pcl_clora.io.fields import Array, Read, named_fields, needs_float64
from pcl_clora.io.safe import atomic_write


@dataclass(frozen=True)
class PointFile:
    """What a file of points holds.

    Attributes:
        points: (N, 3), float32, or float64 where that is needed or asked for, in the unit of the file;
            finite, N >= 1.
        fields: other values of the points by name, each (N, ...): "normals" (N, 3), "colors" (N, 3), "labels"
            (N,), names of the file, or "extra" (N, C) for columns without a name.
        faces: (F, 3), int64, triangles of a mesh whose vertices the points are; None where there are none.
    """

    points: Array
    fields: Mapping[str, Array] = field(default_factory=dict)
    faces: Array | None = None


_READERS: dict[str, Callable[[Path, str, int | None, int | None], Read]] = {
    ".npy": arrays.read_npy,
    ".npz": arrays.read_npz,
    ".txt": columns.read_text,
    ".xyz": columns.read_text,
    ".csv": columns.read_text,
    ".pts": columns.read_text,
    ".asc": columns.read_text,
    ".h5": hdf5.read_hdf5,
    ".hdf5": hdf5.read_hdf5,
    ".off": off.read_off,
    ".ply": ply.read_ply,
}
POINT_SUFFIXES: tuple[str, ...] = tuple(_READERS)
"""File name endings that `read_points` knows."""

_OPEN3D = "import open3d as o3d; o3d.io.write_point_cloud({ply}, o3d.io.read_point_cloud({file}))"
_TRIMESH = 'import trimesh; trimesh.load({file}, force="mesh").export({off})'
_LASPY = "import laspy, numpy; numpy.savez({npz}, points=laspy.read({file}).xyz)"
_ELSEWHERE = {  # ending -> package and program that make a file of a known kind
    ".pcd": ("open3d", _OPEN3D),
    ".xyzn": ("open3d", _OPEN3D),
    ".xyzrgb": ("open3d", _OPEN3D),
    **dict.fromkeys((".obj", ".stl", ".glb", ".gltf", ".3mf", ".dae"), ("trimesh", _TRIMESH)),
    **dict.fromkeys((".las", ".laz"), ("laspy[lazrs]", _LASPY)),
    ".e57": (
        "pye57",
        "import pye57, numpy; s = pye57.E57({file}).read_scan(0, ignore_missing_fields=True); "
        'numpy.savez({npz}, points=numpy.stack([s["cartesianX"], s["cartesianY"], s["cartesianZ"]], 1))',
    ),
    ".bin": (
        "",
        "import numpy; numpy.save({npy}, numpy.fromfile({file}, numpy.float32).reshape(-1, 4))",
    ),
    ".mat": ("scipy", 'import scipy.io as s, numpy; numpy.save({npy}, s.loadmat({file})["points"])'),
    **dict.fromkeys(
        (".pt", ".pth"),
        ("", "import torch, numpy; numpy.save({npy}, torch.load({file}, weights_only=True).numpy())"),
    ),
}


def read_points(
    path: str | Path,
    *,
    max_points: int | None = None,
    row: int | None = None,
    dtype: str = "auto",
    labels: str = "",
) -> PointFile:
    """Read the points of one file; its ending says the format.

    npy: (N, C), or records with the fields x, y, z. npz: the array "points" (or xyz, pos, data, coord, ...,
    or the only one), the others of N rows become fields. txt, xyz, csv, pts, asc: columns split by commas,
    semicolons, tabs or blanks, with or without a header. h5: the data set "points" (or ...), (N, C), or
    (n, N, C) with `row`; other data sets of numbers that are (N, ...), or (n, N, ...), become fields. off,
    ply: vertices, and the triangles of a mesh. The first three columns are x, y, z wherever a file does not
    name them. docs/data.md lists what odd files are read as.

    Args:
        path: the file; `file.h5#7` is row 7 of file.h5, `file.h5#group/dataset` and `file.h5#group/dataset#7`
            one of its data sets.
        max_points: read only the first ones; None for all. Text stops there, so it also is faster.
        row: which cloud of an h5 file that holds several.
        dtype: of the points; "auto" is float64 where float32 would move them by more than a millionth of the
            cloud's size (map coordinates, for example), and float32 elsewhere.
        labels: name of the field that becomes "labels"; by default one of a usual name (label, class,
            Classification, scalar_Label, ...) that holds whole numbers.

    Returns:
        Points, fields and triangles.

    Raises:
        DataError: if the file is missing, empty, torn, of an unknown kind, has fewer than three columns or
            values that are not finite; the message names file, expectation and remedy.
    """
    path, part, row = _split_part(Path(path), row)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        known = ", ".join(POINT_SUFFIXES)
        raise DataError(
            path, f"files ending in {path.suffix!r} are not known; known: {known}", _convert(path)
        )
    check_is_file(path)
    points, fields, faces = reader(path, part, row, max_points)
    points = _checked(path, points, dtype)
    for name, values in fields.items():
        if len(values) != len(points):
            raise DataError(
                path, f"{name!r} has {len(values)} rows, the points {len(points)}", "mend the file"
            )
    return PointFile(points, named_fields(path, fields, labels), faces)


def _split_part(path: Path, row: int | None) -> tuple[Path, str, int | None]:
    """Take apart file.h5#group/dataset#7: file, data set, row; a file of the whole name comes first."""
    found = re.fullmatch(r"(.*?\.(?:h5|hdf5))#(.*)", str(path), re.IGNORECASE | re.DOTALL)
    if found is None or os.path.lexists(path):
        return path, "", row
    part, _, number = found[2].rpartition("#")
    if number.isdecimal() and row is None:
        return Path(found[1]), part, int(number)
    return Path(found[1]), found[2], row


def _convert(path: Path) -> str:
    """Say how a file of another kind becomes one that is known: a command, quoted for the shell."""
    if path.suffix.lower() in (".gz", ".zip", ".bz2", ".xz", ".zst", ".7z"):
        return "unpack it"
    if path.suffix.lower() not in _ELSEWHERE:
        return "convert it"
    package, program = _ELSEWHERE[path.suffix.lower()]
    names = {kind: path.with_suffix(f".{kind}").name for kind in ("ply", "off", "npz", "npy")}
    code = program.format(**{kind: json.dumps(name) for kind, name in {"file": path.name, **names}.items()})
    install = f"pip install {shlex.quote(package)}; " if package else ""
    return f"convert it, in its folder: {install}python -c {shlex.quote(code)}"


def _checked(path: Path, points: Array, dtype: str) -> Array:
    if points.ndim != 2 or points.shape[1] != 3 or points.dtype.kind not in "iuf":
        raise DataError(
            path, f"points are {points.dtype} {points.shape}, expected numbers (N, 3)", "convert it"
        )
    if not len(points):
        raise DataError(path, "holds no points, expected at least one", "get the file again")
    if dtype == "auto":
        dtype = "float64" if needs_float64(points) else "float32"
    given = points
    with np.errstate(over="ignore"):
        points = np.ascontiguousarray(points, dtype=dtype)
    bad = np.flatnonzero(~np.isfinite(points).all(axis=1))
    if bad.size:
        raise DataError(
            path,
            f"{bad.size} of {len(points)} points are not finite, "
            f"the first is point {bad[0]}: {given[bad[0]].tolist()}",
            "remove these points or get the file again",
        )
    return points


def write_points(path: str | Path, points: Array, fields: Mapping[str, Array] | None = None) -> None:
    """Write points to npy, npz, txt, xyz, csv or ply, whole or not at all; `read_points` gives the same back.

    Args:
        path: where to; the ending says the format. ply is binary.
        points: (N, 3), numbers; as float32 in ply unless that would move them visibly, as they are elsewhere.
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
        atomic_write(path, lambda aside: columns.write_text(aside, points, fields))
    elif suffix == ".ply":
        atomic_write(path, lambda aside: ply.write_ply(aside, points, fields))
    else:
        held = f" with fields {sorted(fields)}" if fields else ""
        raise UserValueError(
            f"{path}: cannot write points{held} to {suffix!r}; use .npz, .csv or .ply, and "
            "names such as normals, colors and labels."
        )
