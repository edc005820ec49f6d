"""What the columns of a point file mean: which ones are x, y, z, and what the others are called.

Every reader is called with (path, part, row, max_points); it gives points (N, 3), fields, triangles or None.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from pcl_clora.errors import UserValueError, warn_once
from pcl_clora.io.errors import DataError

_ROWS = 1 << 17  # points that are looked at at once
AGAIN = "get or write the file again"

Array: TypeAlias = "np.ndarray[Any, np.dtype[Any]]"
Read: TypeAlias = "tuple[Array, dict[str, Array], Array | None]"

POINT_KEYS = (
    "points", "xyz", "pos", "data", "coord", "coords", "coordinates", "positions", "vertices", "pc",
    "point_cloud", "pointcloud",
)  # fmt: skip
"""Names that an array of points has, the first one found wins."""

FACE_KEYS = ("faces", "triangles", "face", "tris")
"""Names that an array of triangles has, in any case."""

TRIPLES = {"normals": ("nx", "ny", "nz"), "colors": ("red", "green", "blue")}
"""Fields of three columns, and how these are written."""

INTENSITY = ("intensity", "reflectance", "reflectivity", "remission", "amplitude")
"""Names of how strongly a point answered the scanner, the first one found is "intensity"."""


_AXES = (
    ("x", "y", "z"), ("points:0", "points:1", "points:2"), ("points_0", "points_1", "points_2"),
    ("pos_x", "pos_y", "pos_z"), ("x_coord", "y_coord", "z_coord"), ("0", "1", "2"),
)  # fmt: skip
_READ_TRIPLES = (
    *TRIPLES.items(),
    ("normals", ("normal_x", "normal_y", "normal_z")),
    ("normals", ("normals:0", "normals:1", "normals:2")),
    ("colors", ("r", "g", "b")),
    ("colors", ("diffuse_red", "diffuse_green", "diffuse_blue")),
)
_LABELS = (
    "labels", "label", "class", "classification", "class_id", "classid", "semantic", "semantic_label",
    "sem_label", "semantics", "part", "parts", "part_label", "segmentation", "segment", "ground_truth", "gt",
)  # fmt: skip


def place_of_axes(names: Sequence[str]) -> tuple[int, int, int] | None:
    """Find which columns are x, y and z by their names, in any case."""
    low = [name.lower() for name in names]
    for x, y, z in _AXES:
        if low.count(x) == low.count(y) == low.count(z) == 1:
            return low.index(x), low.index(y), low.index(z)
    return None


def named_fields(path: Path, columns: Mapping[str, Array], labels: str = "") -> dict[str, Array]:
    """Join columns that belong together: "normals" of nx ny nz, "colors" of red green blue, "labels".

    Labels are found under the names that are usual for them, in any case and with the "scalar_" that
    CloudCompare puts before every name: the first one of the list that holds whole numbers.

    Raises:
        DataError: if there is no field of the name `labels`, which is taken instead where it is given.
    """
    fields = dict[str, Array]()
    left = {
        name: values[:, 0] if values.shape[1:] == (1,) and name != "extra" else values
        for name, values in columns.items()
    }
    for name, parts in _READ_TRIPLES:
        low = {own.lower(): own for own in left}
        if (
            name not in fields
            and name not in low
            and all(part in low and left[low[part]].ndim == 1 for part in parts)
        ):
            fields[name] = np.stack([left.pop(low[part]) for part in parts], axis=1)
    if "colors" in fields and _is_of_bytes(fields["colors"]):
        fields["colors"] = fields["colors"].astype(np.uint8)
    bare = {own.lower().removeprefix("scalar_"): own for own in reversed(left)}
    strong = next((bare[name] for name in INTENSITY if name in bare and left[bare[name]].ndim == 1), "")
    if strong and "intensity" not in left:
        left["intensity"] = left.pop(strong)
        bare["intensity"] = "intensity"
    if labels:
        own = labels if labels in left else bare.get(labels.lower().removeprefix("scalar_"), "")
        if not own:
            found = ", ".join([*fields, *left]) or "no fields"
            raise DataError(path, f"has {found}, and the labels were to be {labels!r}", "name one of these")
        return {**fields, "labels": left.pop(own), **{name: left[name] for name in left if name != "labels"}}
    for name in _LABELS:
        own = bare.get(name, "")
        if own in left and (name in ("labels", "label") or is_whole(left[own])):
            return {**fields, "labels": _as_whole(left.pop(own)), **left}
    return {**fields, **left}


def warn_of_other_rows(path: Path, name: str, rows: int, count: int) -> None:
    """Say that an array with a name of labels is left out, since it has not one row for every point."""
    if name.lower() in _LABELS and rows > 1 and rows != count:
        warn_once(
            f"{path}: {name!r} has {rows} rows and the points {count}: it is not read as their "
            "labels; give every point one.",
            kind="labels of other rows",
        )


def triangles_of(path: Path, arrays: dict[str, Array]) -> Array | None:
    """Take out the triangles (F, 3), whole numbers of any type, from under a name of `FACE_KEYS` in any case.

    What has such a name and another form stays, with a warning: the points of the file are no mesh then.
    """
    for name in [own for key in FACE_KEYS for own in arrays if own.lower() == key]:
        found = arrays[name]
        if found.ndim == 2 and found.shape[1] == 3 and is_whole(found.ravel()):
            return arrays.pop(name).astype(np.int64)
        warn_once(
            f"{path}: {name!r} is {found.dtype} {found.shape}, no triangles (F, 3) of whole numbers, so the "
            "file is read as points and not as a mesh; cut other faces into triangles to have their surface."
        )
    return None


def check_triangles(path: Path, faces: Array, count: int) -> None:
    """Refuse triangles that name vertices that are not there.

    Raises:
        DataError: with the vertex.
    """
    if faces.size and not 0 <= faces.min() <= faces.max() < count:
        worst = faces.max() if faces.max() >= count else faces.min()
        raise DataError(path, f"a face names vertex {worst} of {count}", AGAIN)


def flat_columns(fields: Mapping[str, Array]) -> dict[str, Array]:
    """Take fields apart into named columns (N,): nx ny nz, red green blue, NAME, or NAME_0, NAME_1, ...

    Raises:
        UserValueError: if two columns would have one name.
    """
    columns: dict[str, Array] = {}
    for name, values in fields.items():
        flat = np.asarray(values).reshape(len(values), -1)
        parts: tuple[str, ...] = TRIPLES.get(name, (name,) if flat.shape[1] == 1 else ())
        if len(parts) != flat.shape[1]:
            parts = tuple(f"{name}_{number}" for number in range(flat.shape[1]))
        for part, column in zip(parts, flat.T, strict=True):
            if part in columns or part in ("x", "y", "z"):
                raise UserValueError(f"field {name!r} gives a second column {part!r}; rename it.")
            columns[part] = np.ascontiguousarray(column)
    return columns


def colors_of_bits(colors: Array, bits: int) -> Array:
    """Bring colours (N, 3) to whole numbers of 8 or 16 bits.

    Fractions whose largest is at most 1 are parts of full brightness; whole numbers are of 8 bits where none
    is above 255, else of 16.
    """
    given = np.asarray(colors)
    most = float(given.max()) if given.size else 0.0
    fractions = given.dtype.kind == "f" and most <= 1.0
    full = 1.0 if fractions else 255.0 if most <= 255 else 65535.0
    wide = np.clip(given.astype(np.float64) / full, 0.0, 1.0) * (2**bits - 1)
    return np.asarray(np.rint(np.nan_to_num(wide)), dtype=np.uint8 if bits == 8 else np.uint16)


def exact_points(points: Array) -> Array:
    """Bring points to float32, or to float64 where float32 would move them visibly."""
    return np.asarray(points, dtype=np.float64 if needs_float64(points) else np.float32)


def _is_of_bytes(colors: Array) -> bool:
    """Tell numbers of a text that are colours of 8 bits; those from 0 to 1 are none."""
    if colors.dtype.kind != "f" or not colors.size or not 1.0 < colors.max() <= 255.0 or colors.min() < 0.0:
        return False
    return bool((colors == np.floor(colors)).all())


def _as_whole(labels: Array) -> Array:
    """Bring labels that were read as floating point to int64."""
    fits = labels.dtype.kind == "f" and is_whole(labels) and np.abs(labels).max(initial=0) < 2**53
    return labels.astype(np.int64) if fits else labels


def is_whole(values: Array) -> bool:
    """Tell whether there is one whole number for every point."""
    if values.ndim != 1 or values.dtype.kind not in "biuf":
        return False
    return values.dtype.kind != "f" or bool((np.isfinite(values) & (values == np.floor(values))).all())


def split_columns(path: Path, table: Array, *, text: bool = False) -> Read:
    """Take x, y, z from the first three columns, or from those that a structured array names.

    Args:
        path: for messages.
        table: (N, C), or (N,) with named fields.
        text: that the table is lines of a text, of which three long ones may be three points.
    """
    if table.dtype.names is not None:
        return _by_field(path, table)
    if table.ndim != 2 or table.shape[1] < 3 or table.dtype.kind not in "biuf":
        remedy = "write it as an array of numbers (N, C)"
        if table.ndim == 2 and table.shape[1] == 0 and table.shape[0] == 3:
            remedy = "swap the axes, .T"
        elif table.ndim == 3:
            remedy = "write one cloud of it, array[0] for example"
        raise DataError(
            path, f"holds {table.dtype} {table.shape}, expected numbers (N, C) with at least x, y, z", remedy
        )
    rows, columns = table.shape
    if _is_swapped(rows, columns, text):
        raise DataError(
            path,
            f"holds {table.shape}, which is ({'3' if rows == 3 else 'C'}, N), expected (N, C)",
            "swap the axes, .T, and write it again",
        )
    return table[:, :3], {"extra": table[:, 3:]} if columns > 3 else {}, None


def _is_swapped(rows: int, columns: int, text: bool) -> bool:
    """Tell (C, N) from (N, C): no cloud has so few points, and so many columns beside them."""
    if rows <= 3:
        return rows == 3 and columns > (10 if text else 3)
    return columns > (32 if rows <= 10 else 16 * rows) and rows <= 32


def _by_field(path: Path, table: Array) -> Read:
    """Read a structured array: a field for every column, or one of three columns for the points."""
    if table.ndim == 2 and 1 in table.shape:
        table = table.reshape(-1)
    names = table.dtype.names or ()
    if table.ndim != 1:
        raise DataError(path, f"holds records {table.shape}, expected (N,)", "flatten it")
    columns = {name: np.ascontiguousarray(table[name]) for name in names}
    axes = place_of_axes(names)
    if axes is not None:
        points = np.stack([columns.pop(names[place]) for place in axes], axis=1)
    else:
        key = next(
            (n for wanted in POINT_KEYS for n in names if n.lower() == wanted and columns[n].ndim == 2), None
        )
        if key is None or columns[key].shape[1] < 3:
            raise DataError(
                path, f"its records have {', '.join(names)}, expected x, y, z", "name these fields so"
            )
        points, more, _ = split_columns(path, columns.pop(key))
        columns.update(more)
    return points, {n: c for n, c in columns.items() if c.dtype.kind in "biuf"}, None


def by_name(path: Path, names: Sequence[str], table: Array) -> Read:
    """Read a table (N, C) whose columns have names."""
    axes = place_of_axes(names)
    if axes is None or len(names) != table.shape[1] or len(set(names)) != len(names):
        found = ", ".join(name or "''" for name in names)
        raise DataError(
            path,
            f"the header names {found} for {table.shape[1]} columns, expected x, y, z and as many different "
            "names as columns",
            "mend the header",
        )
    others = [column for column in range(len(names)) if column not in axes]
    return table[:, axes], {names[column]: table[:, column] for column in others}, None


def point_key(path: Path, names: Sequence[str]) -> str:
    """Choose the array that holds the points: one of a usual name, or the only one.

    Raises:
        DataError: if there is none.
    """
    low = {name.lower(): name for name in reversed(names)}
    for key in POINT_KEYS:
        if key in low:
            return low[key]
    if len(names) == 1:
        return names[0]
    found = ", ".join(names) or "nothing"
    raise DataError(
        path, f"holds {found}, expected an array named {' or '.join(POINT_KEYS[:4])}", "rename it"
    )


def names_of_axes(shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Name the three arrays (N,) that hold x, y and z apart; none where one array may hold them together."""
    names = list(shapes)
    place = place_of_axes(names)
    if place is None or any(name.lower() in POINT_KEYS for name in names):
        return []
    axes = [names[at] for at in place]
    return axes if len({shapes[name] for name in axes}) == 1 and len(shapes[axes[0]]) == 1 else []


def needs_float64(points: Array) -> bool:
    """Tell whether float32 would move points visibly: by more than a millionth of the cloud's size.

    The size is that of its middle half, so that one far outlier does not hide it; of very many points, it is
    told by a part of them.
    """
    if (points.dtype.kind == "f" and points.dtype.itemsize <= 4) or not points.size:
        return False
    with np.errstate(over="ignore", invalid="ignore"):
        moved = np.zeros(points.shape[1])
        for start in range(0, len(points), _ROWS):
            wide = points[start : start + _ROWS].astype(np.float64)
            moved = np.maximum(moved, np.abs(wide.astype(np.float32) - wide).max(axis=0))
        if not moved.any():
            return False
        some = points[:: 1 + len(points) // _ROWS].astype(np.float64)
        quarters = np.percentile(some, (25, 75), axis=0)
        size = float((quarters[1] - quarters[0]).max()) or float(np.ptp(points, axis=0).max())
        return bool(size > 0 and not (moved <= 1e-6 * size).all())
