"""How well a fitted model does on clouds that it had not seen, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pcl_clora.data import Batch, PartTaxonomy
from pcl_clora.engine import SegmentationMeter
from pcl_clora.engine.tasks import Output, as_logits
from pcl_clora.io import finite

RESAMPLES = 2000  # of the bootstrap


class JudgedParts:
    """Collects what models say of labelled clouds, over all folds.

    Args:
        taxonomy: categories and parts.
    """

    def __init__(self, taxonomy: PartTaxonomy) -> None:
        self._taxonomy, self._meter = taxonomy, SegmentationMeter(taxonomy)
        self._ious: list[Tensor] = []

    def watch(self, output: Output, batch: Batch) -> None:
        """Count a batch of test, as `Trainer` calls it."""
        assert batch.part_labels is not None
        assert batch.category is not None
        given = (as_logits(output).cpu(), batch.part_labels.cpu(), batch.category.cpu())
        self._meter.update(*given)
        self._ious.append(self._meter.cloud_iou(*given))

    def content(self, seed: int) -> dict[str, Any]:
        """Return the numbers of fit.json: mean IoU of the clouds, its interval, and every part.

        Args:
            seed: of the bootstrap.
        """
        metrics, ious = self._meter.metrics(), torch.cat(self._ious)
        low, high = bootstrap(ious, seed)
        confusion = metrics.confusion
        return {
            "task": "part_segmentation",
            "miou": float(ious.mean()),
            "interval": [low, high],
            "judged": len(ious),
            "point_accuracy": metrics.accuracy,
            "per_part": finite(dict(zip(self._taxonomy.part_names, metrics.per_part, strict=True))),
            "points": dict(zip(self._taxonomy.part_names, confusion.sum(dim=1).tolist(), strict=True)),
            "confusion": confusion.tolist(),
        }


class JudgedClasses:
    """Adds up the confusion of clouds, over all folds."""

    def __init__(self) -> None:
        self.confusion: list[list[int]] = []

    def add(self, confusion: Sequence[Sequence[int]]) -> None:
        """Count what a model said of its test clouds."""
        known = self.confusion or [[0] * len(row) for row in confusion]
        self.confusion = [
            [a + b for a, b in zip(*rows, strict=True)] for rows in zip(known, confusion, strict=True)
        ]

    @property
    def right(self) -> int:
        """Clouds that were right."""
        return sum(row[at] for at, row in enumerate(self.confusion))

    @property
    def judged(self) -> int:
        """Clouds that were judged."""
        return sum(map(sum, self.confusion))

    def content(self) -> dict[str, Any]:
        """Return the numbers of fit.json."""
        return {
            "task": "classification",
            "accuracy": self.right / self.judged,
            "interval": list(wilson(self.right, self.judged)),
            "right": self.right,
            "judged": self.judged,
            "confusion": self.confusion,
        }


def told(content: Mapping[str, Any]) -> str:
    """Say the result in a sentence without a full stop."""
    low, high = (100 * each for each in content["interval"])
    sure = f"(95 %: {low:.1f} to {high:.1f} %)"
    if content["task"] == "classification":
        right, judged = content["right"], content["judged"]
        return f"{right} of {judged} right: {100 * right / judged:.1f} % {sure}"
    return f"mean IoU of {content['judged']} clouds: {100 * content['miou']:.1f} % {sure}"


def score_key(content: Mapping[str, Any]) -> str:
    """Name the number that counts: "accuracy" or "miou"."""
    return "accuracy" if content["task"] == "classification" else "miou"


Watch = Callable[[Output, Batch], None]


def wilson(right: int, judged: int, z: float = 1.959963985) -> tuple[float, float]:
    """Return the confidence interval of a share.

    Args:
        right: how many of
        judged: were right.
        z: quantile of the normal distribution; 95 % by default.

    Source: Wilson, Probable Inference, JASA 1927.
    """
    share, square = right / judged, z * z / judged
    middle = (share + square / 2) / (1 + square)
    half = z * math.sqrt(share * (1 - share) / judged + square / (4 * judged)) / (1 + square)
    return max(0.0, middle - half), min(1.0, middle + half)


def bootstrap(values: Tensor, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % interval of the mean of some values, by drawing them again.

    Args:
        values: (n,), of clouds, which are drawn whole.
        seed: of the draws.

    Source: Efron, Bootstrap methods, Annals of Statistics 1979: percentiles of 2,000 resamples.
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(values), (RESAMPLES, len(values)), generator=generator)
    means = values.double()[drawn].mean(dim=1)
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return low, high
