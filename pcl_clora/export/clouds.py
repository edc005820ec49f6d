"""The clouds that an exported model is compared on: those of the run's data, or made ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from pcl_clora.config import ConfigError
from pcl_clora.data import PointDataset, build_dataset
from pcl_clora.engine.trained_classes import match_classes
from pcl_clora.export.graph import FromPatches, Inputs
from pcl_clora.io import DataError

if TYPE_CHECKING:
    from pcl_clora.predict.predictor import Predictor


@dataclass(frozen=True)
class Clouds:
    """Clouds as a model sees them.

    Attributes:
        points: (n, N, 3), float32.
        category: (n,), int64; 0 where the model is not told.
        label: class of every cloud (n,), or part of every point (n, N); None of made clouds.
        said: what they are, for people.
    """

    points: Tensor
    category: Tensor
    label: Tensor | None
    said: str

    def inputs(self, module: FromPatches) -> Inputs:
        """Make the inputs of an exported graph."""
        return module.inputs(self.points, self.category)

    def pieces(self, size: int) -> list[Clouds]:
        """Cut them into so many at a time."""
        label = [None] * len(self.points) if self.label is None else torch.split(self.label, size)
        cut = zip(torch.split(self.points, size), torch.split(self.category, size), label, strict=False)
        return [Clouds(*each, self.said) for each in cut]


def take_clouds(predictor: Predictor, split: str, count: int, *, repeat: bool = False) -> Clouds:
    """Take clouds of a run's data, spread over the split; made ones where they are not here.

    Data of other classes than the model's are as good as none.

    Args:
        predictor: of a run, or of an adapter file, which does not know its data.
        split: "train" or "test".
        count: at most.
        repeat: give so many, some of them several times, where there are fewer.
    """
    rule = predictor.rule
    try:
        dataset: PointDataset = build_dataset(predictor.cfg.data, split)
        dataset = match_classes(dataset, predictor.opened.header, predictor.cfg.model.task)
    except (ConfigError, DataError):
        points = torch.randn(count, rule.num_points, 3, generator=torch.Generator().manual_seed(0))
        points = points / points.norm(dim=-1).amax(dim=1)[:, None, None]
        return Clouds(points, torch.zeros(count, dtype=torch.int64), None, f"{count} made clouds")
    chosen = np.linspace(0, len(dataset) - 1, min(count, len(dataset))).astype(int)
    said = f"{len(chosen)} clouds of {split}"
    if repeat:
        chosen = np.resize(chosen, count)
    samples = [dataset[int(index)] for index in chosen]
    seen = [rule.see_sample(sample.points) for sample in samples]
    label = torch.tensor([sample.label for sample in samples])
    if predictor.segments:
        label = torch.stack(
            [_parts(each.part_labels, one.kept) for each, one in zip(samples, seen, strict=True)]
        )
    category = torch.tensor([each.category or 0 for each in samples], dtype=torch.int64)
    return Clouds(torch.stack([one.points for one in seen]), category, label, said)


def _parts(labels: Tensor | None, kept: Tensor | None) -> Tensor:
    assert labels is not None
    return labels if kept is None else labels[kept]
