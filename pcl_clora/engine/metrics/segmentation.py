"""Part segmentation metrics, with the conventions of the published ShapeNetPart evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from pcl_clora.data import PartTaxonomy
from pcl_clora.engine.metrics.calibration import Reliability
from pcl_clora.engine.metrics.classification import ConfusionMatrix
from pcl_clora.errors import UserValueError
from pcl_clora.io import finite


@dataclass(frozen=True)
class SegmentationMetrics:
    """Metrics of one evaluation, all in [0, 1].

    A point is predicted to be the part with the largest logit among the parts of its cloud's category. The
    IoU of a part in a cloud is 1 where neither label nor prediction have it. The IoU of a cloud is the mean
    over the parts of its category.

    Attributes:
        instance_miou: mean over clouds of their IoU.
        class_miou: mean over the categories that occur of the mean over their clouds.
        accuracy: share of the points that are right.
        part_accuracy: mean over the parts that occur of the share of their points that are right.
        per_category: mean IoU of the clouds of every category; nan where none occurs.
        per_part: mean over the category's clouds of the IoU of every part; nan where the category is absent.
        clouds: how many clouds of every category.
        taxonomy: names of categories and parts.
        confusion: (P, P) int64 counts of points on the CPU, rows true parts, columns predicted ones.
        reliability: how confidences and accuracies of the points agree, only on request.
        loss: mean cross entropy of a point over the parts of all categories, nan if it was not computed.
        logits: (n, N, P) float32 in the order of `indices`, only on request.
        indices: (n,) int64 positions in the data set, only on request.
    """

    instance_miou: float
    class_miou: float
    accuracy: float
    part_accuracy: float
    per_category: tuple[float, ...]
    per_part: tuple[float, ...]
    clouds: tuple[int, ...]
    taxonomy: PartTaxonomy
    confusion: Tensor
    reliability: Reliability | None = None
    loss: float = float("nan")
    logits: Tensor | None = None
    indices: Tensor | None = None

    @property
    def score(self) -> float:
        """The number that chooses an epoch: instance mIoU."""
        return self.instance_miou

    @property
    def num_clouds(self) -> int:
        """How many clouds were counted."""
        return sum(self.clouds)

    def summary(self) -> dict[str, float]:
        """Return the means and the loss."""
        names = ("instance_miou", "class_miou", "accuracy", "part_accuracy", "loss")
        return {name: getattr(self, name) for name in names}

    def as_json(self, class_names: Sequence[str]) -> dict[str, Any]:
        """Return everything but the logits in json types; what is not defined becomes None."""
        content = {
            **self.summary(),
            "per_category": dict(zip(class_names, self.per_category, strict=True)),
            "per_part": dict(zip(self.taxonomy.part_names, self.per_part, strict=True)),
            "clouds": dict(zip(class_names, self.clouds, strict=True)),
            "confusion": self.confusion.tolist(),
        }
        if self.reliability is not None:
            content["reliability"] = self.reliability.as_json()
        return cast(dict[str, Any], finite(content))


def mask_other_parts(logits: Tensor, category: Tensor, mask: Tensor) -> Tensor:
    """Give -inf to the parts of other categories.

    Args:
        logits: (B, N, P).
        category: (B,), int64.
        mask: `PartTaxonomy.mask`, on the device of the logits.
    """
    return logits.masked_fill(~mask[category][:, None], -torch.inf)


class SegmentationMeter:
    """Sums over everything seen so far, from which the metrics follow; sums of several processes add up.

    Args:
        taxonomy: categories and parts.
        device: where the sums live; updates stay there and need no synchronisation.
    """

    def __init__(self, taxonomy: PartTaxonomy, device: torch.device | str = "cpu") -> None:
        self.taxonomy = taxonomy
        self._mask = taxonomy.mask().to(device)
        categories, parts = taxonomy.num_categories, taxonomy.num_parts
        self._confusion = ConfusionMatrix(parts, device)
        self._sums = {
            "clouds": torch.zeros(categories, dtype=torch.int64, device=device),
            "cloud_iou": torch.zeros(categories, dtype=torch.float64, device=device),
            "part_iou": torch.zeros(parts, dtype=torch.float64, device=device),
            "points": torch.zeros(parts, dtype=torch.int64, device=device),
            "hits": torch.zeros(parts, dtype=torch.int64, device=device),
            "confusion": self._confusion.counts,
        }

    def predict(self, logits: Tensor, category: Tensor) -> Tensor:
        """Choose the best part of the category: logits (B, N, P) and category (B,) -> (B, N), int64."""
        return mask_other_parts(logits, category, self._mask).argmax(dim=-1)

    def update(self, predicted: Tensor, part_labels: Tensor, category: Tensor) -> None:
        """Count a batch.

        Args:
            predicted: (B, N) int64 parts, or (B, N, P) logits, of which `predict` chooses.
            part_labels: (B, N) int64, parts of the category.
            category: (B,) int64.
        """
        if predicted.dim() == 3:
            predicted = self.predict(predicted, category)
        iou, seen, both = self._part_ious(predicted, part_labels, category)
        mask = self._mask[category]
        sums = self._sums
        sums["clouds"].index_add_(0, category, torch.ones_like(category))
        sums["cloud_iou"].index_add_(0, category, iou.sum(dim=1) / mask.sum(dim=1))
        sums["part_iou"] += iou.sum(dim=0)
        sums["points"] += seen.sum(dim=0)
        sums["hits"] += both.sum(dim=0)
        self._confusion.update(predicted, part_labels)

    def cloud_iou(self, logits: Tensor, part_labels: Tensor, category: Tensor) -> Tensor:
        """Compute the IoU of every cloud, as `update` counts it: (B,), float64; arguments as there."""
        iou, _, _ = self._part_ious(self.predict(logits, category), part_labels, category)
        return iou.sum(dim=1) / self._mask[category].sum(dim=1)

    def _part_ious(
        self, predicted: Tensor, part_labels: Tensor, category: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the IoU of every part in every cloud, 0 for other categories' parts; true points, hits."""
        seen, said = self._count(part_labels), self._count(predicted)
        both = self._count(part_labels, predicted == part_labels)
        union = seen + said - both
        iou = torch.where(union > 0, both / union.clamp(min=1).double(), 1.0) * self._mask[category]
        return iou, seen, both

    def _count(self, labels: Tensor, which: Tensor | None = None) -> Tensor:
        """Count the points of every part in every cloud: (B, N) -> (B, P), int64."""
        batch, parts = labels.shape[0], self.taxonomy.num_parts
        cell = labels + parts * torch.arange(batch, device=labels.device)[:, None]
        ones = torch.ones_like(cell) if which is None else which.to(torch.int64)
        flat = torch.zeros(batch * parts, dtype=torch.int64, device=labels.device)
        flat.index_add_(0, cell.flatten(), ones.flatten())
        return flat.view(batch, parts)

    def state(self) -> Mapping[str, Tensor]:
        """Return the sums by name; the tensors themselves."""
        return self._sums

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over sums.

        Checkpoints of older versions have no confusion matrix; the score of a training epoch, the only number
        that is read after a resume, needs none.
        """
        for name, value in self._sums.items():
            if name in state or name != "confusion":
                value.copy_(state[name])

    def reset(self) -> None:
        """Forget everything."""
        for value in self._sums.values():
            value.zero_()

    def metrics(self) -> SegmentationMetrics:
        """Compute the metrics of what was counted.

        Raises:
            ValueError: if nothing was counted.
        """
        sums = {name: value.detach().cpu().double() for name, value in self._sums.items()}
        clouds = sums["clouds"]
        if not bool(clouds.any()):
            raise UserValueError("No cloud was evaluated; is the split empty?")
        per_category = sums["cloud_iou"] / clouds  # 0 / 0 = nan: a category that does not occur
        per_part = sums["part_iou"] / clouds[self.taxonomy.category_of_part()]
        return SegmentationMetrics(
            instance_miou=float(sums["cloud_iou"].sum() / clouds.sum()),
            class_miou=float(per_category.nanmean()),
            accuracy=float(sums["hits"].sum() / sums["points"].sum()),
            part_accuracy=float((sums["hits"] / sums["points"]).nanmean()),
            per_category=tuple(per_category.tolist()),
            per_part=tuple(per_part.tolist()),
            clouds=tuple(int(count) for count in clouds.tolist()),
            taxonomy=self.taxonomy,
            confusion=self._confusion.counts.detach().cpu().clone(),
        )
