"""Points as lines of text, as people and programs write them: any separator, header, comments.

The text is brought into one form (blanks between numbers, a decimal point) as a whole and parsed by numpy.
Only where that fails are the lines looked at one by one, to say which one is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import TextIO

import numpy as np

from pcl_clora.errors import warn_once
from pcl_clora.io.errors import DataError, explained
from pcl_clora.io.fields import (
    AGAIN,
    Array,
    Read,
    by_name,
    flat_columns,
    is_whole,
    needs_float64,
    place_of_axes,
    split_columns,
)

_NUMBER = re.compile(
    r"[-+\u2212]?([0-9]+\.?[0-9]*|\.[0-9]+)([eEdD][-+\u2212]?[0-9]+)?|[-+]?(nan|inf|infinity)", re.IGNORECASE
)
_WHOLE = re.compile(r"[-+\u2212]?[0-9]+")
_DECIMAL_COMMA = re.compile(r"[-+\u2212]?[0-9]+,[0-9]+([eEdD][-+\u2212]?[0-9]+)?")
_GROUPED = {  # digits in groups of three, by what the decimal sign is
    ".": re.compile(r"[-+\u2212]?[0-9]{1,3}(,[0-9]{3})+\.[0-9]+"),
    ",": re.compile(r"[-+\u2212]?[0-9]{1,3}(\.[0-9]{3})+,[0-9]+"),
}
_COMMENT = re.compile(r"(?:(?<=[\s,;])|^)(?:#|//).*$|^[^\S\n]*(?:%|!|;(?![^\S\n]*[-+.\d])).*$", re.MULTILINE)
_FORTRAN = re.compile(r"(?<=[\d.])[dD](?=[+-]?\d)")
_EMPTY = re.compile(r"[,;|][^\S\n]*[,;|]|^[^\S\n]*[,;|]", re.MULTILINE)
_NO_TEXT = re.compile(r"[\x00-\x08\x0e-\x1f\x7f\ud800-\udfff]")
_BLANKS = str.maketrans(",;|\u00a0\u2212", "    -")
_KINDS = {
    "normals": ("x", "y", "z", "nx", "ny", "nz"),
    "colors": ("x", "y", "z", "red", "green", "blue"),
    "intensity": ("x", "y", "z", "intensity"),
    "both": ("x", "y", "z", "intensity", "red", "green", "blue"),
}
_BLOCK = 1 << 22  # characters that are parsed at once
_ROWS = 1 << 16  # written at once
_DIGITS_OF = 30_000  # numbers that are looked at to tell how many digits a file has
_LOOK_AHEAD = 50  # lines that decide what a comma means
_SHOWN = 60  # characters of a line in a message


def read_text(path: Path, part: str, row: int | None, max_points: int | None) -> Read:
    """Read columns of numbers.

    Numbers are split by commas, semicolons, tabs, blanks or bars. A comma is the decimal sign where
    semicolons or blanks split, and 1.5D+02 is 150. "#" and "//" start a comment; a line that starts with "%",
    "!" or ";" is one.
    A line of words, or the comment before the numbers, may name the columns; so may the 0,1,2 of pandas. A
    first line that holds one whole number is the number of points, as scanners write it to pts files.
    The text is read in blocks, so that it need not fit into memory several times.
    """
    blocks = _blocks(path, max_points)
    number, lines = next(blocks)
    head = _Head(path, lines)
    body = lines[head.start :]
    comma = _decimal_comma(path, body, head.start)
    table = _parse(path, body, head.start, comma)
    width = table.shape[1]
    names = head.names(width) or _names_of_kind(path, table, head.count)
    above = int(names is None and _is_pandas_header(path, body, comma))
    bad = _NotFinite(_place(names, width))
    bad.look(table[above:], lines, head.start, above)
    tables = [table[above:]]
    for number, lines in blocks:
        table = _parse(path, lines, number, comma, width)
        bad.look(table, lines, number)
        tables.append(table)
    table = tables[0] if len(tables) == 1 else np.concatenate(tables)
    del tables
    if names is None:
        _warn_of_counted_lines(path, table)
    elif len(names) == width - 1 and place_of_axes(names) and _is_index(["", *names], table):
        names = ["", *names]  # R gives the column of row numbers no name
    if names is not None and _is_index(names, table):
        names, table = names[1:], table[:, 1:]
    table = table[:max_points]
    if not table.size:
        raise DataError(path, "holds no points, expected lines of x y z", AGAIN)
    if head.count is not None and len(table) != min(head.count, max_points or head.count):
        raise DataError(path, f"announces {head.count} points and holds {len(table)}", AGAIN)
    read = split_columns(path, table, text=True) if names is None else by_name(path, names, table)
    points, fields, faces = read
    bad.refuse(path, points)
    if needs_float64(points) and _has_nine_digits(points):
        points = points.astype(np.float32)
    return points, fields, faces


def _place(names: Sequence[str] | None, width: int) -> tuple[int, int, int]:
    """Say which columns are x, y, z: the first three, or as named, perhaps behind one of row numbers."""
    axes = place_of_axes(names) if names is not None else None
    if names is None or axes is None or width - len(names) not in (0, 1):
        return 0, 1, 2
    x, y, z = axes
    by = width - len(names)
    return x + by, y + by, z + by


def _has_nine_digits(points: Array) -> bool:
    """Tell, by a part of them, numbers that say no more than float32 does, which nine digits hold."""
    some = points.reshape(-1)[:: 1 + points.size // _DIGITS_OF]
    with np.errstate(over="ignore"):
        return all(float(f"{np.float32(value):.9g}") == value for value in some)


def _blocks(path: Path, max_points: int | None) -> Iterator[tuple[int, list[str]]]:
    """Read lines, each without its end, in blocks: how many lines are above, and the lines.

    Where only the first points are wanted, not many more are read.
    """
    with explained(path, "read"):
        with path.open("rb") as file:
            mark = file.read(4)
        encoding = "utf-16" if mark[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
        try:
            with path.open(encoding=encoding, errors="surrogateescape") as text:
                if max_points is not None:
                    yield 0, _first_lines(text, max_points)
                    return
                above = 0
                while True:
                    block = text.read(_BLOCK)
                    if len(block) == _BLOCK and block[-1] != "\n":
                        block += text.readline()
                    if above and not block:
                        return
                    lines = block.removesuffix("\n").split("\n")
                    yield above, lines
                    above += len(lines)
        except UnicodeError as error:
            raise DataError(path, f"is not text ({error})", "convert it") from error


def _first_lines(text: TextIO, max_points: int) -> list[str]:
    lines: list[str] = []
    numbers = 0
    for line in text:
        lines.append(line.rstrip("\n"))
        numbers += bool(_NUMBER.match(line.lstrip()))
        if numbers > max_points + 1:  # one more may be a count, and one the header of pandas
            break
    return lines


def _names_of_kind(path: Path, table: Array, count: int | None) -> list[str] | None:
    """Name the columns that the kind of file says: xyzn, xyzrgb, and pts with a count, as of scanners."""
    kind, width = path.suffix.lower(), table.shape[1]
    names = {".xyzn": _KINDS["normals"], ".xyzrgb": _KINDS["colors"]}.get(kind, ())
    if kind == ".pts" and count is not None and width in (4, 6, 7):
        names = {4: _KINDS["intensity"], 6: _KINDS["colors"], 7: _KINDS["both"]}[width]
        of_colors = table[:, -3:] if width > 4 else table[:0, -3:]
        if not (((of_colors >= 0) & (of_colors <= 255)).all() and (of_colors == np.floor(of_colors)).all()):
            return None
    return list(names) if len(names) == width else None


def _words(line: str, comma: bool) -> list[str]:
    """Split a line as the numbers are split; an empty place between two marks stays an empty word."""
    if '"' in line:
        line = _unquoted(line)
    line = _COMMENT.sub("", line)
    parts = re.split(r"[;|]" if comma else r"[,;|]", line.replace("\u00a0", " "))
    if len(parts) > 1 and not parts[-1].strip():
        parts.pop()
    return [word for part in parts for word in (part.split() or [""])] if len(parts) > 1 else line.split()


def _unquoted(text: str) -> str:
    """Take quotes away; a comma inside them is a decimal sign."""
    return re.sub(r'"([^"\n]*)"', lambda found: found[1].replace(",", ".") or '""', text)


def _is_number(word: str) -> bool:
    return _NUMBER.fullmatch(word.strip('"').replace(",", ".", 1)) is not None


class _Head:
    """What stands above the numbers: comments, words, a count.

    Attributes:
        start: the place of the first line of numbers.
        count: the number of points that the file announces; None where it does not.
    """

    def __init__(self, path: Path, lines: Sequence[str]) -> None:
        self.count: int | None = None
        self._path, self._words, self._comments = path, "", list[str]()
        odd = ""  # the first line of words that does not name columns
        for self.start, line in enumerate(lines):
            bare = _COMMENT.sub("", line).strip()
            if not bare:
                self._comments += [line.strip()] if line.strip() else []
            elif (
                self.count is None
                and not self._words
                and bare.isascii()
                and bare.isdecimal()
                and len(bare) < 19
            ):
                self.count = int(bare)
            elif all(map(_is_number, _words(bare, comma=False))):
                return
            elif _NO_TEXT.search(bare):
                raise DataError(path, f"is not text (line {self.start + 1}: {shown(line)})", "convert it")
            elif self._words and _is_number(_words(bare, comma=False)[0]):
                return  # a line of numbers that is broken; it is named when it is parsed
            elif place_of_axes(_names(self._words)) is None and place_of_axes(_names(bare)) is not None:
                self._words = bare
            else:
                odd = odd or f"line {self.start + 1} is {shown(line)}"
                self._words = self._words if place_of_axes(_names(self._words)) else bare
        if self.count is not None and not self._words and self.count and len(lines) > 0:
            raise DataError(path, f"announces {self.count} points and holds 0", AGAIN)
        if odd:
            raise DataError(
                path,
                f"has no line of numbers alone, expected lines of x y z; {odd}",
                "split the numbers by blanks, commas or semicolons, and leave out what is no number",
            )
        raise DataError(path, "holds no points, expected lines of x y z", AGAIN)

    def names(self, columns: int) -> list[str] | None:
        """Give the names of the columns, or None; those of a comment only where they fit."""
        if self._words:
            return _names(self._words)
        for comment in reversed(self._comments):
            text = comment.lstrip("#/%!; \t")
            for candidate in (text, text.partition(":")[2]):
                found = _names(candidate)
                axes = place_of_axes(found)
                if len(found) == columns and axes:
                    return found
                if axes and axes != (0, 1, 2):
                    warn_once(
                        f"{self._path}: the comment {shown(comment)} names {len(found)} columns, and there "
                        f"are {columns}: it is not read, x, y, z are the first three.",
                        kind="comment of other columns",
                    )
        return None


def _names(text: str) -> list[str]:
    return [name.strip("\"' ").lower() for name in _header_words(text)]


def _header_words(text: str) -> list[str]:
    """Split a line of names: at marks where there are any, else at blanks; units in brackets go."""
    text = re.sub(r"[\[(][^\[\]()]*[\])]", "", text).strip()
    mark = next((mark for mark in ";,\t|" if mark in text), None)
    words = text.split(mark)
    return words[:-1] if mark and len(words) > 1 and not words[-1].strip() else words


def _sample(body: Sequence[str]) -> list[tuple[int, str]]:
    """Give the first lines that say something, without their comments, each with its place in `body`."""
    bare = ((place, _COMMENT.sub("", line).strip()) for place, line in enumerate(body[: 4 * _LOOK_AHEAD]))
    return [(place, line) for place, line in bare if line][:_LOOK_AHEAD]


def _decimal_comma(path: Path, body: Sequence[str], start: int) -> bool:
    """Tell whether the comma is the decimal sign of all numbers.

    Raises:
        DataError: if it seems to be both that and what splits the numbers.
    """
    sample = [(place, line) for place, line in _sample(body) if "," in line and '"' not in line]
    if not sample:
        return False
    first = f"line {start + sample[0][0] + 1}"
    lines = [line for _, line in sample]
    _refuse_grouped_digits(path, lines, first)
    for line in lines:
        words = [word for word in re.split(r"[;|\s]+", line) if word]
        split = ";" in line.rstrip("; ") or "|" in line or len(words) >= 3
        if not split or not all(_DECIMAL_COMMA.fullmatch(w) or _WHOLE.fullmatch(w) for w in words):
            break
    else:
        return True
    rows = [[word.strip() for word in line.rstrip(", ").split(",")] for line in lines]
    doubled = all(
        len(row) >= 6 and len(row) % 2 == 0 and all(_WHOLE.fullmatch(word) for word in row) for row in rows
    )
    if doubled and any(
        w == "-0" or (len(w) > 1 and w.lstrip("+-").startswith("0")) for row in rows for w in row
    ):
        raise DataError(
            path,
            f"{first} has commas both as decimal sign and between numbers ({shown(lines[0])})",
            "write decimal points, or split the numbers by semicolons",
        )
    return False


def _refuse_grouped_digits(path: Path, lines: Sequence[str], first: str) -> None:
    """Refuse 1,234.5 and 1.234,5 where blanks or semicolons split: as numbers they would be two each."""
    rows = [[word for word in re.split(r"[;|\s]+", line) if word] for line in lines]
    words = [word for row in rows for word in row]
    for sign, grouped in _GROUPED.items():
        plain = _NUMBER if sign == "." else _DECIMAL_COMMA
        if (
            all(len(row) >= 3 for row in rows)
            and all(grouped.fullmatch(w) or plain.fullmatch(w) or _WHOLE.fullmatch(w) for w in words)
            and any(map(grouped.fullmatch, words))
        ):
            raise DataError(
                path,
                f"{first} has digits in groups of three ({shown(lines[0])})",
                "write the numbers without marks between their digits",
            )


def _parse(path: Path, body: Sequence[str], start: int, comma: bool, width: int = 0) -> Array:
    """Parse lines to a table; `width` is how many numbers a line has, 0 for as many as the first one."""
    text = "\n".join(body)
    if '"' in text:
        text = _unquoted(text)
    if any(mark in text for mark in ("#", "//", "%", "!", ";")):
        text = _COMMENT.sub("", text)
    if comma:
        text = text.replace(",", ".")
    if not text.isascii() or any(mark in text for mark in ",;|"):
        if _EMPTY.search(text):
            raise _wrong_line(path, body, start, comma, width)
        text = text.translate(_BLANKS)
    if "d" in text or "D" in text:
        text = _FORTRAN.sub("e", text)
    if width and (not text or text.isspace()):
        return np.empty((0, width))
    try:
        table = np.loadtxt(StringIO(text), dtype=np.float64, ndmin=2, comments=None)
    except ValueError:
        raise _wrong_line(path, body, start, comma, width) from None
    if width not in (0, table.shape[1]):
        raise _wrong_line(path, body, start, comma, width)
    return table


def _wrong_line(path: Path, body: Sequence[str], start: int, comma: bool, width: int = 0) -> DataError:
    """Find the line that cannot be read, in a text that cannot be read as a whole."""
    first = width
    for number, line in enumerate(body, start=start + 1):
        words = _words(line, comma)
        if not words:
            continue
        first = first or len(words)
        if len(words) != first:
            found = f"it has {len(words)}"
        elif (bad := next((w for w in words if not _is_parsed(w, comma)), None)) is not None:
            found = f"{bad!r} stands in column {words.index(bad) + 1}"
        else:
            continue
        return DataError(
            path,
            f"line {number} does not have the {first} numbers that the first one has: {found} "
            f"({shown(line)})",
            "mend the line or get the file again",
        )
    return DataError(path, "is not a table of numbers", "mend it or get it again")


def _is_parsed(word: str, comma: bool) -> bool:
    word = _FORTRAN.sub("e", word.replace(",", ".") if comma else word).replace("\u2212", "-")
    try:
        float(word)
    except ValueError:
        return False
    return "_" not in word and word.isascii()


def shown(line: str) -> str:
    """Quote a line, shortened, with what cannot be seen as escapes."""
    line = line.strip()
    return ascii(line if len(line) <= _SHOWN else f"{line[:_SHOWN]}...")


def _is_pandas_header(path: Path, body: Sequence[str], comma: bool) -> bool:
    """Tell the column numbers 0,1,2 from a point: no coordinate below them is written as a whole number."""
    sample = _sample(body)
    rows = [_words(line, comma) for _, line in sample]
    if len(rows) < 2 or len(rows[0]) < 3 or rows[0] != [str(place) for place in range(len(rows[0]))]:
        return False
    if all(not any(_WHOLE.fullmatch(word) for word in row[:3]) for row in rows[1:]):
        return True
    if re.search(r"[,;\t]", sample[0][1]):
        warn_once(
            f"{path}: its first line, {shown(sample[0][1])}, is read as a point; take it out if it numbers "
            "the columns, as pandas writes them.",
            kind="first line 0,1,2",
        )
    return False


def _warn_of_counted_lines(path: Path, table: Array) -> None:
    """Say so where the first of four or more columns only numbers the lines, and the others are measured."""
    count = len(table)
    if count < 8 or table.ndim != 2 or table.shape[1] < 4 or (table[:, 1:4] == np.floor(table[:, 1:4])).all():
        return
    if table[0, 0] in (0, 1) and np.array_equal(table[:, 0] - table[0, 0], np.arange(count)):
        warn_once(
            f"{path}: its first column numbers the lines and is read as x; take it out, or name the "
            "columns in a first line.",
            kind="first column 0,1,2",
        )


def _is_index(names: Sequence[str], table: Array) -> bool:
    """Tell a first column that only numbers the rows: it has no name of its own."""
    if len(names) != table.shape[1] or names[0] not in ("", "unnamed: 0"):
        return False
    return is_whole(table[:, 0]) and len(np.unique(table[:, 0])) == len(table)


class _NotFinite:
    """Where coordinates are not finite: how many points, and which line holds the first."""

    def __init__(self, axes: tuple[int, int, int]) -> None:
        self._axes, self._rows, self._count = list(axes), 0, 0
        self._first, self._line, self._text = 0, 0, ""

    def look(self, table: Array, lines: Sequence[str], start: int, above: int = 0) -> None:
        """Look at the table of some lines, `start` of which are above, and `above` are no points."""
        axes = table[:, self._axes] if table.shape[1] > max(self._axes) else table
        bad = np.flatnonzero(~np.isfinite(axes).all(axis=1))
        if bad.size and not self._count:
            first = lines[start:] if self._rows == 0 else lines
            rows = (number for number, line in enumerate(first, start) if _COMMENT.sub("", line).strip())
            self._line = next(number for place, number in enumerate(rows) if place == bad[0] + above)
            self._first, self._text = self._rows + int(bad[0]), first[self._line - start]
        self._count += len(bad)
        self._rows += len(table)

    def refuse(self, path: Path, points: Array) -> None:
        """Raise an error if any of the points that are wanted is not finite."""
        if self._count and self._first < len(points):
            raise DataError(
                path,
                f"{self._count} of {len(points)} points are not finite, the first is point {self._first}: "
                f"{points[self._first].tolist()}, in line {self._line + 1} ({shown(self._text)})",
                "remove these points or get the file again",
            )


def write_text(path: Path, points: Array, fields: Mapping[str, Array], faces: Array | None = None) -> None:
    """Write columns: csv with commas, others with blanks; fields are named by a first line or comment.

    pts has the number of points there instead, and then intensity and colours. Where a name says what the
    columns are (xyzn, xyzrgb), nothing is named.
    """
    points = np.asarray(points)
    if path.suffix.lower() == ".pts":
        fields = {name: fields[name] for name in ("intensity", "colors") if name in fields}
    columns = {**dict(zip("xyz", points.T, strict=True)), **flat_columns(fields)}
    kind = path.suffix.lower()
    form = ("," if kind == ".csv" else " ").join(_format(column) for column in columns.values())
    comment = f"# {' '.join(columns)}" if len(columns) > 3 else ""
    heads = {".csv": ",".join(columns), ".pts": str(len(points)), ".xyzn": "", ".xyzrgb": ""}
    head = heads.get(kind, comment)
    with path.open("w", encoding="utf-8") as file:
        file.write(f"{head}\n" if head else "")
        write_rows(file, form, *columns.values())


def write_rows(file: TextIO, form: str, *tables: Array) -> None:
    """Write a line for every row of tables (N,) or (N, C), side by side, as `form` with % says it."""
    columns = [column for table in tables for column in (table.T if table.ndim == 2 else [table])]
    for start in range(0, len(tables[0]), _ROWS):
        block = [column[start : start + _ROWS].tolist() for column in columns]
        file.writelines(f"{form}\n" % numbers for numbers in zip(*block, strict=True))


def _format(values: Array) -> str:
    """Say how numbers are written so that they come back as they are."""
    if values.dtype.kind in "biu":
        return "%d"
    return "%.9g" if values.dtype.itemsize <= 4 else "%.17g"
