"""Clouds with part labels: their settings, and the data set that both layouts of ShapeNetPart become."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.random import RandomState
from pydantic import PositiveInt
from torch import Tensor

from pcl_clora.data.config import DataConfig
from pcl_clora.data.dataset import Batch, Sample, stack_samples
from pcl_clora.data.input_rule import InputRule
from pcl_clora.data.loader import derive_seed
from pcl_clora.data.paper_sampling import draw_with_replacement
from pcl_clora.data.part_taxonomy import PartTaxonomy
from pcl_clora.errors import UserIndexError
from pcl_clora.io import DataError

PART_SPLITS = ("train", "val", "test")

Parts = tuple[str, ...]


class PartConfig(DataConfig):
    """Settings of a data set with part labels.

    sampling=stored gives every cloud the same points each time: all of them where it has as many as wanted,
    else a choice decided by its name, filled up with copies where it has too few. sampling=paper draws with
    replacement as the published code does, in training and test, from sampling_seed.
    """

    paper_draws: ClassVar[Literal["unknown", "order", "in_reader"]] = "in_reader"
    cloud_naming: ClassVar[Literal["stem", "file"]] = "file"  # see `InputRule.name_of`

    num_points: PositiveInt = 2048  # N, points of a cloud that the model sees
    taxonomy: str = ""  # yaml file of categories and parts; empty = what the folder says
    train_on: Literal["trainval", "train"] = (
        "trainval"  # "train" keeps the val split for select=validation; published code trains on both
    )
    normalize: bool = True  # move and scale every whole cloud into the unit sphere

    def input_rule(self) -> InputRule:
        """Return the rule: the whole cloud is moved and scaled, then its points are drawn by its name."""
        return self.make_rule(
            frame="unit_sphere" if self.normalize else "file",
            cut="random",
            draw=("parts",),
            naming=self.cloud_naming,
            repeat=True,
        )

    @property
    def has_validation(self) -> bool:
        """Whether the data set has a validation split of its own that is not trained on."""
        return self.train_on == "train"


@dataclass(frozen=True)
class PartCloud:
    """One whole cloud.

    Attributes:
        points: (n, 3), float32, or float64 as a file says it.
        labels: (n,), int64, part of each point.
        category: whose parts these are.
        path: where it comes from.
        name: decides the choice of points; the same on every machine.
    """

    points: np.ndarray
    labels: np.ndarray
    category: int
    path: str
    name: str


def wanted_splits(config: PartConfig, split: str) -> tuple[str, ...]:
    """Say which official splits make up a split of a run."""
    if split == "train" and config.train_on == "trainval":
        return ("train", "val")
    return (split,)


def check_labels(labels: np.ndarray, category: int, taxonomy: PartTaxonomy, place: str) -> None:
    """Check that the labels of a cloud are parts of its category.

    Raises:
        DataError: naming the first label that is not.
    """
    allowed = taxonomy.ids[category]
    bad = np.flatnonzero(~np.isin(labels, allowed))
    if bad.size and np.isin(labels - 1, allowed).all():
        raise DataError(
            place,
            f"the part labels go from {labels.min()} to {labels.max()}, so they seem to start at 1; expected "
            f"{', '.join(map(str, allowed))}, the parts of {taxonomy.categories[category]}",
            "subtract 1 from the labels of every file",
        )
    if bad.size:
        raise DataError(
            place,
            f"part label {labels[bad[0]]} at point {bad[0]} ({bad.size} such points), expected one of "
            f"{', '.join(map(str, allowed))}, the parts of {taxonomy.categories[category]}",
            "name the right data.taxonomy, or get the file again",
        )


class PartShapes:
    """Whole clouds in memory, of which every sample gives `read_points` points with their labels.

    Args:
        config: what to give.
        taxonomy: categories and parts.
        clouds: all clouds of the split.
    """

    def __init__(self, config: PartConfig, taxonomy: PartTaxonomy, clouds: Sequence[PartCloud]) -> None:
        self.config = config
        self.taxonomy = taxonomy
        self.class_names = taxonomy.categories
        self.labels = torch.tensor([cloud.category for cloud in clouds], dtype=torch.int64)
        self._rule = config.input_rule()
        self._clouds = [replace(cloud, points=self._rule.place(cloud.points).numpy()) for cloud in clouds]
        self._epoch = 0

    def __len__(self) -> int:
        return len(self._clouds)

    def __getitem__(self, index: int) -> Sample:
        if not -len(self) <= index < len(self):
            raise UserIndexError(f"index {index} is out of range: the data set has {len(self)} samples.")
        index %= len(self)
        if self.config.sampling == "paper":
            key = derive_seed("parts", self.config.sampling_seed, self._epoch, index) % 2**32
            return self.draw(index, RandomState(key))
        cloud = self._clouds[index]
        return self._sample(index, self._rule.choose(len(cloud.labels), cloud.name))

    def draw(self, index: int, state: RandomState) -> Sample:
        """Read a sample as published code does: points drawn with replacement.

        Args:
            index: which sample.
            state: what the draws are taken from; moves on as numpy.random does in the published loop.
        """
        size = len(self._clouds[index].labels)
        return self._sample(index, draw_with_replacement(size, self.config.read_points, state))

    def set_epoch(self, epoch: int) -> None:
        """Choose the draws of sampling=paper; sampling=stored has none."""
        self._epoch = epoch

    def read_batch(self, indices: Sequence[int] | Tensor) -> Batch:
        """Read several samples into one batch, in the order given."""
        return stack_samples([self[index] for index in torch.as_tensor(indices).tolist()])

    def _sample(self, index: int, choice: np.ndarray) -> Sample:
        cloud = self._clouds[index]
        return Sample(
            points=torch.from_numpy(cloud.points[choice]),
            label=cloud.category,
            index=index,
            path=cloud.path,
            part_labels=torch.from_numpy(cloud.labels[choice].astype(np.int64)),
            category=cloud.category,
        )
