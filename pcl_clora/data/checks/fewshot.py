"""Check few-shot data: a folder of official pickles, and whether folds can be made out of a data set."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pcl_clora.data.checks.finding import Finding, RootInfo, digest_of, duplicates, problem
from pcl_clora.data.config import DataConfig
from pcl_clora.data.dataset import SPLITS
from pcl_clora.data.folds import FewshotConfig, FewshotFold
from pcl_clora.data.readers.modelnet_fewshot import ModelNetFewshotConfig, fewshot_file, read_fewshot
from pcl_clora.io import DataError

TEST_PER_CLASS = 20  # test clouds a class of the official folds
_SETTING = re.compile(r"(\d+)way_?(\d+)shot")


def is_fewshot(root: Path) -> bool:
    """Say whether a folder looks like ModelNetFewshot."""
    return any(_pickles(root))


def _pickles(root: Path) -> list[tuple[int, int, Path]]:
    """List (ways, shots, file) of all folds, in a natural order."""
    found = []
    for folder in root.iterdir():
        if (match := _SETTING.fullmatch(folder.name)) and folder.is_dir():
            ways, shots = int(match[1]), int(match[2])
            found += [(ways, shots, file) for file in folder.glob("*.pkl") if file.stem.isdecimal()]
    return sorted(found, key=lambda one: (one[0], one[1], int(one[2].stem)))


def describe_fewshot(root: Path) -> RootInfo:
    """Describe the first fold; all settings that are there are the variants."""
    pickles = _pickles(root)
    ways, shots, first = pickles[0]
    clouds = {split: read_fewshot(first, split, ways) for split in SPLITS}
    folders = dict.fromkeys(file.parent.name for _, _, file in pickles)
    return RootInfo(
        str(root),
        "modelnet_fewshot",
        tuple(f"class_{number}" for number in range(ways)),
        {split: len(read.labels) for split, read in clouds.items()},
        min(read.points.shape[1] for read in clouds.values()),
        tuple(folders),
        {"ways": ways, "shots": shots, "fold": int(first.stem)},
    )


def check_fewshot(root: Path, config: DataConfig | None) -> Iterator[Finding]:
    """Check every fold, or that of a config: contents, labels, sizes, clouds that are in both parts."""
    if isinstance(config, ModelNetFewshotConfig):
        try:
            pickles = [(config.ways, config.shots, fewshot_file(config))]
        except DataError as error:
            yield problem(error)
            return
    else:
        pickles = _pickles(root)
    for ways, shots, file in pickles:
        digests: dict[str, list[tuple[str, bytes]]] = {}
        for split, expected in zip(SPLITS, (shots, TEST_PER_CLASS), strict=True):
            try:
                read = read_fewshot(file, split, ways)
            except DataError as error:
                yield problem(error)
                continue
            sizes = np.bincount(read.labels, minlength=ways).tolist()
            if any(size != expected for size in sizes):
                message = (
                    f"{split} has {sizes} clouds of its classes, expected {expected} of each; get it again."
                )
                yield Finding("warning", str(file), message)
            places = [f"{file}#{split}/{number}" for number in range(len(read.points))]
            digests[split] = list(zip(places, map(digest_of, read.points), strict=True))
        yield from duplicates(digests)


def check_fold(config: FewshotConfig) -> Iterator[Finding]:
    """Check whether a fold can be made; its source is checked by the caller."""
    for split in SPLITS:
        try:
            FewshotFold(config, split)
        except DataError as error:
            yield problem(error)
            return
