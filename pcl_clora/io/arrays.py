"""Points as arrays of numpy: npy and npz."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np

from pcl_clora.errors import UserValueError
from pcl_clora.io.errors import DataError, as_data_error, check_is_file, explained
from pcl_clora.io.fields import (
    AGAIN,
    Array,
    Read,
    check_triangles,
    flat_columns,
    names_of_axes,
    point_key,
    split_columns,
    triangles_of,
    warn_of_other_rows,
)

_HEADER = 1 << 16  # bytes that a header lies in; numpy takes none above 10,000

MOST_EXPANSION = 1100
"""How many times larger than its file what a file holds may be; deflate reaches 1,032."""


def read_npy(path: Path, part: str, row: int | None, max_points: int | None) -> Read:
    """Read (N, C), or (N,) with named fields, from npy; object arrays (pickles) are refused."""
    with explained(path, "read"), path.open("rb") as file:
        table = read_array(path, file, os.fstat(file.fileno()).st_size, "npy file", max_points)
    points, fields, faces = split_columns(path, table)
    return points[:max_points], {name: values[:max_points] for name, values in fields.items()}, faces


def read_array(path: Path, file: IO[bytes], size: int, kind: str, first: int | None = None) -> Array:
    """Read one array in npy format whose header and data fill `size` bytes exactly.

    Args:
        path: for messages.
        file: at its beginning.
        size: of header and data together.
        kind: what the file is, for messages.
        first: read at most so many rows.

    Raises:
        DataError: if it holds something else than numbers or text, or is longer or shorter than it says.
    """
    torn = f"is not a complete {kind} of numbers"
    with as_data_error(path, torn):
        head = file.read(min(size, _HEADER))  # numpy would make room for a header of any length that is said
        opened = BytesIO(head)
        version = np.lib.format.read_magic(opened)
        if version not in ((1, 0), (2, 0), (3, 0)):
            raise DataError(path, f"{torn}: its version is {version}", AGAIN)
        read = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, fortran, dtype = read(opened)
        start = opened.tell()
    if dtype.hasobject:
        raise DataError(
            path,
            f"{torn}: it holds Python objects, which are never loaded",
            "save its numbers as arrays",
        )
    count = 1
    for length in shape:
        count *= int(length)
    if start + count * dtype.itemsize != size or any(length < 0 for length in shape):
        raise DataError(
            path,
            f"{torn}: its header announces {dtype} {shape}, "
            f"{count * dtype.itemsize} bytes, and {size - start} follow",
            AGAIN,
        )
    if first is not None and shape and not fortran:
        shape = (min(first, shape[0]), *shape[1:])
        count = int(np.prod(shape, dtype=np.int64))
    with as_data_error(path, torn):
        wanted = count * dtype.itemsize
        data = head[start : start + wanted]
        data += file.read(wanted - len(data)) if len(data) < wanted else b""
        table = np.frombuffer(data, dtype=dtype, count=count) if count else np.empty(0, dtype)
        table = table.reshape(shape[::-1]).T if fortran else table.reshape(shape)
        return table.astype(dtype.newbyteorder("="))


def read_archive(path: Path) -> dict[str, Array]:
    """Read all arrays of an npz file, which together are not larger than packing can make them.

    Raises:
        DataError: if it is torn, or holds something else than arrays of numbers and text.
    """
    kind = "npz file of numbers"
    with as_data_error(path, f"is not a complete {kind}"), zipfile.ZipFile(path) as archive:
        entries = [entry for entry in archive.infolist() if not entry.is_dir()]
        total, stored = sum(entry.file_size for entry in entries), path.stat().st_size
        if total > MOST_EXPANSION * stored:
            raise DataError(
                path,
                f"is not a complete {kind}: {stored} bytes announce {total}, more than packing can make",
                AGAIN,
            )
        arrays = {}
        for entry in entries:
            if not entry.filename.endswith(".npy"):
                continue
            if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise DataError(path, f"{entry.filename} is packed in a way that numpy does not write", AGAIN)
            with archive.open(entry) as file:
                name = f"npz file ({entry.filename})"
                arrays[entry.filename.removesuffix(".npy")] = read_array(path, file, entry.file_size, name)
        return arrays


def read_arrays(path: str | Path) -> dict[str, Array]:
    """Read a file of numpy: all arrays of npz by name, the one of npy under the name "".

    Raises:
        DataError: if it is missing or torn, or holds something else than arrays of numbers and text.
    """
    path = Path(path)
    check_is_file(path)
    with explained(path, "read"):
        if path.suffix.lower() == ".npz":
            return read_archive(path)
        with path.open("rb") as file:
            return {"": read_array(path, file, os.fstat(file.fileno()).st_size, "npy file")}


def read_npz(path: Path, part: str, row: int | None, max_points: int | None) -> Read:
    """Read "points" (or another usual name, or x, y, z, or the only array) and fields of as many rows.

    Triangles have the name "faces". Object arrays are refused.
    """
    arrays = read_archive(path)
    faces = triangles_of(path, arrays)
    axes = names_of_axes({name: array.shape for name, array in arrays.items()})
    if axes:
        table = np.stack([arrays.pop(name) for name in axes], axis=1)
    else:
        table = arrays.pop(point_key(path, list(arrays)))
    points, fields, _ = split_columns(path, table)
    for name, array in arrays.items():
        if array.shape[:1] == points.shape[:1]:
            fields[name] = array
        elif array.ndim:
            warn_of_other_rows(path, name, len(array), len(points))
    if faces is not None:
        check_triangles(path, faces, len(points))
    if max_points is not None:
        faces = None
    return points[:max_points], {name: values[:max_points] for name, values in fields.items()}, faces


def write_npy(path: Path, points: Array, fields: Mapping[str, Array], faces: Array | None) -> None:
    """Write an array (N, 3), or records with the fields x, y, z and all others where there are any."""
    if not fields:
        np.save(path, points, allow_pickle=False)
        return
    columns = {**dict(zip("xyz", points.T, strict=True)), **flat_columns(fields)}
    table = np.empty(len(points), np.dtype([(name, column.dtype) for name, column in columns.items()]))
    for name, column in columns.items():
        table[name] = column
    np.save(path, table, allow_pickle=False)


def write_npz(path: Path, points: Array, fields: Mapping[str, Array], faces: Array | None) -> None:
    """Write the arrays "points", "faces" and one for every field."""
    taken = fields.keys() & {"points", "file", "allow_pickle", "faces"}
    if taken:
        raise UserValueError(f"fields {sorted(taken)} have names that npz needs for itself; rename them.")
    named: dict[str, Any] = {"points": points, **fields, **({} if faces is None else {"faces": faces})}
    np.savez(path, **named)
