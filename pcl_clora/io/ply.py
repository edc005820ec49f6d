"""Stanford ply files: read by plyfile where it is installed, written here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pcl_clora.errors import UserValueError
from pcl_clora.io.errors import DataError
from pcl_clora.io.tables import AGAIN, Read, named_fields

_TYPES = {
    "float32": "float", "float64": "double", "int8": "char", "uint8": "uchar", "int16": "short",
    "uint16": "ushort", "int32": "int", "uint32": "uint",
}  # fmt: skip
_NAMES = {"normals": ("nx", "ny", "nz"), "colors": ("red", "green", "blue")}


def read_ply(path: Path, max_points: int | None, row: int | None) -> Read:
    """Read the vertices of a ply file with their properties, and its triangles."""
    try:
        from plyfile import PlyData, PlyParseError
    except ImportError:
        raise DataError(
            path, "ply files need the package plyfile", 'install it with: pip install "pcl-clora[files]"'
        ) from None
    try:
        content = PlyData.read(str(path), mmap=False)
    except (PlyParseError, ValueError, EOFError, UnicodeDecodeError) as error:
        raise DataError(path, f"is not a complete ply file ({error})", AGAIN) from error
    if "vertex" not in content:
        raise DataError(path, "has no element 'vertex'", "convert it")
    vertex = content["vertex"].data
    names = vertex.dtype.names or ()
    if not all(axis in names for axis in "xyz"):
        raise DataError(path, f"its vertices have {', '.join(names)}, expected x, y, z", "convert it")
    points = np.stack([vertex[axis] for axis in "xyz"], axis=1)
    others = {name: np.array(vertex[name]) for name in names if name not in ("x", "y", "z")}
    fields = {name: values for name, values in others.items() if values.dtype.kind in "iuf"}
    faces = _faces(path, content, len(points)) if "face" in content and max_points is None else None
    fields = {name: values[:max_points] for name, values in named_fields(fields).items()}
    return points[:max_points], fields, faces


def _faces(path: Path, content: object, num_points: int) -> np.ndarray | None:
    element = content["face"]  # type: ignore[index]
    key = next(
        (name for name in ("vertex_indices", "vertex_index") if name in element.data.dtype.names), None
    )
    if key is None or not len(element.data):
        return None
    rows = [(face[0], face[k], face[k + 1]) for face in element.data[key] for k in range(1, len(face) - 1)]
    faces = np.array(rows, dtype=np.int64).reshape(-1, 3)
    if faces.size and not (faces.min() >= 0 and faces.max() < num_points):
        raise DataError(path, f"a face names vertex {faces.max()} of {num_points}", AGAIN)
    return faces


def write_ply(path: Path, points: np.ndarray, fields: Mapping[str, np.ndarray]) -> None:
    """Write a binary ply file (little endian) with a property for every column."""
    columns: dict[str, np.ndarray] = dict(zip("xyz", np.asarray(points, dtype=np.float32).T, strict=True))
    for name, values in fields.items():
        flat = np.asarray(values).reshape(len(points), -1)
        parts: tuple[str, ...] = _NAMES.get(name, (name,) if flat.shape[1] == 1 else ())
        if len(parts) != flat.shape[1]:
            parts = tuple(f"{name}_{number}" for number in range(flat.shape[1]))
        for part, column in zip(parts, flat.T, strict=True):
            columns[part] = column if column.dtype.name in _TYPES else _narrow(name, column)
    dtype = np.dtype([(name, column.dtype.newbyteorder("<")) for name, column in columns.items()])
    table = np.empty(len(points), dtype=dtype)
    for name, column in columns.items():
        table[name] = column
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(points)}"]
    header += [f"property {_TYPES[column.dtype.name]} {name}" for name, column in columns.items()]
    path.write_bytes("\n".join([*header, "end_header", ""]).encode("ascii") + table.tobytes())


def _narrow(name: str, column: np.ndarray) -> np.ndarray:
    """Bring a column to a type that ply has."""
    if column.dtype.kind in "biu":
        narrow = column.astype(np.int32)
        if (narrow != column).any():
            raise UserValueError(
                f"field {name!r} has values beyond 32 bits, which ply cannot hold; use .npz."
            )
        return narrow
    if column.dtype.kind == "f":
        return column.astype(np.float32)
    raise UserValueError(f"field {name!r} is {column.dtype}, which ply cannot hold; use numbers.")
