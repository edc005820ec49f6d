"""What data sets of a user's own files share: one file a cloud, splits that folders or a seed decide."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
from pydantic import Field, NonNegativeInt, model_validator

from pcl_clora.data.config import DataConfig
from pcl_clora.data.dataset import SPLITS, check_split, split_folds, split_validation
from pcl_clora.data.readers.folder_index import FolderIndex
from pcl_clora.errors import UserTypeError, UserValueError
from pcl_clora.io import DataError


class SortedFilesConfig(DataConfig):
    """Settings of such a data set; a subclass says which files there are.

    A cloud with more points than wanted gives a random choice of them, a mesh points uniform over its area;
    both are decided by the file's name and the seed.
    """

    reads_below: ClassVar[bool] = True

    test_fraction: float = Field(default=0.2, gt=0.0, lt=1.0)  # share of test where the files do not say it
    seed: NonNegativeInt = 0  # decides that split and the points
    folds: NonNegativeInt = 0  # parts of a cross-validation in place of that split; 0 = none
    fold: NonNegativeInt = 0  # the part that is test, below folds
    normalize: bool = True  # move and scale every cloud into the unit sphere
    repeat: bool = (
        False  # fill up a cloud that has too few points with copies of its points; else it is an error
    )
    keep: bool = True  # keep clouds in memory once they are read

    def left_out(self) -> frozenset[str]:
        """Leave the cross-validation out where there is none."""
        return super().left_out() | self.at_default("folds", "fold")

    @model_validator(mode="after")
    def _check_folds(self) -> SortedFilesConfig:
        if self.folds == 1 or (self.folds and self.fold >= self.folds) or (self.fold and not self.folds):
            raise UserValueError(
                f"fold={self.fold}, folds={self.folds}: give folds=2 or more and a fold below it, or neither."
            )
        return self

    def index(self) -> FolderIndex:
        """Find classes, splits and files by their names; nothing is opened.

        Raises:
            DataError: if the files are missing or stand in no known arrangement.
        """
        raise UserTypeError(f"{type(self).__name__} must say which files there are")

    @property
    def has_validation(self) -> bool:
        """Whether the files have a split of their own for validation."""
        return Path(self.root).exists() and "val" in self.index().files

    def for_one_pass(self) -> DataConfig:
        """Return these settings without keeping clouds in memory."""
        return self.model_copy(update={"keep": False})


def entries_of_split(config: SortedFilesConfig, index: FolderIndex, split: str) -> list[tuple[Path, int]]:
    """Choose the files of a split: as folders or lists say it, or by the seed where they say nothing.

    Args:
        config: with the seed, the share of test and the folds.
        index: what there is.
        split: "train", "test" or "val".

    Raises:
        DataError: if it is empty, or the files have splits and folds are asked for.
    """
    entries = index.files.get(split if split == "val" else check_split(split), [])
    if index.layout == "class":
        entries = _drawn(config, index.files["all"], split)
    elif config.folds:
        raise DataError(
            config.root,
            f"has splits of its own, so folds={config.folds} cannot divide it",
            "set data.folds=0, or give files without splits",
        )
    if not entries:
        raise DataError(config.root, f"holds no files of the split {split!r}", "add them, see data/README.md")
    return entries


def _drawn(
    config: SortedFilesConfig, files: Sequence[tuple[Path, int]], split: str
) -> list[tuple[Path, int]]:
    labels = torch.tensor([label for _, label in files])
    if config.folds:
        parts = split_folds(labels, config.folds, config.seed)[config.fold]
    else:
        parts = split_validation(labels, config.test_fraction, config.seed)
    return [files[at] for at in parts[SPLITS.index(split)].tolist()]
