"""A list of files as a data set: a csv with one line a cloud, path,label or path,label,split.

Paths are relative to the csv. A first line of names may say which column is which; other columns are not
read. Without splits the seed decides them.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from pcl_clora.data.readers.files import raise_all
from pcl_clora.data.readers.folder import ClassFilesConfig
from pcl_clora.data.readers.folder_index import SPLIT_NAMES, FolderIndex
from pcl_clora.io import POINT_SUFFIXES, DataError, explained
from pcl_clora.io.text import line_of

_COLUMNS = {
    "path": ("path", "file", "filename", "cloud", "scan"),
    "label": ("label", "class", "category", "name"),
    "split": ("split", "set", "subset"),
}
_EXAMPLE = "write lines such as 'scans/a.ply,chair', with or without a first line 'path,label'"


class FileListConfig(ClassFilesConfig):
    """Point files that a csv names, each with its class; `root` is the csv."""

    reads_below: ClassVar[bool] = False

    name: Literal["file_list"] = "file_list"
    classes: tuple[str, ...] = ()  # order of the classes; those not named follow in alphabetical order

    def index(self) -> FolderIndex:
        """Read the list; no file of it is opened."""
        return index_list(self.root, self.classes)

    def file_root(self) -> str:
        """Name the folder of the list, below which files are named for their draws."""
        return str(Path(self.root).parent)

    def listed_files(self) -> list[Path]:
        """Name the list and its files."""
        files = [file for entries in self.index().files.values() for file, _ in entries]
        return [Path(self.root), *(_on_disk(file) for file in files)]


@dataclass
class _Line:
    """One line of the list: its number, and what it says."""

    number: int
    path: str
    label: str
    split: str = ""


@dataclass
class _Found:
    """What was read so far, with what is wrong."""

    by_path: dict[str, _Line] = field(default_factory=dict)
    faults: list[DataError] = field(default_factory=list)

    @property
    def lines(self) -> list[_Line]:
        """In their order."""
        return list(self.by_path.values())


def index_list(path: str | Path, classes: Sequence[str] = ()) -> FolderIndex:
    """Read a list of files.

    Args:
        path: the csv, of commas, semicolons or tabs.
        classes: which come first, in this order; the others follow in alphabetical order.

    Returns:
        Classes and files; the layout is "class" where the list names no splits.

    Raises:
        DataError: if the list is missing or empty, or lines are wrong; the message names every line.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "there is no such file"
        raise DataError(path, f"{what}, expected a csv of path,label", "set data.root to it")
    found = _Found()
    with explained(path, "read"):
        for line in _lines(path, found.faults):
            _check(path, line, found)
    splits = {line.split for line in found.lines}
    if "" in splits and len(splits) > 1:
        bare = next(line.number for line in found.lines if not line.split)
        found.faults.append(
            _fault(path, bare, "names no split, and other lines do", "name one on every line")
        )
    raise_all(str(path), found.faults)
    if not found.lines:
        raise DataError(path, "names no files", _EXAMPLE)
    unknown = [name for name in classes if name not in {line.label for line in found.lines}]
    if unknown:
        raise DataError(path, f"has no file of {line_of(unknown)}, which data.classes names", "mend either")
    others = sorted({line.label for line in found.lines} - set(classes))
    names = (*classes, *others)
    files: dict[str, list[tuple[Path, int]]] = {}
    for line in found.lines:
        files.setdefault(line.split or "all", []).append((path.parent / line.path, names.index(line.label)))
    ordered = {split: sorted(files[split]) for split in ("all", *SPLIT_NAMES) if split in files}
    return FolderIndex("class" if "all" in files else "split/class", names, ordered)


def _fault(path: Path, number: int, problem: str, remedy: str) -> DataError:
    return DataError(f"{path}, line {number}", problem, remedy)


def _lines(path: Path, faults: list[DataError]) -> Iterator[_Line]:
    """Read the lines, under the names of the first one where it has some; empty ones are left out."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            path, f"is not text in UTF-8 ({error.reason})", "save it as a csv in UTF-8"
        ) from error
    first = next((line for line in text.splitlines() if line.strip()), "")
    mark = max(",;\t", key=first.count)
    reader = csv.reader(text.splitlines(), delimiter=mark, skipinitialspace=True)
    columns: Mapping[str, int] | None = None
    for cells in reader:
        words = [cell.strip() for cell in cells]
        if not any(words):
            continue
        if columns is None:
            columns = _named(words)
            if columns:
                if not {"path", "label"} <= columns.keys():
                    raise _fault(path, reader.line_num, f"names the columns {', '.join(words)}", _EXAMPLE)
                continue
            columns = {"path": 0, "label": 1, "split": 2}
        said = {key: words[at] if at < len(words) else "" for key, at in columns.items()}
        if not said.get("path") or not said.get("label"):
            missing = "label" if said.get("path") else "path"
            faults.append(_fault(path, reader.line_num, f"has no {missing}: {mark.join(cells)!r}", _EXAMPLE))
        else:
            yield _Line(reader.line_num, said["path"], said["label"], said.get("split", ""))


def _named(words: Sequence[str]) -> dict[str, int]:
    """Find the columns by name, if this is a line of names: of two or more that are known."""
    low = [word.lower() for word in words]
    found = {
        key: low.index(name)
        for key, names in _COLUMNS.items()
        for name in reversed(names)
        if low.count(name) == 1
    }
    return found if len(found) > 1 or (found and not _is_point_file(words[0])) else {}


def _is_point_file(name: str) -> bool:
    return _on_disk(Path(name)).suffix.lower() in POINT_SUFFIXES


def _on_disk(file: Path) -> Path:
    """Name the file of a row, "file.h5#7"; others are themselves."""
    return file if "#" not in file.name or os.path.lexists(file) else Path(str(file).rpartition("#")[0])


def _check(path: Path, line: _Line, found: _Found) -> None:
    """Take a line over, or say what is wrong with it."""
    file, where = _on_disk(path.parent / line.path), (path, line.number)
    split = next((name for name, names in SPLIT_NAMES.items() if line.split.lower() in names), "")
    before = found.by_path.get(line.path)
    if not file.is_file():
        found.faults.append(_fault(*where, f"names {line.path}, which is not there", "mend the path"))
    elif file.suffix.lower() not in POINT_SUFFIXES:
        known = " ".join(POINT_SUFFIXES)
        found.faults.append(
            _fault(*where, f"names {line.path}, which is not read; known: {known}", "convert it")
        )
    elif line.split and not split:
        known = ", ".join(SPLIT_NAMES)
        found.faults.append(
            _fault(*where, f"names the split {line.split!r}; known: {known}", "name one of these")
        )
    elif before is not None:
        as_what = (
            "again"
            if before.label == line.label
            else f"as {line.label}, and line {before.number} as {before.label}"
        )
        found.faults.append(_fault(*where, f"names {line.path} {as_what}", "remove one of the lines"))
    else:
        found.by_path[line.path] = _Line(line.number, line.path, line.label, split)
