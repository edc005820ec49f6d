"""Check a folder of point files."""

from __future__ import annotations

from collections.abc import Iterator
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
from pcl_clora.data.readers.folder import FolderConfig
from pcl_clora.data.readers.folder_index import index_folder
from pcl_clora.data.shapes import Mesh
from pcl_clora.io import DataError, read_points


def describe_folder(root: Path) -> RootInfo:
    """List classes and files."""
    index = index_folder(root)
    return RootInfo(
        str(root), "folder", index.class_names, {k: len(files) for k, files in index.files.items()}
    )


def check_folder(root: Path, config: DataConfig | None = None) -> Iterator[Finding]:
    """Check every file, and whether the splits fit together."""
    try:
        index = index_folder(root)
    except DataError as error:
        yield problem(error)
        return
    yield from (problem(fault) for fault in index.faults)
    yield from (Finding("warning", str(place), f"{what}.") for place, what in index.left_out)
    digests: dict[str, list[tuple[str, bytes]]] = {}
    fewest: tuple[int, str] | None = None
    for split, files in index.files.items():
        digests[split] = []
        for file, _ in files:
            try:
                content = read_points(file)
            except DataError as error:
                yield problem(error)
                continue
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
        yield Finding(
            "error", str(root / split), f"no files of the split {split!r}; expected some, add them."
        )
    if fewest:
        refused = isinstance(config, FolderConfig) and fewest[0] < config.read_points and not config.repeat
        message = f"the smallest cloud has {fewest[0]} points; set data.num_points to at most that"
        message += ", or data.repeat=true to fill up with copies." if refused else "."
        yield Finding("error" if refused else "info", fewest[1], message)


def _area(points: np.ndarray, faces: np.ndarray) -> float:
    return float(Mesh(points.astype(np.float64), faces, np.zeros(len(faces), np.int64)).areas().sum())
