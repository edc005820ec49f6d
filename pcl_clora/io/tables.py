"""Points as tables: npy, npz, text, hdf5, and the vertices of off files.

Every reader is called with (path, max_points, row) and gives points (N, 3), fields and triangles or None.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pcl_clora.errors import UserValueError
from pcl_clora.io.errors import DataError

POINT_KEYS = ("points", "xyz", "pos", "data")
AGAIN = "get or write the file again"

Read = tuple[np.ndarray, dict[str, np.ndarray], "np.ndarray | None"]

_TRIPLES = {"normals": ("nx", "ny", "nz"), "colors": ("red", "green", "blue")}
_LABELS = ("label", "labels")


def named_fields(columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Join columns that belong together: "normals" of nx ny nz, "colors" of red green blue, "labels"."""
    left = dict(columns)
    fields = {}
    for name, parts in _TRIPLES.items():
        if all(part in left for part in parts):
            fields[name] = np.stack([left.pop(part) for part in parts], axis=1)
    for name in _LABELS:
        if name in left and "labels" not in fields:
            fields["labels"] = left.pop(name)
    return {**fields, **left}


def _split_columns(path: Path, table: np.ndarray) -> Read:
    """Take x, y, z from the first three columns; the others are "extra"."""
    if table.ndim != 2 or table.shape[1] < 3:
        raise DataError(
            path, f"holds {table.dtype} {table.shape}, expected (N, C) with at least x, y, z", "convert it"
        )
    return table[:, :3], {"extra": table[:, 3:]} if table.shape[1] > 3 else {}, None


def read_npy(path: Path, max_points: int | None, row: int | None) -> Read:
    """Read (N, C) from npy; object arrays (pickles) are refused."""
    try:
        table = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise DataError(path, f"not a complete npy file of numbers ({error})", AGAIN) from error
    return _split_columns(path, np.array(table[:max_points]) if table.ndim else np.array(table))


def read_npz(path: Path, max_points: int | None, row: int | None) -> Read:
    """Read "points" (or another usual name, or the only array) and fields; object arrays are refused."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        # numpy advises to allow pickles, which would run what a stranger put into the file
        why = "no archive, or objects in it" if "pickle" in str(error) else error
        raise DataError(path, f"not a complete npz file of numbers ({why})", AGAIN) from error
    key = _point_key(path, list(arrays))
    points, fields, _ = _split_columns(path, arrays.pop(key))
    fields.update({name: array for name, array in arrays.items() if array.shape[:1] == points.shape[:1]})
    return points[:max_points], {name: values[:max_points] for name, values in fields.items()}, None


def _point_key(path: Path, names: Sequence[str]) -> str:
    for key in POINT_KEYS:
        if key in names:
            return key
    if len(names) == 1:
        return names[0]
    found = ", ".join(names) or "nothing"
    raise DataError(path, f"holds {found}, expected an array named {' or '.join(POINT_KEYS)}", "rename it")


def read_hdf5(path: Path, max_points: int | None, row: int | None) -> Read:
    """Read one cloud from hdf5: (N, C), or (n, N, C) with a row; other numbers of its points are fields."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            names = [name for name in file if isinstance(file[name], h5py.Dataset)]
            key = _point_key(path, names)
            data = file[key]
            more = [
                name
                for name in names
                if name != key
                and file[name].dtype.kind in "biuf"
                and file[name].shape[: data.ndim - 1] == data.shape[:-1]
            ]
            if data.ndim == 3 and (row is None or not 0 <= row < len(data)):
                asked = "none" if row is None else f"row {row}"
                raise DataError(
                    path,
                    f"holds {len(data)} clouds, and {asked} was asked for",
                    f"name one as {path.name}#0 to {path.name}#{len(data) - 1}, or read the data set",
                )
            place = (slice(max_points),) if data.ndim < 3 else (row, slice(max_points))
            points, fields, _ = _split_columns(path, data[place] if data.ndim else np.empty(()))
            return points, {**fields, **{name: file[name][place] for name in more}}, None
    except OSError as error:
        raise DataError(path, f"cannot be read as hdf5, it may be truncated ({error})", AGAIN) from error


def read_text(path: Path, max_points: int | None, row: int | None) -> Read:
    """Read columns split by comma, semicolon or space, with comments, and with or without a header line.

    A first line that holds one whole number is the number of points, as scanners write it to pts files.
    """
    count = None
    try:
        with path.open(encoding="utf-8-sig") as file:
            skip, line = _first_line(file)
            if line is not None and line.isdecimal():
                count = int(line)
                more, line = _first_line(file)
                skip += more
    except UnicodeDecodeError as error:
        raise DataError(path, f"is not text ({error})", "convert it") from error
    if line is None:
        raise DataError(path, "holds no points, expected lines of x y z", AGAIN)
    delimiter = next((mark for mark in (",", ";") if mark in line), None)
    names = [name.strip().strip('"').lower() for name in line.split(delimiter)]
    header = not _is_number(names[0])
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an empty table gets a better message below
            table = np.loadtxt(
                path,
                delimiter=delimiter,
                dtype=np.float64,
                max_rows=max_points,
                ndmin=2,
                skiprows=skip if header else skip - 1,
                encoding="utf-8-sig",
            )
    except (ValueError, UnicodeDecodeError) as error:
        problem = f"a line does not have the {len(names)} numbers that the first one has ({error})"
        raise DataError(path, problem, "mend the line or get the file again") from error
    if not table.size:
        raise DataError(path, "holds no points, expected lines of x y z", AGAIN)
    if count is not None and len(table) != (count if max_points is None else min(count, max_points)):
        raise DataError(path, f"announces {count} points and holds {len(table)}", AGAIN)
    if not header:
        return _split_columns(path, table)
    return _by_name(path, names, table)


def _first_line(file: Any) -> tuple[int, str | None]:
    """Find the first line that is not empty or a comment: its number from 1, and its text."""
    for number, line in enumerate(file, start=1):
        text = line.partition("#")[0].strip()
        if text:
            return number, text
    return 0, None


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _by_name(path: Path, names: list[str], table: np.ndarray) -> Read:
    missing = [axis for axis in "xyz" if axis not in names]
    if missing or len(names) != table.shape[1] or len(set(names)) != len(names):
        found = ", ".join(names)
        raise DataError(
            path,
            f"the header names {found} for {table.shape[1]} columns, expected x, y, z",
            "mend the header",
        )
    columns = dict(zip(names, table.T, strict=True))
    points = np.stack([columns.pop(axis) for axis in "xyz"], axis=1)
    return points, named_fields(columns), None


def write_text(path: Path, points: np.ndarray, fields: Mapping[str, np.ndarray]) -> None:
    """Write columns: csv with commas and a header line, the others with spaces."""
    columns, names = [points], ["x", "y", "z"]
    for name, values in fields.items():
        flat = np.asarray(values).reshape(len(points), -1)
        columns.append(flat)
        names += _TRIPLES.get(name, ()) or (
            [name] if flat.shape[1] == 1 else [f"{name}_{number}" for number in range(flat.shape[1])]
        )
    csv = path.suffix == ".csv"
    np.savetxt(
        path,
        np.concatenate(columns, axis=1, dtype=np.float64),
        fmt="%.9g" if points.dtype.itemsize <= 4 else "%.17g",
        delimiter="," if csv else " ",
        header=",".join(names) if csv else "",
        comments="",
    )


def read_off(path: Path, max_points: int | None, row: int | None) -> Read:
    """Read vertices and faces of an off file; faces of more corners are cut into fans of triangles.

    Also reads the files of ModelNet whose first line lacks the line break ("OFF490 518 0").
    """
    lines = [line.partition(b"#")[0].strip() for line in path.read_bytes().split(b"\n")]
    text = b" ".join(lines).strip()
    if not text[:3].upper() == b"OFF":
        raise DataError(path, f"starts with {text[:8]!r}, expected OFF", "convert it")
    try:
        numbers = np.array(text[3:].split(), dtype=np.float64)
        num_vertices, num_faces = int(numbers[0]), int(numbers[1])
        end = 3 + 3 * num_vertices
        vertices = numbers[3:end].reshape(num_vertices, 3)
        faces = _fans(numbers[end:], [line for line in lines if line], num_faces, num_vertices)
    except (ValueError, IndexError) as error:
        raise DataError(path, f"is not a complete off file ({error})", AGAIN) from error
    return vertices[:max_points], {}, faces if len(faces) and max_points is None else None


def _fans(numbers: np.ndarray, lines: list[bytes], num_faces: int, num_vertices: int) -> np.ndarray:
    """Cut faces into triangles. A face may be followed by its colour, up to the end of the line."""
    if len(numbers) == 4 * num_faces and (numbers[::4] == 3).all():
        triangles = numbers.astype(np.int64).reshape(-1, 4)[:, 1:]
    else:
        rows: list[tuple[int, ...]] = []
        for words in (line.split() for line in lines[len(lines) - num_faces :]):
            corners = int(words[0])
            face = tuple(int(word) for word in words[1 : 1 + corners])
            if len(face) != corners or corners < 3:
                raise UserValueError(f"face {len(rows)} is cut short")
            rows += [(face[0], face[k], face[k + 1]) for k in range(1, corners - 1)]
        triangles = np.array(rows, dtype=np.int64).reshape(-1, 3)
    if triangles.size and not (triangles.min() >= 0 and triangles.max() < num_vertices):
        raise UserValueError(f"a face names vertex {triangles.max()} of {num_vertices}")
    return triangles
