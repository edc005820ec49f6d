"""Stanford ply files, as the world writes them."""

from __future__ import annotations

import re
from codecs import BOM_UTF8
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pcl_clora.errors import UserValueError
from pcl_clora.io.columns import shown
from pcl_clora.io.errors import DataError, explained
from pcl_clora.io.fields import (
    AGAIN,
    Array,
    Read,
    colors_of_bits,
    exact_points,
    flat_columns,
    place_of_axes,
)
from pcl_clora.io.numbers import numbers_of
from pcl_clora.io.off import fan

_TYPES = {
    "float32": "float", "float64": "double", "int8": "char", "uint8": "uchar", "int16": "short",
    "uint16": "ushort", "int32": "int", "uint32": "uint",
}  # fmt: skip
_CODES = {**{name: name for name in (*_TYPES, "int64", "uint64")}, **{b: a for a, b in _TYPES.items()}}
_ORDERS = {"ascii": "=", "binary_little_endian": "<", "binary_big_endian": ">"}
_CORNERS = ("vertex_indices", "vertex_index")
_MAX_HEADER = 1 << 20
_ROWS = 1 << 20  # written at once


@dataclass(frozen=True)
class _Property:
    name: str
    type: str  # of the value, or of the items of a list
    count: str = ""  # type of the length of a list; "" for a single value


@dataclass(frozen=True)
class _Element:
    name: str
    count: int
    properties: list[_Property]

    @property
    def has_lists(self) -> bool:
        return any(one.count for one in self.properties)


@dataclass(frozen=True)
class _Lists:
    """Values of one list property: all in a row, and how many each element has."""

    values: Array
    sizes: Array


Content = dict[str, "Array | _Lists"]


def read_ply(path: Path, part: str, row: int | None, max_points: int | None) -> Read:
    """Read the vertices of a ply file with their properties, and its triangles.

    Text and both byte orders; elements in any order, with lists of any length; faces of more corners are cut
    into fans, tristrips into triangles. What "comment" and "obj_info" hold is of no meaning.
    """
    with explained(path, "read"):
        content = path.read_bytes().removeprefix(BOM_UTF8)
    try:
        order, elements, start = _header(content)
        read = _Text(content, start) if order == "=" else _Binary(content, start, order)
        found = {element.name: _read_element(element, read) for element in elements}
        read.finish()
        points, fields = _vertices(found)
        faces = _faces(found, len(points)) if max_points is None else None
    except UserValueError as error:
        raise DataError(path, str(error), AGAIN) from None
    return points[:max_points], {name: values[:max_points] for name, values in fields.items()}, faces


def _header(content: bytes) -> tuple[str, list[_Element], int]:
    """Read the header: the byte order, the elements, and where the data begins."""
    opening = re.match(rb"ply[ \t]*(\r\n|\n|\r)", content)
    if opening is None:
        raise UserValueError(f"starts with {content[:4]!r}, expected ply and the end of the line")
    end = opening[1]
    order, elements, at, number = "", list[_Element](), 0, 0
    while True:
        stop = content.find(end, at, at + _MAX_HEADER)
        if stop < 0:
            raise UserValueError("is not a complete ply file: its header has no end_header")
        line, at, number = content[at:stop].decode("latin-1").strip(), stop + len(end), number + 1
        words = line.split()
        if not words or words[0] in ("comment", "obj_info") or number == 1:
            continue
        if words[0] == "end_header":
            break
        if words[0] == "format" and len(words) == 3 and words[1] in _ORDERS:
            order = _ORDERS[words[1]]
        elif words[0] == "element" and len(words) == 3 and words[2].isdecimal() and len(words[2]) < 19:
            if any(element.name == words[1] for element in elements):
                raise UserValueError(f"line {number} ({shown(line)}) names an element twice")
            elements.append(_Element(words[1], int(words[2]), []))
        elif words[0] == "property" and elements and (made := _property(words)) is not None:
            if any(one.name == made.name for one in elements[-1].properties):
                raise UserValueError(f"line {number} ({shown(line)}) names a property twice")
            elements[-1].properties.append(made)
        else:
            raise UserValueError(
                f"line {number} of the header is {shown(line)}, which says nothing in a ply file"
            )
    if not order:
        raise UserValueError("its header has no line 'format'")
    return order, elements, at


def _property(words: Sequence[str]) -> _Property | None:
    if len(words) == 3 and words[1] in _CODES:
        return _Property(words[2], _CODES[words[1]])
    if len(words) == 5 and words[1] == "list" and words[2] in _CODES and words[3] in _CODES:
        return _Property(words[4], _CODES[words[3]], _CODES[words[2]])
    return None


class _Text:
    """Data as numbers in text, one after another."""

    def __init__(self, content: bytes, start: int) -> None:
        try:
            self._numbers = numbers_of(content[start:])
        except ValueError:
            raise UserValueError(_wrong_line(content, start)) from None
        self._at = 0

    def single(self, element: _Element) -> dict[str, Array]:
        """Read an element without lists."""
        width = len(element.properties)
        table = self._take(element, element.count * width).reshape(element.count, width)
        return {one.name: _cast(table[:, at], one) for at, one in enumerate(element.properties)}

    def lists(self, element: _Element) -> Content:
        """Read an element with lists."""
        numbers, at = self._numbers, self._at
        if element.count * len(element.properties) > len(numbers) - at:
            raise UserValueError(_cut(element))
        starts = {one.name: np.empty(element.count, np.int64) for one in element.properties}
        sizes = {one.name: np.ones(element.count, np.int64) for one in element.properties}
        shape = [_size(element, numbers[at : at + 1])] if len(element.properties) == 1 else []
        width = 1 + shape[0] if shape else 0
        whole = numbers[at : at + element.count * width : width] if width else np.empty(0)
        if shape and len(whole) == element.count and (whole == shape[0]).all():
            name = element.properties[0].name  # all lists are of one length
            starts[name][:] = at + 1 + width * np.arange(element.count)
            sizes[name][:] = shape[0]
            at += element.count * width
        else:
            for row in range(element.count):
                for one in element.properties:
                    size = _size(element, numbers[at : at + 1]) if one.count else 1
                    at += bool(one.count)
                    starts[one.name][row], sizes[one.name][row] = at, size
                    at += size
                if at > len(numbers):
                    raise UserValueError(_cut(element, row))
        if at > len(numbers):
            raise UserValueError(_cut(element))
        self._at = at
        return {
            one.name: _Lists(_cast(numbers[_ranges(starts[one.name], sizes[one.name])], one), sizes[one.name])
            if one.count
            else _cast(numbers[starts[one.name]], one)
            for one in element.properties
        }

    def _take(self, element: _Element, count: int) -> Array:
        if count > len(self._numbers) - self._at:
            raise UserValueError(_cut(element))
        self._at += count
        return self._numbers[self._at - count : self._at]

    def finish(self) -> None:
        """Refuse what is left over."""
        if self._at != len(self._numbers):
            raise UserValueError(
                f"holds {len(self._numbers) - self._at} numbers more than its header announces"
            )


class _Binary:
    """Data as the bytes of numbers."""

    def __init__(self, content: bytes, start: int, order: str) -> None:
        self._content, self._bytes = content, np.frombuffer(content, np.uint8)
        self._at, self._order = start, order

    def _dtype(self, name: str) -> np.dtype[np.generic]:
        dtype: np.dtype[np.generic] = np.dtype(name).newbyteorder("<" if self._order == "<" else ">")
        return dtype

    def single(self, element: _Element) -> dict[str, Array]:
        """Read an element without lists."""
        dtype = np.dtype([(one.name, self._dtype(one.type)) for one in element.properties])
        size = element.count * dtype.itemsize
        if size > len(self._bytes) - self._at:
            raise UserValueError(_cut(element))
        table = self._bytes[self._at : self._at + size].view(dtype)
        self._at += size
        return {one.name: table[one.name].astype(one.type) for one in element.properties}

    def lists(self, element: _Element) -> Content:
        """Read an element with lists: at once where all are as long as the first, else one by one."""
        counts = {one.name: self._dtype(one.count or "u1") for one in element.properties}
        items = {one.name: self._dtype(one.type) for one in element.properties}
        least = sum(
            counts[one.name].itemsize if one.count else items[one.name].itemsize for one in element.properties
        )
        if element.count * least > len(self._bytes) - self._at:
            raise UserValueError(_cut(element))
        uniform = self._uniform(element, counts, items)
        if uniform is not None:
            return uniform
        starts = {one.name: np.empty(element.count, np.int64) for one in element.properties}
        sizes = {one.name: np.ones(element.count, np.int64) for one in element.properties}
        at, data, end = self._at, self._content, len(self._content)
        order = "little" if self._order == "<" else "big"
        steps = [
            (starts[one.name], sizes[one.name], items[one.name].itemsize, counts[one.name], bool(one.count))
            for one in element.properties
        ]
        for row in range(element.count):
            for start, size, width, length, is_list in steps:
                if is_list:
                    after = at + length.itemsize
                    if length.kind == "f":
                        raise UserValueError(
                            f"the lists of element {element.name!r} have lengths that are no whole numbers"
                        )
                    num = int.from_bytes(data[at:after], order, signed=length.kind == "i")  # type: ignore[arg-type]
                    if num < 0 or num * width > end - after:
                        raise UserValueError(_cut(element, row))
                    start[row], size[row], at = after, num, after + num * width
                else:
                    start[row], at = at, at + width
                if at > end:
                    raise UserValueError(_cut(element, row))
        self._at = at
        found: Content = {}
        for one in element.properties:
            width = items[one.name].itemsize
            places = _ranges(starts[one.name], sizes[one.name] * width)
            values = self._bytes[places].view(items[one.name]).astype(one.type)
            found[one.name] = _Lists(values, sizes[one.name]) if one.count else values
        return found

    def _uniform(
        self,
        element: _Element,
        counts: Mapping[str, np.dtype[np.generic]],
        items: Mapping[str, np.dtype[np.generic]],
    ) -> Content | None:
        parts: list[tuple[str, np.dtype[np.generic], tuple[int, ...]]] = []
        at, lengths = self._at, {}
        for one in element.properties if element.count else []:
            if one.count:
                length = self._bytes[at : at + counts[one.name].itemsize].view(counts[one.name])
                size = int(length[0]) if length.size and length.dtype.kind in "iu" else -1
                if not 0 <= size <= len(self._bytes):
                    return None
                lengths[one.name] = size
                parts.append((f"length of {one.name}", counts[one.name], ()))
                at += counts[one.name].itemsize + size * items[one.name].itemsize
                parts.append((one.name, items[one.name], (size,)))
            else:
                parts.append((one.name, items[one.name], ()))
                at += items[one.name].itemsize
        width = at - self._at
        if not parts or width > 1 << 30 or element.count * width > len(self._bytes) - self._at:
            return None
        table = self._bytes[self._at : self._at + element.count * width].view(np.dtype(parts))
        if any((table[f"length of {name}"] != size).any() for name, size in lengths.items()):
            return None
        self._at += element.count * width
        return {
            one.name: _Lists(
                table[one.name].astype(one.type).reshape(-1), np.full(element.count, lengths[one.name])
            )
            if one.count
            else table[one.name].astype(one.type)
            for one in element.properties
        }

    def finish(self) -> None:
        """Refuse what is left over, line ends aside."""
        left = self._bytes[self._at :]
        if len(left) > 2 or left.tobytes().strip(b"\r\n"):
            raise UserValueError(f"holds {len(left)} bytes more than its header announces")


def _read_element(element: _Element, read: _Text | _Binary) -> Content:
    if not element.properties:
        return {}
    return read.lists(element) if element.has_lists else dict(read.single(element))


def _size(element: _Element, number: Array) -> int:
    """Check the length of a list in text."""
    if not element.count:
        return 0
    if not len(number) or not number[0] >= 0 or number[0] != np.floor(number[0]) or number[0] > 1 << 40:
        raise UserValueError(
            f"is not a complete ply file: element {element.name!r} has a list of length "
            f"{number[0] if len(number) else 'nothing'}"
        )
    return int(number[0])


def _cast(values: Array, of: _Property) -> Array:
    """Bring numbers of a text to the type that the header says; what that type cannot hold stays as it is."""
    with np.errstate(invalid="ignore", over="ignore"):
        cast: Array = values.astype(of.type)
    return cast if cast.dtype.kind == "f" or (cast == values).all() else values


def _ranges(starts: Array, sizes: Array) -> Array:
    """Join the ranges from each start on, as indices."""
    ends = np.cumsum(sizes)
    joined: Array = np.arange(int(sizes.sum())) + np.repeat(starts - (ends - sizes), sizes)
    return joined


def _cut(element: _Element, row: int | None = None) -> str:
    at = "" if row is None else f", it ends in number {row}"
    return f"is not a complete ply file: its header announces {element.count} of element {element.name!r}{at}"


def _wrong_line(content: bytes, start: int) -> str:
    end = b"\n" if b"\n" in content[:start] else b"\r"
    above = content[:start].count(end)
    for number, line in enumerate(content[start:].split(end), start=above + 1):
        try:
            numbers_of(line)
        except ValueError:
            return f"line {number} ({shown(line.decode('latin-1'))}), expected numbers"
    return "is not a complete ply file of text"


def _vertices(found: Mapping[str, Content]) -> tuple[Array, dict[str, Array]]:
    vertex = found.get("vertex")
    if vertex is None:
        raise UserValueError(f"has the elements {', '.join(found) or 'none'}, expected 'vertex'")
    single = {name: values for name, values in vertex.items() if not isinstance(values, _Lists)}
    axes = place_of_axes(list(single))
    if axes is None:
        raise UserValueError(f"its vertices have {', '.join(vertex) or 'nothing'}, expected x, y, z")
    names = [list(single)[place] for place in axes]
    points = np.stack([single.pop(name) for name in names], axis=1)
    return points, single


def _faces(found: Mapping[str, Content], num_points: int) -> Array | None:
    """Collect the triangles of faces and strips."""
    faces = [np.empty((0, 3), np.int64)]
    for element, cut in (("face", _fans), ("tristrips", _strips)):
        lists = next((found[element][name] for name in _CORNERS if name in found.get(element, {})), None)
        if isinstance(lists, _Lists):
            if lists.values.size and not np.array_equal(lists.values, np.floor(lists.values)):
                raise UserValueError(f"element {element!r} names vertices that are no whole numbers")
            faces.append(cut(lists))
    triangles = np.concatenate(faces)
    if triangles.size and not (triangles.min() >= 0 and triangles.max() < num_points):
        worst = triangles.max() if triangles.max() >= num_points else triangles.min()
        raise UserValueError(f"a face names vertex {worst} of {num_points}")
    return triangles if len(triangles) else None


def _fans(lists: _Lists) -> Array:
    starts = np.cumsum(lists.sizes) - lists.sizes
    sizes = [size for size in np.unique(lists.sizes).tolist() if size >= 3]
    if not sizes:
        return np.empty((0, 3), np.int64)
    rows, places = [], []
    for size in sizes:
        at = np.flatnonzero(lists.sizes == size)
        rows.append(fan(lists.values[starts[at][:, None] + np.arange(size)]))
        places.append(np.repeat(at, size - 2))
    return np.concatenate(rows)[np.argsort(np.concatenate(places), kind="stable")]


def _strips(lists: _Lists) -> Array:
    """Cut strips into triangles: any three vertices in a row, every second one turned; -1 starts afresh."""
    parts = [np.empty((0, 3), np.int64)]
    for strip in np.split(lists.values.astype(np.int64), np.cumsum(lists.sizes)[:-1]):
        if len(strip) < 3:
            continue
        place = np.arange(len(strip))
        since = place - np.maximum.accumulate(np.where(strip == -1, place + 1, 0))
        turned = (since[:-2] % 2 == 1)[:, None]
        triples = np.stack([strip[:-2], strip[1:-1], strip[2:]], axis=1)
        triples = np.where(turned, triples[:, [1, 0, 2]], triples)
        parts.append(triples[(triples != -1).all(axis=1)])
    return np.concatenate(parts)


def write_ply(path: Path, points: Array, fields: Mapping[str, Array], faces: Array | None = None) -> None:
    """Write a binary ply file (little endian) with a property for every column, and triangles.

    Coordinates are float, or double where float would move them visibly; colours have 8 bits.
    """
    columns = dict(zip("xyz", exact_points(points).T, strict=True))
    given = dict(fields)
    if "colors" in given and np.asarray(given["colors"]).dtype != np.uint8:
        given["colors"] = colors_of_bits(given["colors"], 8)
    for part, column in flat_columns(given).items():
        if not part.isascii() or part.split() != [part]:
            raise UserValueError(f"ply cannot hold a property {part!r}; rename the field.")
        columns[part] = column if column.dtype.name in _TYPES else _narrow(part, column)
    dtype = np.dtype([(name, column.dtype.newbyteorder("<")) for name, column in columns.items()])
    header = ["ply", "format binary_little_endian 1.0", f"element vertex {len(points)}"]
    header += [f"property {_TYPES[column.dtype.name]} {name}" for name, column in columns.items()]
    if faces is not None:
        header += [f"element face {len(faces)}", "property list uchar int vertex_indices"]
    with path.open("wb") as file:
        file.write("\n".join([*header, "end_header", ""]).encode("ascii"))
        for start in range(0, len(points), _ROWS):
            rows = slice(start, start + _ROWS)
            table = np.empty(len(points[rows]), dtype=dtype)
            for name, column in columns.items():
                table[name] = column[rows]
            table.tofile(file)
        if faces is not None:
            lists = np.empty(len(faces), np.dtype([("length", "u1"), ("corners", "<i4", (3,))]))
            lists["length"], lists["corners"] = 3, faces
            lists.tofile(file)


def _narrow(name: str, column: Array) -> Array:
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
