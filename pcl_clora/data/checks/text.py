"""Check a folder in the layout of modelnet40_normal_resampled."""

from __future__ import annotations

from collections import Counter
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
from pcl_clora.data.dataset import SPLITS
from pcl_clora.data.readers.modelnet import GET_AGAIN, OFFICIAL_SIZES
from pcl_clora.data.readers.modelnet_txt import TextEntry, read_entries, read_text_classes
from pcl_clora.io import DataError, read_points


def is_text(root: Path) -> bool:
    """Say whether a folder looks like this layout."""
    return any((root / f"modelnet40_{name}.txt").is_file() for name in ("train", "test", "shape_names"))


def describe_text(root: Path) -> RootInfo:
    """Read lists and class names."""
    lists = [split for split in SPLITS if (root / f"modelnet40_{split}.txt").is_file()]
    sizes = {split: len(read_entries(root, split)) for split in lists}
    return RootInfo(str(root), "modelnet40_txt", read_text_classes(root), sizes)


def check_text(root: Path) -> Iterator[Finding]:
    """Check lists, names, and every listed file whole."""
    try:
        names = read_text_classes(root)
    except DataError as error:
        yield problem(error)
        return
    splits: dict[str, list[TextEntry]] = {}
    for split in SPLITS:
        try:
            splits[split] = read_entries(root, split)
        except DataError as error:
            yield problem(error)
    digests: dict[str, list[tuple[str, bytes]]] = {}
    rows: dict[Path, int] = {}
    for split, entries in splits.items():
        yield from _check_list(root, split, entries, names)
        digests[split] = []
        for entry in entries:
            yield from _check_file(entry, rows)
            if entry.file in rows:
                digests[split].append((str(entry.file), digest_of_file(entry.file)))
    yield from _check_shared_ids(root, splits)
    yield from duplicates(digests)
    if rows and (few := min(rows, key=lambda file: rows[file])) and rows[few] < 8192:
        yield Finding(
            "info",
            str(few),
            f"the shortest file has {rows[few]} rows, official ones 10,000; set data.num_points to no more.",
        )
    labels = {
        split: np.array([names.index(one.class_name) for one in entries if one.class_name in names])
        for split, entries in splits.items()
    }
    yield from class_balance(str(root), names, labels)
    yield from _compare_sizes(root, splits)


def _check_list(
    root: Path, split: str, entries: list[TextEntry], names: tuple[str, ...]
) -> Iterator[Finding]:
    listing = root / f"modelnet40_{split}.txt"
    unknown = [entry.id for entry in entries if entry.class_name not in names]
    if unknown:
        yield Finding(
            "error",
            str(listing),
            f"{len(unknown)} ids are of no class in modelnet40_shape_names.txt, the first is {unknown[0]!r}, "
            "expected <class>_<number>; mend the list or complete the names.",
        )
    twice = [name for name, count in Counter(entry.id for entry in entries).items() if count > 1]
    if twice:
        message = f"{len(twice)} ids are listed twice, the first is {twice[0]!r}; remove the second ones."
        yield Finding("error", str(listing), message)


def _check_file(entry: TextEntry, rows: dict[Path, int]) -> Iterator[Finding]:
    if not entry.file.is_file():
        elsewhere = next(entry.file.parents[1].glob(f"*/{entry.file.name}"), None)
        if elsewhere is not None:
            message = (
                f"is in folder {elsewhere.parent.name!r}, expected in {entry.class_name!r}; move it there."
            )
            yield Finding("error", str(elsewhere), message)
        else:
            yield Finding(
                "error", str(entry.file), f"the file is missing, the list names {entry.id!r}; {GET_AGAIN}."
            )
        return
    try:
        content = read_points(entry.file)
    except DataError as error:
        yield problem(error)
        return
    extra = content.fields.get("extra", np.empty((0, 0)))
    if extra.shape[1] != 3:
        yield Finding(
            "warning",
            str(entry.file),
            f"has {3 + extra.shape[1]} columns, expected 6 (x y z and a normal); {GET_AGAIN}.",
        )
    rows[entry.file] = len(content.points)


def _check_shared_ids(root: Path, splits: dict[str, list[TextEntry]]) -> Iterator[Finding]:
    ids = [{entry.id for entry in entries} for entries in splits.values()]
    both = sorted(set.intersection(*ids)) if len(ids) == 2 else []
    if both:
        yield Finding(
            "error",
            str(root / "modelnet40_test.txt"),
            f"{len(both)} ids are in the lists of train and test, the first is {both[0]!r}, expected in one; "
            "take the official lists.",
        )


def _compare_sizes(root: Path, splits: dict[str, list[TextEntry]]) -> Iterator[Finding]:
    sizes, official = {name: len(group) for name, group in splits.items()}, OFFICIAL_SIZES["modelnet40_txt"]
    if sizes and sizes != official:
        held, expected = (
            ", ".join(f"{n} {split}" for split, n in some.items()) for some in (sizes, official)
        )
        yield Finding(
            "info",
            str(root),
            f"lists {held}, the official release {expected}; name the difference beside results.",
        )
