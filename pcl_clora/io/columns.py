"""Points as lines of text, as people and programs write them: any separator, header, comments.

The text is brought into one form (blanks between numbers, a decimal point) as a whole and parsed by numpy.
Only where that fails are the lines looked at one by one, to say which one is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path

import numpy as np

from pcl_clora.errors import warn_once
from pcl_clora.io.errors import DataError, explained
from pcl_clora.io.fields import (
    AGAIN,
    TRIPLES,
    Array,
    Read,
    by_name,
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
_LOOK_AHEAD = 50  # lines that decide what a comma means
_SHOWN = 60  # characters of a line in a message


def read_text(path: Path, part: str, row: int | None, max_points: int | None) -> Read:
    """Read columns of numbers.

    Numbers are split by commas, semicolons, tabs, blanks or bars. A comma is the decimal sign where
    semicolons or blanks split, and 1.5D+02 is 150. "#" and "//" start a comment; a line that starts with "%",
    "!" or ";" is one.
    A line of words, or the comment before the numbers, may name the columns; so may the 0,1,2 of pandas. A
    first line that holds one whole number is the number of points, as scanners write it to pts files.
    """
    lines = _lines(path, max_points)
    head = _Head(path, lines)
    body = lines[head.start :]
    comma = _decimal_comma(path, body, head.start)
    table = _parse(path, body, head.start, comma)
    names = head.names(table.shape[1])
    above = int(names is None and _is_pandas_header(path, body, comma))
    table = table[above:]
    if names is None:
        _warn_of_counted_lines(path, table)
    elif len(names) == table.shape[1] - 1 and place_of_axes(names) and _is_index(["", *names], table):
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
    _check_finite(path, lines, head.start, above, points)
    with np.errstate(over="ignore"):
        if needs_float64(points) and all(float(f"{np.float32(v):.9g}") == v for v in points.flat):
            points = points.astype(np.float32)  # nine digits, as float32 is written: they say no more
    return points, fields, faces


def _lines(path: Path, max_points: int | None) -> list[str]:
    """Read the lines, each without its end; where only the first points are wanted, not many more."""
    with explained(path, "read"):
        with path.open("rb") as file:
            mark = file.read(4)
        encoding = "utf-16" if mark[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
        try:
            with path.open(encoding=encoding, errors="surrogateescape") as text:
                if max_points is None:
                    return text.read().split("\n")
                lines: list[str] = []
                numbers = 0
                for line in text:
                    lines.append(line.rstrip("\n"))
                    numbers += bool(_NUMBER.match(line.lstrip()))
                    if numbers > max_points + 1:  # one more may be a count, and one the header of pandas
                        break
                return lines
        except UnicodeError as error:
            raise DataError(path, f"is not text ({error})", "convert it") from error


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


def _parse(path: Path, body: Sequence[str], start: int, comma: bool) -> Array:
    text = "\n".join(body)
    if '"' in text:
        text = _unquoted(text)
    if any(mark in text for mark in ("#", "//", "%", "!", ";")):
        text = _COMMENT.sub("", text)
    if comma:
        text = text.replace(",", ".")
    if not text.isascii() or any(mark in text for mark in ",;|"):
        if _EMPTY.search(text):
            raise _wrong_line(path, body, start, comma)
        text = text.translate(_BLANKS)
    if "d" in text or "D" in text:
        text = _FORTRAN.sub("e", text)
    try:
        return np.loadtxt(StringIO(text), dtype=np.float64, ndmin=2, comments=None)
    except ValueError:
        raise _wrong_line(path, body, start, comma) from None


def _wrong_line(path: Path, body: Sequence[str], start: int, comma: bool) -> DataError:
    """Find the line that cannot be read, in a text that cannot be read as a whole."""
    first = 0
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


def _check_finite(path: Path, lines: Sequence[str], start: int, above: int, points: Array) -> None:
    bad = np.flatnonzero(~np.isfinite(points).all(axis=1))
    if not bad.size:
        return
    rows = (number for number in range(start, len(lines)) if _COMMENT.sub("", lines[number]).strip())
    number = next(number for place, number in enumerate(rows) if place == bad[0] + above)
    raise DataError(
        path,
        f"{bad.size} of {len(points)} points are not finite, the first is point {bad[0]}: "
        f"{points[bad[0]].tolist()}, in line {number + 1} ({shown(lines[number])})",
        "remove these points or get the file again",
    )


def write_text(path: Path, points: Array, fields: Mapping[str, Array]) -> None:
    """Write columns: csv with commas and a header line, the others with spaces."""
    columns, names = [points], ["x", "y", "z"]
    formats = 3 * [_format(points)]
    for name, values in fields.items():
        flat = np.asarray(values).reshape(len(points), -1)
        columns.append(flat)
        formats += flat.shape[1] * [_format(flat)]
        names += TRIPLES.get(name, ()) or (
            [name] if flat.shape[1] == 1 else [f"{name}_{number}" for number in range(flat.shape[1])]
        )
    csv = path.suffix == ".csv"
    np.savetxt(
        path,
        np.concatenate(columns, axis=1, dtype=np.float64),
        fmt=formats,
        delimiter="," if csv else " ",
        header=",".join(names) if csv else "",
        comments="",
    )


def _format(values: Array) -> str:
    """Say how numbers are written so that they come back as they are."""
    if values.dtype.kind in "biu":
        return "%d"
    return "%.9g" if values.dtype.itemsize <= 4 else "%.17g"
