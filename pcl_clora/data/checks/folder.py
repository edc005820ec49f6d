"""Check folders and lists of point files, with classes or with labelled points."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from pcl_clora.data.checks.finding import (
    Finding,
    RootInfo,
    class_balance,
    digest_of_file,
    duplicates,
    problem,
)
from pcl_clora.data.config import DataConfig
from pcl_clora.data.part_names import read_part_names
from pcl_clora.data.readers.file_list import FileListConfig, index_list
from pcl_clora.data.readers.folder_index import FolderIndex, index_folder
from pcl_clora.data.readers.labelled_folder import LabelledFolderConfig, read_labelled
from pcl_clora.data.readers.labelled_index import PART_FILES, index_labelled, part_file
from pcl_clora.data.readers.sorted_files import SortedFilesConfig
from pcl_clora.data.shapes import Mesh
from pcl_clora.io import DataError, PointFile, read_points
from pcl_clora.io.text import line_of


def describe_folder(root: Path) -> RootInfo:
    """List classes and files."""
    return _described(root, "folder", index_folder(root))


def check_folder(root: Path, config: DataConfig | None = None) -> Iterator[Finding]:
    """Check every file, and whether the splits fit together."""
    yield from _checked(root, config, lambda: index_folder(root), lambda file, _: read_points(file))


def is_list(root: Path) -> bool:
    """Say whether this may be a list of files."""
    return root.is_file() and root.suffix.lower() in (".csv", ".tsv")


def describe_list(root: Path) -> RootInfo:
    """Read the list."""
    return _described(root, "file_list", index_list(root))


def check_list(root: Path, config: DataConfig | None = None) -> Iterator[Finding]:
    """Check every line and every file."""
    classes = config.classes if isinstance(config, FileListConfig) else ()
    yield from _checked(root, config, lambda: index_list(root, classes), lambda file, _: read_points(file))


def is_labelled(root: Path) -> bool:
    """Say whether a folder has a yaml of part names."""
    return any((root / name).is_file() for name in PART_FILES)


def describe_labelled(root: Path) -> RootInfo:
    """List categories and files."""
    return _described(root, "labelled_folder", index_labelled(root, read_part_names(part_file(root))))


def check_labelled(root: Path, config: DataConfig | None = None) -> Iterator[Finding]:
    """Check every file with its labels, and which parts no point has."""
    settings = config if isinstance(config, LabelledFolderConfig) else LabelledFolderConfig(root=str(root))
    try:
        names = settings.part_names()
    except DataError as error:
        yield problem(error)
        return
    seen = np.zeros(names.taxonomy.num_parts, dtype=bool)

    def read(file: Path, category: int) -> PointFile:
        content, parts = read_labelled(file, settings.labels, names, category)
        seen[np.unique(parts)] = True
        return content

    yield from _checked(root, config, lambda: index_labelled(root, names), read)
    never = [name for name, some in zip(names.taxonomy.part_names, seen, strict=True) if not some]
    if never:
        yield Finding("warning", str(root), f"no point is labelled {line_of(never)}; it cannot be learnt.")


def _described(root: Path, layout: str, index: FolderIndex) -> RootInfo:
    counts = {split: len(files) for split, files in index.files.items()}
    return RootInfo(str(root), layout, index.class_names, counts)


def _checked(
    root: Path,
    config: DataConfig | None,
    make_index: Callable[[], FolderIndex],
    read: Callable[[Path, int], PointFile],
) -> Iterator[Finding]:
    try:
        index = make_index()
    except DataError as error:
        yield problem(error)
        return
    yield from (problem(fault) for fault in index.faults)
    yield from (Finding("warning", str(place), f"{what}.") for place, what in index.left_out)
    digests: dict[str, list[tuple[str, bytes]]] = {}
    fewest: tuple[int, str] | None = None
    for split, files in index.files.items():
        digests[split] = []
        for file, label in files:
            try:
                content = read(file, label)
            except DataError as error:
                yield problem(error)
                continue
            if file.is_file():  # and no row of one
                digests[split].append((str(file), digest_of_file(file)))
            if content.faces is None:
                fewest = min(fewest or (len(content.points), str(file)), (len(content.points), str(file)))
            if not np.ptp(content.points, axis=0).any():
                message = f"its {len(content.points)} points all coincide; mend or remove the file."
                yield Finding("error", str(file), message)
            elif content.faces is not None and not _area(content.points, content.faces) > 0:
                message = "the triangles of this mesh have no area; mend or remove the file."
                yield Finding("error", str(file), message)
    yield from duplicates(digests)
    labels = {split: np.array([label for _, label in files]) for split, files in index.files.items()}
    yield from class_balance(str(root), index.class_names, labels)
    for split in {"train", "test"} - index.files.keys() if index.layout != "class" else ():
        place = str(root / split if root.is_dir() else root)
        yield Finding("error", place, f"no files of the split {split!r}; expected some, add them.")
    if fewest:
        strict = isinstance(config, SortedFilesConfig) and not config.repeat
        refused = strict and config is not None and fewest[0] < config.read_points
        message = f"the smallest cloud has {fewest[0]} points; set data.num_points to at most that"
        message += ", or data.repeat=true to fill up with copies." if refused else "."
        yield Finding("error" if refused else "info", fewest[1], message)


def _area(points: np.ndarray, faces: np.ndarray) -> float:
    return float(Mesh(points.astype(np.float64), faces, np.zeros(len(faces), np.int64)).areas().sum())
