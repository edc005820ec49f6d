"""Read and write point clouds in files of many kinds."""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from pcl_clora.errors import UserValueError, warn_once
from pcl_clora.io.errors import DataError, check_is_file
from pcl_clora.io.fields import Array, named_fields, needs_float64
from pcl_clora.io.formats import (
    ANY,
    FORMATS,
    WRITE_SUFFIXES,
    Axis,
    Format,
    format_of,
    listed,
    recognised,
)
from pcl_clora.io.safe import atomic_write


@dataclass(frozen=True)
class PointFile:
    """What a file of points holds.

    Attributes:
        points: (N, 3), float32, or float64 where that is needed or asked for, in the unit of the file;
            finite, N >= 1.
        fields: other values of the points by name, each (N, ...): "normals" (N, 3), "colors" (N, 3),
            "intensity" (N,), "labels" (N,), names of the file, or "extra" (N, C) for columns without a name.
        faces: (F, 3), int64, triangles of a mesh whose vertices the points are; None where there are none.
        up: axis that points up, "" where the format does not say it.
        unit: of the coordinates, "m" or "mm"; "" where the format does not say it.
        origin: (3,), float64, what was subtracted from the points; None for nothing.
    """

    points: Array
    fields: Mapping[str, Array] = field(default_factory=dict)
    faces: Array | None = None
    up: Axis | Literal[""] = ""
    unit: str = ""
    origin: Array | None = None


_PARTS = "|".join(suffix[1:] for one in FORMATS if one.parts for suffix in one.suffixes)
_WITH_PART = rf"(.*?\.(?:{_PARTS}))#(.*)"

_MATLAB = 'import scipy.io as s, numpy; numpy.save({npy}, s.loadmat({file})["points"])'
_TORCH = "import torch, numpy; numpy.save({npy}, torch.load({file}, weights_only=True).numpy())"
_TRIMESH = 'import trimesh; trimesh.load({file}, force="mesh").export({off})'
_ELSEWHERE = {  # ending -> package and program that make a file of a known kind
    ".dae": ("trimesh pycollada", _TRIMESH),
    ".mat": ("scipy", _MATLAB),
    ".pt": ("", _TORCH),
    ".pth": ("", _TORCH),
}


def read_points(
    path: str | Path,
    *,
    max_points: int | None = None,
    row: int | None = None,
    dtype: str = "auto",
    labels: str = "",
    dataset: str = "",
    local: bool = False,
) -> PointFile:
    """Read the points of one file; its ending says the format, and its first bytes are asked whether it lies.

    docs/files.md lists the formats, what each can hold, and what odd files are read as. The first three
    columns are x, y, z wherever a file does not name them. Of a mesh, the points are its vertices; those of
    its surface come from `data.surface.sample_surface`. Files of strangers that other libraries parse are
    read in a process of its own, so that what crashes there is one error here.

    Args:
        path: the file; `file.h5#7` is row 7 of file.h5, `file.h5#group/dataset` and `file.h5#group/dataset#7`
            one of its data sets, `file.e57#1` one of its scans.
        max_points: read only the first ones; None for all. Text stops there, so it also is faster.
        row: which cloud of an h5 file that holds several.
        dtype: of the points; "auto" is float64 where float32 would move them by more than a millionth of the
            cloud's size (map coordinates, for example), and float32 elsewhere.
        labels: name of the field that becomes "labels"; by default one of a usual name (label, class,
            Classification, scalar_Label, ...) that holds whole numbers.
        dataset: which data set of an h5 file holds the points, "group/points", as in `file.h5#group/points`.
        local: subtract a whole-numbered origin in float64 before the points become float32; it is in
            `PointFile.origin`.

    Returns:
        Points, fields and triangles.

    Raises:
        DataError: if the file is missing, empty, torn, of an unknown kind, has fewer than three columns or
            values that are not finite; the message names file, expectation and remedy.
        MissingPackageError: if the format needs a package that is not installed; with the command.
    """
    path, part, row = _split_part(Path(path), row)
    kind = format_of(path)
    if kind is None or kind.read is None:
        raise _unknown(path)
    check_is_file(path)
    kind = _honest(path, kind)
    assert kind.read is not None
    points, fields, faces = kind.read(path, dataset or part, row, max_points)
    points = _checked(path, points, "float64" if local else dtype)
    for name, values in fields.items():
        if len(values) != len(points):
            raise DataError(
                path, f"{name!r} has {len(values)} rows, the points {len(points)}", "mend the file"
            )
    origin = None
    if local:
        origin = np.round(np.median(points, axis=0))
        points = np.ascontiguousarray(points - origin, dtype=np.float32)
    return PointFile(points, named_fields(path, fields, labels), faces, kind.up, kind.unit, origin)


def _unknown(path: Path) -> DataError:
    """Say what is known, of a file that is not; and what it is by its content, if it says so."""
    known = listed()
    remedy = _convert(path)
    if path.is_file():
        found = recognised(path)
        if found is not None:
            remedy = f"it seems to be {found.name}: call it {path.stem}{found.suffixes[0]}"
    return DataError(path, f"files ending in {path.suffix!r} are not known; known: {known}", remedy)


def _honest(path: Path, kind: Format) -> Format:
    """Take the format that the content says where the name says another one."""
    found = recognised(path)
    if found is None or found is kind or found.suffixes == kind.suffixes:
        return kind
    warn_once(f"{path}: is a file of the format {found.suffixes[0]} by its content; it is read as that.")
    return found


def _split_part(path: Path, row: int | None) -> tuple[Path, str, int | None]:
    """Take apart file.h5#group/dataset#7: file, data set, row; a file of the whole name comes first."""
    found = re.fullmatch(_WITH_PART, str(path), re.IGNORECASE | re.DOTALL)
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
    install = f"pip install {package}; " if package else ""
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


def write_points(
    path: str | Path,
    points: Array,
    fields: Mapping[str, Array] | None = None,
    faces: Array | None = None,
) -> None:
    """Write points to a file, whole or not at all; `read_points` gives the same back.

    Args:
        path: where to; the ending says the format, docs/files.md what it can hold.
        points: (N, 3), numbers; as float32 where the format has it and that does not move them visibly.
        fields: other values of the points by name, each (N,) or (N, C). Text columns are in the order given,
            and only csv names them.
        faces: (F, 3), whole numbers, triangles of a mesh whose vertices the points are.

    Raises:
        ValueError: if points, fields or faces have a wrong shape, or the format cannot hold them.
        MissingPackageError: if the format needs a package that is not installed; with the command.
    """
    path, points = Path(path), np.asarray(points)
    fields = {name: np.asarray(values) for name, values in (fields or {}).items()}
    if points.ndim != 2 or points.shape[1] != 3 or points.dtype.kind not in "iuf":
        raise UserValueError(f"points must be numbers (N, 3), not {points.dtype} {points.shape}.")
    for name, values in fields.items():
        if values.shape[:1] != points.shape[:1]:
            raise UserValueError(f"field {name!r} is {values.shape}, expected {len(points)} rows.")
    if faces is not None:
        faces = np.asarray(faces, np.int64)
        if (
            faces.ndim != 2
            or faces.shape[1] != 3
            or (faces.size and not 0 <= faces.min() <= faces.max() < len(points))
        ):
            raise UserValueError(f"faces {faces.shape} must be places (F, 3) of the {len(points)} points.")
    kind = format_of(path)
    write = kind.write if kind is not None else None
    if kind is None or write is None:
        raise UserValueError(f"{path}: cannot write {path.suffix!r}; known: {listed(WRITE_SUFFIXES)}.")
    lost = not_held(kind, points, fields, faces)
    if lost:
        raise UserValueError(
            f"{path}: {path.suffix} cannot hold {', '.join(lost)}; use .ply or .npz, or leave them out."
        )
    atomic_write(path, lambda aside: write(aside, points, fields, faces))


def not_held(
    kind: Format, points: Array, fields: Mapping[str, Array], faces: Array | None = None
) -> list[str]:
    """Name what a format cannot hold of a cloud; an empty list if it can hold everything."""
    lost = [name for name in fields if kind.fields != ANY and name not in kind.fields]
    if faces is not None and kind.faces == "no":
        lost.append("triangles")
    if faces is None and kind.faces == "only":
        lost.append("points without triangles")
    if not kind.exact and needs_float64(np.asarray(points)):
        lost.append("coordinates that need float64")
    return lost
