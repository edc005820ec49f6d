"""Wavefront files (obj): vertices, normals and faces as text."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pcl_clora.errors import UserValueError
from pcl_clora.io.columns import shown, write_rows
from pcl_clora.io.errors import DataError, explained
from pcl_clora.io.fields import AGAIN, Array, Read, colors_of_bits
from pcl_clora.io.numbers import numbers_of
from pcl_clora.io.off import fan

_Lines = list[tuple[int, bytes]]  # number in the file, from 1, and what follows the keyword
_LISTED = (b"v", b"vn", b"f")
_BLOCK = 1 << 23  # bytes that are read at once
_MOST = 1 << 53  # what a place in a file stays below
_GOES_ON = b" \x01"  # stands for the end of a line after a backslash, so that lines are counted


@dataclass
class _Content:
    """What the blocks of a file say so far.

    Attributes:
        lines: how many there are.
        vertices: tables (V, C), one a block.
        normals: tables (N, 3).
        faces: places of their vertices, (F, size), and of the normals of these, -1 for none.
    """

    lines: int = 0
    num_vertices: int = 0
    num_normals: int = 0
    vertices: list[Array] = field(default_factory=list)
    normals: list[Array] = field(default_factory=list)
    faces: list[tuple[Array, Array]] = field(default_factory=list)


def read_obj(path: Path, part: str, row: int | None, max_points: int | None) -> Read:
    """Read vertices, their colours and normals, and faces, cut into fans of triangles.

    A vertex whose corners have several normals gets their mean. Textures, materials, groups, lines and curves
    are left out. The text is read in blocks.
    """
    read = _Content()
    try:
        for block in _blocks(path):
            _take(block, read)
        if not read.num_vertices:
            raise UserValueError("holds no vertices, expected lines 'v x y z'")
        widths = {table.shape[1] for table in read.vertices}
        table = np.concatenate([one if len(widths) == 1 else one[:, :3] for one in read.vertices])
        read.vertices.clear()
        normals = np.concatenate([np.empty((0, 3)), *read.normals])
        for faces, corners in read.faces:
            for places, count in ((faces, len(table)), (corners, len(normals))):
                if places.size and places.max() >= count:
                    raise UserValueError(f"a face names number {places.max() + 1} of {count}, counted from 1")
    except UserValueError as error:
        raise DataError(path, str(error), AGAIN) from None
    fields: dict[str, Array] = {}
    if table.shape[1] >= 6:
        fields["colors"] = colors_of_bits(table[:, -3:], 8)
    of_points = _of_points(normals, read.faces, len(table))
    if of_points is not None:
        fields["normals"] = of_points
    triangles = np.concatenate([np.empty((0, 3), np.int64), *(fan(faces) for faces, _ in read.faces)])
    fields = {name: values[:max_points] for name, values in fields.items()}
    return table[:max_points, :3], fields, triangles if len(triangles) and max_points is None else None


def _blocks(path: Path) -> Iterator[bytes]:
    """Read whole lines, with what a backslash joins, some at a time."""
    with explained(path, "read"), path.open("rb") as file:
        while block := file.read(_BLOCK):
            block += b"" if block.endswith(b"\n") else file.readline()
            while block.endswith((b"\\\n", b"\\\r\n")) and (more := file.readline()):
                block += more
            yield block.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _take(block: bytes, read: _Content) -> None:
    """Take the vertices, normals and faces of some lines."""
    found: dict[bytes, _Lines] = {word: [] for word in _LISTED}
    above: list[tuple[int, int]] = []  # vertices and normals before a face
    number = read.lines
    for line in block.removesuffix(b"\n").replace(b"\\\n", _GOES_ON).split(b"\n"):
        number += 1
        word, _, rest = line.lstrip().replace(b"\t", b" ").partition(b" ")
        if word in found:
            rest = rest.partition(b"#")[0] if b"#" in rest else rest
            if word == b"f":
                above.append((read.num_vertices + len(found[b"v"]), read.num_normals + len(found[b"vn"])))
            found[word].append((number, rest.replace(_GOES_ON, b" ")))
        number += line.count(_GOES_ON)
    read.lines = number
    if found[b"v"]:
        read.vertices.append(_table(found[b"v"], (3, 4, 6, 7)))
        read.num_vertices += len(found[b"v"])
    if found[b"vn"]:
        read.normals.append(_table(found[b"vn"], (3,)))
        read.num_normals += len(found[b"vn"])
    read.faces += _faces(found[b"f"], above)


def _table(lines: _Lines, widths: Sequence[int]) -> Array:
    """Read lines of equally many numbers; where they differ, the first three of each."""
    counts = {len(line.split()) for _, line in lines}
    rows = [line for _, line in lines]
    if len(counts) > 1 and min(counts) >= 3:
        rows, counts = [b" ".join(line.split()[:3]) for line in rows], {3}
    try:
        numbers = numbers_of(b"\n".join(rows))
    except ValueError:
        numbers = np.empty(0)
    width = counts.pop() if len(counts) == 1 else 0
    if width not in widths or len(numbers) != width * len(lines):
        raise UserValueError(_wrong(next((one for one in lines if not _is_row(one[1], widths)), lines[0])))
    return numbers.reshape(len(lines), width)


def _is_row(line: bytes, widths: Sequence[int]) -> bool:
    try:
        return len(numbers_of(line)) == len(line.split()) and len(line.split()) in widths
    except ValueError:
        return False


def _wrong(line: tuple[int, bytes]) -> str:
    text = shown(line[1].decode("latin-1"))
    return f"is not a complete obj file: line {line[0]} ({text}) has not the numbers that it should"


def _faces(lines: _Lines, above: Sequence[tuple[int, int]]) -> list[tuple[Array, Array]]:
    """Read faces: places of their vertices, and of their normals, -1 for none; a pair for each size."""
    by_size: dict[int, list[int]] = {}
    for place, (_, line) in enumerate(lines):
        by_size.setdefault(len(line.split()), []).append(place)
    found = []
    for size, places in by_size.items():
        if size < 3:
            continue
        rows = b"\n".join(lines[place][1] for place in places)
        before = np.array([above[place] for place in places])
        try:
            points = numbers_of(re.sub(rb"/[^\s]*", b"", rows)).reshape(-1, size)
            normals = np.zeros(points.shape)
            if rows.count(b"/") == 2 * points.size:
                third = re.sub(rb"[^\s/]+/[^\s/]*/([^\s/]*)", rb"\1", rows)
                if third.count(b"/") == 0 and len(third.split()) == points.size:
                    normals = numbers_of(third).reshape(-1, size)
        except ValueError:
            wrong = next((lines[at] for at in places if not _is_face(lines[at][1])), lines[places[0]])
            raise UserValueError(_wrong(wrong)) from None
        pair = []
        for numbers, known, least in ((points, before[:, :1], 0), (normals, before[:, 1:], -1)):
            absolute = np.where(numbers < 0, known + numbers, numbers - 1)
            bad = ~((absolute == np.floor(absolute)) & (absolute >= least) & (absolute < _MOST))
            if bad.any():
                raise UserValueError(_wrong(lines[places[int(np.flatnonzero(bad.any(axis=1))[0])]]))
            pair.append(absolute.astype(np.int64))
        found.append((pair[0], pair[1]))
    return found


def _is_face(line: bytes) -> bool:
    return all(re.fullmatch(rb"-?\d+(/-?\d*){0,2}", word) for word in line.split())


def _of_points(normals: Array, faces: Sequence[tuple[Array, Array]], num_points: int) -> Array | None:
    """Give every vertex the mean of the normals of its corners, of length 1; None where there are none."""
    if len(normals) == num_points and all(np.array_equal(face, corner) for face, corner in faces):
        return normals  # a normal for every vertex, of the same number
    total = np.zeros((num_points, 3))
    for face, corner in faces:
        known = corner >= 0
        np.add.at(total, face[known], normals[corner[known]])
    length = np.linalg.norm(total, axis=1, keepdims=True)
    if not length.any():
        return None
    return total / np.where(length > 0, length, 1.0)


def write_obj(path: Path, points: Array, fields: Mapping[str, Array], faces: Array | None) -> None:
    """Write vertices, with colours in [0, 1] behind them and normals, and triangles, as text."""
    points = np.asarray(points)
    digits = "%.9g" if points.dtype == np.float32 else "%.17g"
    rows, form = [points.astype(np.float64)], "v" + 3 * f" {digits}"
    if "colors" in fields:
        rows.append(colors_of_bits(fields["colors"], 8) / 255.0)
        form += 3 * " %.6g"
    with path.open("w", encoding="ascii") as file:
        write_rows(file, form, *rows)
        if "normals" in fields:
            write_rows(file, "vn %.9g %.9g %.9g", np.asarray(fields["normals"], np.float64))
        if faces is not None:
            corner = "%d//%d" if "normals" in fields else "%d"
            numbers = np.repeat(faces + 1, 2, axis=1) if "normals" in fields else faces + 1
            write_rows(file, f"f {corner} {corner} {corner}", numbers)
