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
from pcl_clora.data.readers.folder import index_folder
from pcl_clora.io import DataError, read_points


def describe_folder(root: Path) -> RootInfo:
    """List classes and files."""
    index = index_folder(root)
    return RootInfo(
        str(root), "folder", index.class_names, {k: len(files) for k, files in index.files.items()}
    )


def check_folder(root: Path) -> Iterator[Finding]:
    """Check every file, and whether the splits fit together."""
    try:
        index = index_folder(root)
    except DataError as error:
        yield problem(error)
        return
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
            elif not content.points.any():
                yield Finding("error", str(file), "all vertices coincide; mend or remove the file.")
    yield from duplicates(digests)
    labels = {split: np.array([label for _, label in files]) for split, files in index.files.items()}
    yield from class_balance(str(root), index.class_names, labels)
    for split in {"train", "test"} - index.files.keys() if index.layout != "class" else ():
        yield Finding(
            "error", str(root / split), f"no files of the split {split!r}; expected some, add them."
        )
    if fewest:
        message = f"the smallest cloud has {fewest[0]} points; set data.num_points to at most that."
        yield Finding("info", fewest[1], message)
