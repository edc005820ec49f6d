"""What training minimises: the task's loss plus the terms that a method adds, each logged with its share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class LossTerms:
    """A loss taken apart.

    Attributes:
        total: () what is minimised, with gradient.
        task: () the loss of the task alone.
        extra: name -> () term of the method, weighted.
    """

    total: Tensor
    task: Tensor
    extra: Mapping[str, Tensor]

    def log(self, **beside: Tensor) -> dict[str, float]:
        """Write the terms as numbers: the total, and each extra term with its share of the total.

        All of them are read at once, since a device is waited for at every reading.

        Args:
            **beside: name -> (), further numbers to read with them.
        """
        task = {"loss_task": self.task} if self.extra else {}
        read = _read({"loss": self.total, **task, **self.extra, **beside})
        total = read["loss"]
        values = {"loss": total, **{name: read[name] for name in task}}
        for name in self.extra:
            values[f"loss_{name}"] = read[name]
            values[f"share_{name}"] = read[name] / total if total else 0.0
        return {**values, **{name: read[name] for name in beside}}


def classification_loss(
    logits: Tensor, label: Tensor, extra: Mapping[str, Tensor] | None = None, *, label_smoothing: float = 0.0
) -> LossTerms:
    """Add up the cross entropy and a method's own terms.

    Args:
        logits: (B, C), any floating dtype; the loss is computed in float32.
        label: (B,), int64, 0 <= label < C.
        extra: name -> () term, weighted already.
        label_smoothing: share of the target spread over all classes.

    Returns:
        The total with gradient, and its terms.
    """
    return _add_up(F.cross_entropy(logits.float(), label, label_smoothing=label_smoothing), extra)


def segmentation_loss(
    logits: Tensor,
    part_labels: Tensor,
    extra: Mapping[str, Tensor] | None = None,
    *,
    label_smoothing: float = 0.0,
) -> LossTerms:
    """Add up the mean cross entropy of all points over the parts of all categories, and a method's terms.

    Args:
        logits: (B, N, P), any floating dtype; the loss is computed in float32.
        part_labels: (B, N), int64, 0 <= part < P.
        extra: name -> () term, weighted already.
        label_smoothing: share of the target spread over all parts.

    Returns:
        The total with gradient, and its terms.

    Source: the published ShapeNetPart recipe; it does not restrict the loss to the parts of the category,
        which only the evaluation does.
    """
    rows = logits.float().flatten(0, 1)
    return _add_up(F.cross_entropy(rows, part_labels.flatten(), label_smoothing=label_smoothing), extra)


def _read(scalars: Mapping[str, Tensor]) -> dict[str, float]:
    """Fetch scalars from their device in one go."""
    dtype = reduce(torch.promote_types, (value.dtype for value in scalars.values()))
    together = torch.stack([value.detach().to(dtype) for value in scalars.values()])
    return dict(zip(scalars, together.tolist(), strict=True))


def _add_up(task: Tensor, extra: Mapping[str, Tensor] | None) -> LossTerms:
    terms = dict(extra or {})
    total = task
    for term in terms.values():
        total = total + term
    return LossTerms(total=total, task=task, extra=terms)
