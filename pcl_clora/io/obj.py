"""Wavefront files (obj): vertices, normals and faces as text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pcl_clora.errors import UserValueError
from pcl_clora.io.columns import shown
from pcl_clora.io.errors import DataError, explained
from pcl_clora.io.fields import AGAIN, Array, Read, colors_of_bits
from pcl_clora.io.numbers import numbers_of
from pcl_clora.io.off import fan

_Lines = list[tuple[int, bytes]]  # number in the file, from 1, and what follows the keyword
_LISTED = (b"v", b"vn", b"f")
_GOES_ON = b" \x01"  # stands for the end of a line after a backslash, so that lines are counted


def read_obj(path: Path, part: str, row: int | None, max_points: int | None) -> Read:
    """Read vertices, their colours and normals, and faces, cut into fans of triangles.

    A vertex whose corners have several normals gets their mean. Textures, materials, groups, lines and curves
    are left out.
    """
    with explained(path, "read"):
        content = path.read_bytes()
    try:
        found, above = _sorted(content)
        if not found[b"v"]:
            raise UserValueError("holds no vertices, expected lines 'v x y z'")
        table = _table(found[b"v"], (3, 4, 6, 7))
        normals = _table(found[b"vn"], (3,)) if found[b"vn"] else np.empty((0, 3))
        faces, corners = _faces(found[b"f"], above, len(table), len(normals))
    except UserValueError as error:
        raise DataError(path, str(error), AGAIN) from None
    fields: dict[str, Array] = {}
    if table.shape[1] >= 6:
        fields["colors"] = colors_of_bits(table[:, -3:], 8)
    of_points = _of_points(normals, faces, corners, len(table))
    if of_points is not None:
        fields["normals"] = of_points
    triangles = fan_all(faces)
    fields = {name: values[:max_points] for name, values in fields.items()}
    return table[:max_points, :3], fields, triangles if len(triangles) and max_points is None else None


def _sorted(content: bytes) -> tuple[dict[bytes, _Lines], list[tuple[int, int]]]:
    """Sort lines by keyword; beside the faces, how many vertices and normals stand above each."""
    found: dict[bytes, _Lines] = {word: [] for word in _LISTED}
    above: list[tuple[int, int]] = []
    content = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\\\n", _GOES_ON)
    below = 1
    for line in content.split(b"\n"):
        number, below = below, below + 1
        if _GOES_ON in line:
            below += line.count(_GOES_ON)
            line = line.replace(_GOES_ON, b" ")
        word, _, rest = line.lstrip().replace(b"\t", b" ").partition(b" ")
        if word in found:
            if b"#" in rest:
                rest = rest.partition(b"#")[0]
            if word == b"f":
                above.append((len(found[b"v"]), len(found[b"vn"])))
            found[word].append((number, rest))
    return found, above


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


def _faces(
    lines: _Lines, above: Sequence[tuple[int, int]], num_points: int, num_normals: int
) -> tuple[list[Array], list[Array]]:
    """Read faces: places of their vertices, and of their normals, -1 for none; a list for each size."""
    by_size: dict[int, list[int]] = {}
    for place, (_, line) in enumerate(lines):
        by_size.setdefault(len(line.split()), []).append(place)
    faces, corners = [], []
    for size, places in by_size.items():
        if size < 3:
            continue
        rows = b"\n".join(lines[place][1] for place in places)
        before = np.array([above[place] for place in places])
        try:
            points = numbers_of(re.sub(rb"/[^\s]*", b"", rows)).reshape(-1, size)
            normals = np.zeros(points.shape)
            if num_normals and rows.count(b"/") == 2 * points.size:
                third = re.sub(rb"[^\s/]+/[^\s/]*/([^\s/]*)", rb"\1", rows)
                if third.count(b"/") == 0 and len(third.split()) == points.size:
                    normals = numbers_of(third).reshape(-1, size)
        except ValueError:
            wrong = next((lines[at] for at in places if not _is_face(lines[at][1])), lines[places[0]])
            raise UserValueError(_wrong(wrong)) from None
        chosen = []
        for numbers, known, total in (
            (points, before[:, :1], num_points),
            (normals, before[:, 1:], num_normals),
        ):
            absolute = np.where(numbers < 0, known + numbers, numbers - 1)
            bad = (absolute != np.floor(absolute)) | (absolute < (0 if total is num_points else -1))
            bad |= absolute >= total
            if bad.any():
                raise UserValueError(_wrong(lines[places[int(np.flatnonzero(bad.any(axis=1))[0])]]))
            chosen.append(absolute.astype(np.int64))
        faces.append(chosen[0])
        corners.append(chosen[1])
    return faces, corners


def _is_face(line: bytes) -> bool:
    return all(re.fullmatch(rb"-?\d+(/-?\d*){0,2}", word) for word in line.split())


def _of_points(
    normals: Array, faces: Sequence[Array], corners: Sequence[Array], num_points: int
) -> Array | None:
    """Give every vertex the mean of the normals of its corners, of length 1; None where there are none."""
    if not faces:
        return normals if len(normals) == num_points and num_points else None
    if len(normals) == num_points and all(map(np.array_equal, faces, corners)):
        return normals  # a normal for every vertex, of the same number
    total = np.zeros((num_points, 3))
    for face, corner in zip(faces, corners, strict=True):
        known = corner >= 0
        np.add.at(total, face[known], normals[corner[known]])
    length = np.linalg.norm(total, axis=1, keepdims=True)
    if not length.any():
        return None
    return total / np.where(length > 0, length, 1.0)


def fan_all(faces: Sequence[Array]) -> Array:
    """Cut faces of several sizes into triangles, (F, 3), int64."""
    return np.concatenate([np.empty((0, 3), np.int64), *(fan(face) for face in faces)])


def write_obj(path: Path, points: Array, fields: Mapping[str, Array], faces: Array | None) -> None:
    """Write vertices, with colours in [0, 1] behind them and normals, and triangles, as text."""
    points = np.asarray(points)
    digits = "%.9g" if points.dtype == np.float32 else "%.17g"
    rows, form = [points.astype(np.float64)], "v" + 3 * f" {digits}"
    if "colors" in fields:
        rows.append(colors_of_bits(fields["colors"], 8) / 255.0)
        form += 3 * " %.6g"
    with path.open("w", encoding="ascii") as file:
        np.savetxt(file, np.concatenate(rows, axis=1), fmt=form)
        if "normals" in fields:
            np.savetxt(file, np.asarray(fields["normals"], np.float64), fmt="vn %.9g %.9g %.9g")
        if faces is not None:
            corner = "%d//%d" if "normals" in fields else "%d"
            numbers = np.repeat(faces + 1, 2, axis=1) if "normals" in fields else faces + 1
            np.savetxt(file, numbers, fmt=f"f {corner} {corner} {corner}")
