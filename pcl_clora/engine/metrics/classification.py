"""Classification metrics, all from one int64 confusion matrix, so that several processes simply add up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from pcl_clora.engine.metrics.calibration import Reliability
from pcl_clora.errors import UserValueError
from pcl_clora.io import finite


class ConfusionMatrix:
    """Counts of (true class, predicted class) over everything seen so far.

    Args:
        num_classes: C.
        device: where the counts live; updates stay there and need no synchronisation.

    Attributes:
        counts: (C, C), int64; rows are true classes, columns predictions.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        self.num_classes = num_classes
        self.counts = torch.zeros(num_classes, num_classes, dtype=torch.int64, device=device)

    def update(self, predicted: Tensor, label: Tensor) -> None:
        """Count a batch.

        Args:
            predicted: (B,) int64 classes, or (B, C) logits of which the largest counts.
            label: (B,) int64, 0 <= label < C.
        """
        if predicted.dim() == label.dim() + 1:
            predicted = predicted.argmax(dim=-1)
        cell = label.to(self.counts.device) * self.num_classes + predicted.to(self.counts.device)
        flat = torch.zeros(self.num_classes**2, dtype=torch.int64, device=self.counts.device)
        flat.index_add_(0, cell.flatten(), torch.ones_like(cell).flatten())
        self.counts += flat.view_as(self.counts)

    def metrics(self) -> ClassificationMetrics:
        """Compute the metrics of what was counted."""
        return metrics_from_counts(self.counts)

    def state(self) -> Mapping[str, Tensor]:
        """Return the counts by name; the tensor itself."""
        return {"counts": self.counts}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over counts."""
        self.counts.copy_(state["counts"])

    def reset(self) -> None:
        """Forget everything."""
        self.counts.zero_()


@dataclass(frozen=True)
class ClassificationMetrics:
    """Metrics of one evaluation, all in [0, 1].

    Attributes:
        oa: overall accuracy, the share of clouds that are right.
        macc: mean class accuracy, the mean recall over the classes that occur.
        per_class: recall of every class; nan where a class does not occur.
        iou: intersection over union of every class; nan where it neither occurs nor is predicted.
        confusion: (C, C) int64 counts on the CPU, rows true, columns predicted.
        reliability: how confidences and accuracies of the clouds agree, only on request.
        loss: mean cross entropy, nan if it was not computed.
        logits: (n, C) float32 in the order of `indices`, only on request.
        indices: (n,) int64 positions in the data set, only on request.
    """

    oa: float
    macc: float
    per_class: tuple[float, ...]
    iou: tuple[float, ...]
    confusion: Tensor
    reliability: Reliability | None = None
    loss: float = float("nan")
    logits: Tensor | None = None
    indices: Tensor | None = None

    @property
    def score(self) -> float:
        """The number that chooses an epoch: overall accuracy."""
        return self.oa

    @property
    def num_clouds(self) -> int:
        """How many clouds were counted."""
        return int(self.confusion.sum())

    def summary(self) -> dict[str, float]:
        """Return oa, macc and loss."""
        return {"oa": self.oa, "macc": self.macc, "loss": self.loss}

    def as_json(self, class_names: Sequence[str]) -> dict[str, Any]:
        """Return everything but the logits in json types; what is not defined becomes None."""
        recall = dict(zip(class_names, self.per_class, strict=True))
        content = {**self.summary(), "per_class": recall, "confusion": self.confusion.tolist()}
        if self.reliability is not None:
            content["reliability"] = self.reliability.as_json()
        return cast(dict[str, Any], finite(content))


def metrics_from_counts(counts: Tensor) -> ClassificationMetrics:
    """Compute the metrics of a confusion matrix.

    Args:
        counts: (C, C), int64, rows true classes, columns predictions.

    Raises:
        ValueError: if nothing was counted.
    """
    counts = counts.detach().cpu()
    if int(counts.sum()) == 0:
        raise UserValueError("The confusion matrix is empty: no cloud was evaluated; is the split empty?")
    exact = counts.double()
    hit, seen, said = exact.diagonal(), exact.sum(dim=1), exact.sum(dim=0)
    recall = hit / seen  # 0 / 0 = nan: a class that does not occur
    iou = hit / (seen + said - hit)
    return ClassificationMetrics(
        oa=float(hit.sum() / exact.sum()),
        macc=float(recall.nanmean()),
        per_class=tuple(recall.tolist()),
        iou=tuple(iou.tolist()),
        confusion=counts,
    )
