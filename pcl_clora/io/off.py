"""Object file format (off): vertices and faces as text, with its variants."""

from __future__ import annotations

import re
from codecs import BOM_UTF8
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pcl_clora.errors import UserValueError
from pcl_clora.io.columns import shown, write_rows
from pcl_clora.io.errors import DataError, explained
from pcl_clora.io.fields import AGAIN, Array, Read, colors_of_bits
from pcl_clora.io.numbers import numbers_of

_KEYWORD = re.compile(rb"(ST)?(C)?(N)?(4)?(n)?(?:OFF|Off|off)(?![A-Za-z])")
_TORN = "is not a complete off file"
_Line = tuple[int, bytes]  # number in the file, from 1, and what it says without comment


def read_off(path: Path, part: str, row: int | None, max_points: int | None) -> Read:
    """Read vertices and faces of an off file; faces of more corners are cut into fans of triangles.

    Also reads the files of ModelNet whose first line lacks the line break ("OFF490 518 0"), counts without
    that of the edges, and what COFF, NOFF and STOFF say of a vertex: the fields "colors", "alpha",
    "normals" and "texture". Vertices in four or n dimensions and binary files are refused.
    """
    try:
        kind, counts, lines = _header(_read_lines(path))
        vertices, fields = _vertices(kind, lines.part(0, counts[0]), counts[0])
        faces = _faces(lines.part(counts[0]), counts[1], counts[0])
    except UserValueError as error:
        raise DataError(path, str(error), AGAIN) from None
    fields = {name: values[:max_points] for name, values in fields.items()}
    return vertices[:max_points], fields, faces if len(faces) and max_points is None else None


@dataclass(frozen=True)
class _Lines:
    """Lines that say something, with their numbers in the file; millions take little memory."""

    texts: list[bytes]
    numbers: Array

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, place: int) -> _Line:
        return int(self.numbers[place]), self.texts[place]

    def __iter__(self) -> Iterator[_Line]:
        return zip(self.numbers, self.texts, strict=True)

    def part(self, start: int, stop: int | None = None) -> _Lines:
        return _Lines(self.texts[start:stop], self.numbers[start:stop])


def _read_lines(path: Path) -> _Lines:
    with explained(path, "read"):
        content = path.read_bytes().removeprefix(BOM_UTF8)
    texts = content.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    if b"#" in content:
        texts = [line.partition(b"#")[0] for line in texts]
    del content
    texts = [line.strip() for line in texts]
    said = np.fromiter(map(bool, texts), bool, len(texts))
    return _Lines([line for line in texts if line], 1 + np.flatnonzero(said))


def _header(lines: _Lines) -> tuple[str, tuple[int, int], _Lines]:
    """Take apart keyword and counts: the letters of the variant, vertices and faces, and what follows."""
    first = lines.texts[0] if len(lines) else b""
    found = _KEYWORD.match(first)
    if found is None:
        raise UserValueError(f"starts with {first[:8]!r}, expected OFF")
    kind = b"".join(found[group] or b"" for group in (1, 2, 3)).decode()
    rest = first[found.end() :].strip()
    if rest.upper().startswith(b"BINARY"):
        raise UserValueError("is a binary off file, expected text; convert it to ply")
    if found[4] or found[5]:
        raise UserValueError(
            f"is of the kind {found[0].decode()}, whose vertices are not in three dimensions, expected OFF"
        )
    lines = _Lines([rest, *lines.texts[1:]], lines.numbers) if rest else lines.part(1)
    words: list[bytes] = []
    used = 0
    while used < len(lines) and (not words or (len(words) == 1 and len(lines[used][1].split()) == 1)):
        words += lines[used][1].split()
        used += 1
    if len(words) == 2 and used > 1 and used < len(lines) and len(lines[used][1].split()) == 1:
        used += 1  # a line each for vertices, faces and edges
    if not 2 <= len(words) <= 3 or not all(word.isdigit() and len(word) < 19 for word in words):
        at = f"{_line(lines[0])}: " if len(lines) else ""
        raise UserValueError(
            f"{_TORN}: {at}expected the numbers of vertices, faces and edges, whole and not negative"
        )
    return kind, (int(words[0]), int(words[1])), lines.part(used)


def _vertices(kind: str, lines: _Lines, count: int) -> tuple[Array, dict[str, Array]]:
    if len(lines) < count:
        raise UserValueError(
            f"{_TORN}: it announces {count} vertices and holds {len(lines)} lines after that"
        )
    table = _table(lines)
    least = 3 + 3 * ("N" in kind) + 3 * ("C" in kind) + 2 * ("ST" in kind)
    most = least + 1 if "C" in kind else 7 if not kind else least
    if count and not least <= table.shape[1] <= most:
        raise UserValueError(f"{_TORN}: {_line(lines[0])} has {table.shape[1]} numbers, expected {least}")
    fields: dict[str, Array] = {}
    at = 3
    if "N" in kind:
        fields["normals"], at = table[:, at : at + 3], at + 3
    width = table.shape[1] - at - 2 * ("ST" in kind)
    if width >= 3:
        fields["colors"] = table[:, at : at + 3]
        if width == 4:
            fields["alpha"] = table[:, at + 3]
    elif width:
        fields["extra"] = table[:, at : at + width]
    if "ST" in kind:
        fields["texture"] = table[:, -2:]
    return table[:, :3], fields


def _table(lines: _Lines) -> Array:
    """Read lines of equally many numbers."""
    if not len(lines):
        return np.empty((0, 3))
    width = len(lines[0][1].split())
    try:
        table = numbers_of(b"\n".join(lines.texts))
    except ValueError:
        table = np.empty(0)
    if len(table) != width * len(lines) or any(len(line.split()) != width for _, line in lines):
        for number, line in lines:
            if len(line.split()) != width or not _are_numbers(line):
                raise UserValueError(
                    f"{_TORN}: {_line((number, line))}, expected {width} numbers of a vertex"
                )
    return table.reshape(len(lines), width)


def _are_numbers(line: bytes) -> bool:
    try:
        return len(numbers_of(line)) == len(line.split())
    except ValueError:
        return False


def _faces(lines: _Lines, count: int, num_vertices: int) -> Array:
    """Read faces, a line each: how many corners, these, and perhaps a colour; cut them into triangles."""
    if len(lines) != count:
        raise UserValueError(
            f"{_TORN}: it announces {count} faces and holds {len(lines)} lines after the vertices"
        )
    if not count:
        return np.empty((0, 3), np.int64)
    try:
        numbers = numbers_of(b"\n".join(lines.texts))
    except ValueError:
        numbers = np.empty(0)
    if len(numbers) == 4 * count and (numbers[::4] == 3).all():
        sizes = np.full(count, 4)
    else:
        sizes = np.array([len(line.split()) for _, line in lines])
    if len(numbers) != sizes.sum():
        number, line = next((n, line) for n, line in lines if not _are_numbers(line))
        raise UserValueError(f"{_TORN}: {_line((number, line))}, expected numbers of a face")
    starts = np.concatenate(([0], np.cumsum(sizes)[:-1]))
    corners = numbers[starts]
    wrong = ~((corners >= 1) & (corners == np.floor(corners)) & (corners < sizes) & (sizes - corners <= 5))
    rows = [np.empty((0, 3), np.int64)]
    places = [np.empty(0, np.int64)]
    for size in np.unique(corners[~wrong]).astype(np.int64).tolist():
        at = np.flatnonzero((corners == size) & ~wrong)
        face = numbers[starts[at][:, None] + 1 + np.arange(size)]
        bad = (face != np.floor(face)) | (face < 0)
        if (face >= num_vertices).any():
            place = int(at[(face >= num_vertices).any(axis=1)][0])
            raise UserValueError(
                f"{_TORN}: {_line(lines[place])} names vertex {face.max():.0f} of {num_vertices}"
            )
        wrong[at[bad.any(axis=1)]] = True
        if size >= 3:
            rows.append(fan(face))
            places.append(np.repeat(at, size - 2))
    if wrong.any():
        number, line = lines[int(np.flatnonzero(wrong)[0])]
        raise UserValueError(
            f"{_TORN}: {_line((number, line))}, expected a face: how many corners, then as many vertices"
        )
    order = np.argsort(np.concatenate(places), kind="stable")
    return np.concatenate(rows)[order]


def write_off(path: Path, points: Array, fields: Mapping[str, Array], faces: Array | None) -> None:
    """Write vertices, with normals (NOFF) and colours (COFF) where there are any, and triangles, as text."""
    points = np.asarray(points)
    kind = "C" * ("colors" in fields) + "N" * ("normals" in fields)
    rows, form = [points.astype(np.float64)], 3 * ["%.9g" if points.dtype == np.float32 else "%.17g"]
    if "normals" in fields:
        rows.append(np.asarray(fields["normals"], np.float64))
        form += 3 * ["%.9g"]
    if "colors" in fields:
        rows.append(colors_of_bits(fields["colors"], 8).astype(np.float64))
        form += 3 * ["%d"]
    with path.open("w", encoding="ascii") as file:
        file.write(f"{kind}OFF\n{len(points)} {0 if faces is None else len(faces)} 0\n")
        write_rows(file, " ".join(form), *rows)
        if faces is not None:
            write_rows(file, "3 %d %d %d", faces)


def fan(faces: Array) -> Array:
    """Cut faces (F, C) of C corners into triangles, (F * (C - 2), 3), int64, those of one face together."""
    whole = faces.astype(np.int64)
    parts = [whole[:, [0, k, k + 1]] for k in range(1, whole.shape[1] - 1)]
    return np.stack(parts, axis=1).reshape(-1, 3)


def _line(line: _Line) -> str:
    return f"line {line[0]} ({shown(line[1].decode('latin-1'))})"
