"""Which clouds are meant by paths, folders, patterns and files of many clouds; what is left out is named."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pcl_clora.data.readers.whole import WHOLE_SUFFIXES, count_clouds
from pcl_clora.engine.run.data_identity import NO_CLOUDS
from pcl_clora.errors import UserValueError
from pcl_clora.io import DataError, explained
from pcl_clora.io.formats import is_of_gltf

NEED_A_ROW = (".dat", ".pkl")  # pickles of published code: a folder does not say which cloud is meant


@dataclass(frozen=True)
class Clouds:
    """What is meant by what was given.

    Attributes:
        files: every cloud once, in the order given; of folders in alphabetical order. "file.h5#7" is a row.
        left_out: (file, why) of what is not read.
    """

    files: tuple[str, ...]
    left_out: tuple[tuple[str, str], ...] = ()


def find_clouds(paths: Sequence[str | Path]) -> Clouds:
    """Find the clouds that are meant.

    A folder means all point files below it, a pattern (`*`, `?`, `[...]`, `**`) what it fits, an h5 file all
    clouds in it, `file.h5#7` one of them. Anything else is taken as it is, so that a file that is missing
    gets a row with its error.

    Args:
        paths: files, folders, patterns.

    Raises:
        UserValueError: if a pattern fits nothing, or nothing is left.
        FileAccessError: if a folder cannot be read.
    """
    files: dict[str, None] = {}
    left_out: list[tuple[str, str]] = []
    for path in map(str, paths):
        for file, why in _meant(path):
            if why:
                left_out.append((file, why))
            elif file in files:
                left_out.append((file, "is given twice"))
            else:
                files[file] = None
    if not files:
        raise UserValueError(
            f"{', '.join(map(str, paths)) or 'nothing'}: no point files there; known endings are "
            f"{', '.join(WHOLE_SUFFIXES)}."
        )
    return Clouds(tuple(files), tuple(left_out))


def _meant(path: str) -> Iterator[tuple[str, str]]:
    """Yield (file, "") of what is read, and (file, why not)."""
    if os.path.isdir(path):
        yield from _below(Path(path))
    elif not os.path.lexists(path) and any(mark in path for mark in "*?["):
        found = sorted(glob.glob(path, recursive=True))
        if not found:
            raise UserValueError(f"{path}: no file fits this pattern; check it, or quote it for the shell.")
        for each in found:
            yield from _below(Path(each)) if os.path.isdir(each) else _rows(each)
    else:
        yield from _rows(path)


def _below(folder: Path) -> Iterator[tuple[str, str]]:
    with explained(folder, "read"):
        found = sorted(folder.rglob("*"))
    for file in found:
        suffix = file.suffix.lower()
        if file.is_dir():
            continue
        if any(part.startswith(".") for part in file.relative_to(folder).parts):
            yield str(file), "is hidden"
        elif suffix in NEED_A_ROW:
            yield str(file), "holds many clouds; name one behind '#'"
        elif suffix not in WHOLE_SUFFIXES:
            yield str(file), f"ends in {suffix or 'nothing'}, which is no kind of point file known here"
        elif is_of_gltf(file):
            yield str(file), "belongs to the gltf beside it"
        elif file.stem.lower() in NO_CLOUDS:
            yield str(file), "is a text for people by its name"
        else:
            yield from _rows(str(file))


def _rows(path: str) -> Iterator[tuple[str, str]]:
    """Name every cloud of a file that holds several; a damaged one stays one, whose row says the error."""
    try:
        count = count_clouds(path)
    except DataError:
        count = None
    if count is None:
        yield path, ""
    else:
        for row in range(count):
            yield f"{path}#{row}", ""
