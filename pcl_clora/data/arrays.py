"""Clouds that a program holds in memory, as a data set: what the estimators train on."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from numpy.typing import NDArray

from pcl_clora.config import ConfigError
from pcl_clora.data.config import DataConfig
from pcl_clora.data.dataset import PointDataset, Sample
from pcl_clora.data.input_rule import InputRule
from pcl_clora.data.part_taxonomy import CATEGORY, PartTaxonomy
from pcl_clora.data.readers.files import FileDataset


class ArraysConfig(DataConfig):
    """Clouds of any size, which lie in the memory of this process under a number, see `held_clouds`."""

    reads_files: ClassVar[bool] = False

    name: Literal["arrays"] = "arrays"
    number: int = 0  # of the clouds

    def input_rule(self) -> InputRule:
        """Return the rule: points drawn by the place of the cloud, and then moved and scaled."""
        return self.make_rule(centre_on="cut", cut="random", draw=("arrays",), repeat=True)


@dataclass(frozen=True)
class HeldClouds:
    """Clouds with their labels.

    Attributes:
        clouds: each (N, 3), finite.
        labels: of every cloud its class, or None where its points have labels.
        names: of the classes, or of the parts.
        part_labels: (N,), int64, for every cloud; None in classification.
    """

    clouds: Sequence[NDArray[Any]]
    labels: Sequence[int] | None
    names: tuple[str, ...]
    part_labels: Sequence[NDArray[Any]] | None = None

    @property
    def taxonomy(self) -> PartTaxonomy:
        """One category with all parts."""
        return PartTaxonomy((CATEGORY,), (tuple(range(len(self.names))),), self.names)


_held: dict[int, HeldClouds] = {}
_numbers = itertools.count(1)


@contextmanager
def held_clouds(clouds: HeldClouds) -> Iterator[int]:
    """Hold clouds for the length of a block; yields the number by which `ArraysConfig` finds them."""
    number = next(_numbers)
    _held[number] = clouds
    try:
        yield number
    finally:
        del _held[number]


class ArrayClouds(FileDataset):
    """Clouds in memory, cut to the points that a model is trained on.

    Args:
        config: whose clouds.
        held: themselves.
        count: how many of them.
    """

    def __init__(self, config: ArraysConfig, held: HeldClouds, count: int) -> None:
        self._held, self._rule = held, config.input_rule()
        labels = [0] * count if held.labels is None else list(held.labels)[:count]
        names = held.names if held.part_labels is None else (CATEGORY,)
        super().__init__(
            [(Path(f"cloud {k}"), int(label)) for k, label in enumerate(labels)], names, keep=True
        )

    def read_file(self, file: Path, label: int, index: int) -> Sample:
        """Cut one cloud."""
        points, kept = self._rule.read(self._held.clouds[index], name=file.name, file=file)
        if self._held.part_labels is None:
            return Sample(points, label, index, file.name)
        parts = torch.from_numpy(self._held.part_labels[index])[torch.from_numpy(kept)]
        return Sample(points, label, index, file.name, part_labels=parts, category=0)


class ArrayParts(ArrayClouds):
    """Clouds whose points have labels."""

    @property
    def taxonomy(self) -> PartTaxonomy:
        """One category with all parts."""
        return self._held.taxonomy


def make_arrays(config: ArraysConfig, split: str) -> PointDataset:
    """Make a data set of held clouds; as "test" a batch of them, since a program tests for itself.

    Raises:
        ConfigError: if there are none of this number.
    """
    held = _held.get(config.number)
    if held is None:
        raise ConfigError(
            "data.name=arrays is for clouds in the memory of a program, which PointClassifier and "
            "PointSegmenter put there; files are read by data.name=folder."
        )
    count = len(held.clouds) if split == "train" else min(len(held.clouds), 8)
    return (ArrayClouds if held.part_labels is None else ArrayParts)(config, held, count)
