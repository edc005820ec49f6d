"""Check folders with part labels, in the text layout and in the hdf5 layout of ShapeNetPart."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from pcl_clora.data.checks.finding import (
    Finding,
    RootInfo,
    class_balance,
    digest_of,
    duplicates,
    problem,
)
from pcl_clora.data.config import DataConfig
from pcl_clora.data.part_taxonomy import SHAPENETPART, SHAPENETPART_SIZES, PartTaxonomy
from pcl_clora.data.readers.shapenetpart import PART_SPLITS, PartCloud, PartConfig
from pcl_clora.data.readers.shapenetpart_hdf5 import (
    list_part_files,
    read_hdf5_taxonomy,
    read_part_hdf5,
    read_part_sizes,
)
from pcl_clora.data.readers.shapenetpart_txt import (
    CATEGORY_LIST,
    PartEntry,
    read_categories,
    read_part_file,
    read_split,
    taxonomy_of_folder,
)
from pcl_clora.io import DataError
from pcl_clora.io.text import line_of


def is_part_text(root: Path) -> bool:
    """Say whether a folder looks like the text layout."""
    return (root / CATEGORY_LIST).is_file() and (root / "train_test_split").is_dir()


def is_part_hdf5(root: Path) -> bool:
    """Say whether a folder looks like the hdf5 layout."""
    return any((root / f"{split}_hdf5_file_list.txt").is_file() for split in PART_SPLITS)


def describe_part_text(root: Path) -> RootInfo:
    """Read lists and categories."""
    taxonomy = taxonomy_of_folder(root)
    sizes = {split: len(read_split(root, split, taxonomy)) for split in PART_SPLITS}
    return RootInfo(str(root), "shapenetpart_txt", taxonomy.categories, sizes)


def describe_part_hdf5(root: Path) -> RootInfo:
    """Read lists, categories and sizes."""
    taxonomy = read_hdf5_taxonomy(root)
    found = {split: [read_part_sizes(file) for file in list_part_files(root, split)] for split in PART_SPLITS}
    return RootInfo(
        str(root),
        "shapenetpart_hdf5",
        taxonomy.categories,
        {split: sum(shapes for shapes, _ in sizes) for split, sizes in found.items()},
        min((points for sizes in found.values() for _, points in sizes), default=0),
    )


def check_part_text(root: Path, config: DataConfig | None = None) -> Iterator[Finding]:
    """Check lists, names and every listed file whole."""
    try:
        taxonomy = taxonomy_of_folder(root, _taxonomy_file(config))
        folders = read_categories(root)
    except DataError as error:
        yield problem(error)
        return
    for folder in folders:
        if not (root / folder).is_dir():
            message = f"the folder of category {folders[folder]} is missing; get it again."
            yield Finding("error", str(root / folder), message)
    clouds: dict[str, list[PartCloud]] = {}
    listed: dict[str, set[str]] = {}
    for split in PART_SPLITS:
        try:
            entries = read_split(root, split, taxonomy)
        except DataError as error:
            yield problem(error)
            continue
        clouds[split], listed[split] = [], {entry.name for entry in entries}
        yield from _read_entries(entries, taxonomy, clouds[split])
    yield from _shared_names(root, listed)
    named = {taxonomy.categories.index(name) for name in folders.values()}
    yield from _check_clouds(root, taxonomy, clouds, named)
    sizes = {split: len(names) for split, names in listed.items()}
    if taxonomy == SHAPENETPART and sizes and sizes != SHAPENETPART_SIZES:
        held, expected = (
            ", ".join(f"{n:,} {split}" for split, n in some.items()) for some in (sizes, SHAPENETPART_SIZES)
        )
        yield Finding(
            "info",
            str(root),
            f"lists {held}, the official release {expected}; name the difference beside results.",
        )


def _read_entries(
    entries: Sequence[PartEntry], taxonomy: PartTaxonomy, clouds: list[PartCloud]
) -> Iterator[Finding]:
    for entry in entries:
        try:
            clouds.append(read_part_file(entry, taxonomy))
        except DataError as error:
            yield problem(error)


def check_part_hdf5(root: Path, config: DataConfig | None = None) -> Iterator[Finding]:
    """Check lists, names and every file whole."""
    try:
        taxonomy = read_hdf5_taxonomy(root, _taxonomy_file(config))
    except DataError as error:
        yield problem(error)
        return
    clouds: dict[str, list[PartCloud]] = {}
    for split in PART_SPLITS:
        try:
            files = list_part_files(root, split)
        except DataError as error:
            yield problem(error)
            continue
        clouds[split] = []
        for file in files:
            for one in read_part_hdf5(file, taxonomy):
                if isinstance(one, DataError):
                    yield problem(one)
                else:
                    clouds[split].append(one)
    yield from _check_clouds(root, taxonomy, clouds, set(range(taxonomy.num_categories)))


def _taxonomy_file(config: DataConfig | None) -> str:
    return config.taxonomy if isinstance(config, PartConfig) else ""


def _check_clouds(
    root: Path, taxonomy: PartTaxonomy, clouds: dict[str, list[PartCloud]], named: set[int]
) -> Iterator[Finding]:
    """Find clouds without extent, clouds in two splits, and categories or parts that no cloud has.

    Args:
        root: the folder.
        taxonomy: its categories.
        clouds: split -> clouds that could be read.
        named: categories that the folder itself says it has.
    """
    for cloud in (one for group in clouds.values() for one in group):
        if not np.ptp(cloud.points, axis=0).any():
            yield Finding("error", cloud.path, "all points coincide; get it again, see data/README.md.")
    digests = {
        split: [(cloud.path, digest_of(cloud.points)) for cloud in group] for split, group in clouds.items()
    }
    if "train" in digests:
        digests["train"] += digests.pop("val", [])
    yield from duplicates(digests)
    labels = {split: np.array([cloud.category for cloud in group]) for split, group in clouds.items()}
    yield from class_balance(str(root), taxonomy.categories, labels)
    present = {cloud.category for group in clouds.values() for cloud in group}
    for category in sorted(named - present):
        message = f"category {taxonomy.categories[category]!r} has no clouds, expected some in every split; "
        yield Finding("error", str(root), message + "add them, or take the category out of the lists.")
    for split, group in clouds.items():
        if not group:
            yield Finding("error", str(root), f"the split {split!r} has no clouds; expected some, add them.")
    seen = np.zeros(taxonomy.num_parts, dtype=bool)
    for cloud in clouds.get("train", []):
        seen[np.unique(cloud.labels)] = True
    never = [taxonomy.part_names[k] for c in sorted(present) for k in taxonomy.ids[c] if not seen[k]]
    if never and clouds.get("train"):
        shown = line_of(never, 8)
        yield Finding("info", str(root), f"{len(never)} parts have no point in train: {shown}.")


def _shared_names(root: Path, listed: dict[str, set[str]]) -> Iterator[Finding]:
    """Find names that two lists have in common."""
    known = list(listed.items())
    for number, (split, names) in enumerate(known):
        for other, more in known[:number]:
            both = sorted(names & more)
            if both:
                yield Finding(
                    "error",
                    str(root / "train_test_split"),
                    f"{len(both)} names are in the lists of {other} and {split}, the first is {both[0]!r}, "
                    "expected in one; take the official lists.",
                )
