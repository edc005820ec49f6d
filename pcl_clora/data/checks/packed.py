"""Check a folder of packed data: index, sizes, digests, and every value."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pcl_clora.data.checks.finding import Finding, RootInfo, class_balance, digest_of, duplicates, problem
from pcl_clora.data.config import DataConfig
from pcl_clora.data.packed.format import (
    AGAIN,
    INDEX,
    PackIndex,
    ShardEntry,
    SplitEntry,
    map_shard,
    read_index,
)
from pcl_clora.io import DataError, sha256_file


def is_packed(root: Path) -> bool:
    """Say whether a folder looks like packed data, finished or not."""
    return (root / INDEX).is_file() or any(root.glob("*-[0-9][0-9][0-9][0-9][0-9].safetensors"))


def describe_packed(root: Path) -> RootInfo:
    """Read the index."""
    index = read_index(root)
    return RootInfo(
        str(root),
        "packed",
        index.class_names,
        {split: entry.num_clouds for split, entry in index.splits.items()},
        min(entry.min_points for entry in index.splits.values()),
        (f"made of {index.source.get('name', 'unknown data')}",),
    )


def check_packed(root: Path, config: DataConfig | None) -> Iterator[Finding]:
    """Check that every shard is the one that was written, and that what was written makes sense."""
    del config  # all of it is checked: the digests are there for that
    try:
        index = read_index(root)
    except DataError as error:
        yield problem(error)
        return
    labels: dict[str, np.ndarray] = {}
    digests: dict[str, list[tuple[str, bytes]]] = {}
    for split, entry in index.splits.items():
        digests[split], found = [], []
        for shard in entry.shards:
            try:
                arrays = _open(root / shard.file, shard, entry)
            except DataError as error:
                yield problem(error)
                continue
            yield from _check_values(root / shard.file, arrays, index)
            found.append(np.array(arrays["label"]))
            digests[split] += _digests(root / shard.file, arrays)
        labels[split] = np.concatenate(found) if found else np.empty(0, dtype=np.int64)
        if len(found) == len(entry.shards):
            yield from _check_counts(root / INDEX, split, entry, labels[split])
    yield from duplicates(digests)
    yield from class_balance(str(root), index.class_names, labels)
    listed = {shard.file for entry in index.splits.values() for shard in entry.shards}
    for file in sorted(root.glob("*.safetensors")):
        if file.name not in listed:
            yield Finding("warning", str(file), f"{INDEX} does not list this file; remove it.")


def _open(file: Path, shard: ShardEntry, entry: SplitEntry) -> dict[str, np.ndarray]:
    if not file.is_file():
        raise DataError(file, f"the file is missing, {INDEX} lists it", AGAIN)
    size = file.stat().st_size
    if size != shard.bytes:
        raise DataError(file, f"has {size} bytes, {INDEX} says {shard.bytes}", AGAIN)
    digest = sha256_file(file)
    if digest != shard.sha256:
        raise DataError(file, f"has SHA-256 {digest}, {INDEX} says {shard.sha256}; it is damaged", AGAIN)
    arrays = map_shard(file, entry.fields)
    held = (len(arrays["label"]), len(arrays["points"]))
    if held != (shard.num_clouds, shard.num_points):
        said = (shard.num_clouds, shard.num_points)
        raise DataError(file, f"holds {held} clouds and points, {INDEX} says {said}", AGAIN)
    return arrays


def _check_values(file: Path, arrays: dict[str, np.ndarray], index: PackIndex) -> Iterator[Finding]:
    bad = np.flatnonzero(~np.isfinite(arrays["points"]).all(axis=1))
    if bad.size:
        row = int(np.searchsorted(arrays["offsets"], bad[0], side="right")) - 1
        message = f"{len(bad)} points hold values that are not finite, the first in cloud {row}; {AGAIN}."
        yield Finding("error", str(file), message)
    labels, count = arrays["label"], len(index.class_names)
    wrong = np.flatnonzero((labels < 0) | (labels >= count))
    if wrong.size:
        message = f"cloud {wrong[0]} has label {labels[wrong[0]]}, expected 0..{count - 1}; {AGAIN}."
        yield Finding("error", str(file), message)
    taxonomy = index.part_taxonomy()
    if taxonomy is None or "part_labels" not in arrays or "category" not in arrays:
        return
    category = arrays["category"]
    if (category < 0).any() or (category >= taxonomy.num_categories).any():
        yield Finding("error", str(file), f"has categories beyond 0..{taxonomy.num_categories - 1}; {AGAIN}.")
        return
    allowed = taxonomy.mask().numpy()
    parts = arrays["part_labels"].astype(np.int64)
    inside = (parts >= 0) & (parts < taxonomy.num_parts)
    owner = np.repeat(category, np.diff(arrays["offsets"]))
    stray = np.flatnonzero(~inside | ~allowed[owner, np.where(inside, parts, 0)])
    if stray.size:
        name = taxonomy.categories[owner[stray[0]]]
        message = (
            f"{len(stray)} points have parts of another category, the first is {parts[stray[0]]} of {name}"
        )
        yield Finding("error", str(file), f"{message}; {AGAIN}.")


def _digests(file: Path, arrays: dict[str, np.ndarray]) -> list[tuple[str, bytes]]:
    offsets, points = arrays["offsets"], arrays["points"]
    return [
        (f"{file}#{row}", digest_of(points[offsets[row] : offsets[row + 1]]))
        for row in range(len(offsets) - 1)
    ]


def _check_counts(file: Path, split: str, entry: SplitEntry, labels: np.ndarray) -> Iterator[Finding]:
    counts = np.bincount(labels[labels >= 0], minlength=len(entry.class_counts)).tolist()
    if len(labels) != entry.num_clouds or counts != list(entry.class_counts):
        message = f"says {entry.num_clouds} clouds of {split}, the shards hold {len(labels)}"
        yield Finding("error", str(file), f"{message} or other labels; {AGAIN}.")
