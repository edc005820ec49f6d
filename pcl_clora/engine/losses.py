"""What training minimises: the task's loss plus the terms that a method adds, each logged with its share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

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

    def log(self) -> dict[str, float]:
        """Write the terms as numbers: the total, and each extra term with its share of the total."""
        total = float(self.total.detach())
        values = {"loss": total}
        if self.extra:
            values["loss_task"] = float(self.task.detach())
        for name, term in self.extra.items():
            value = float(term.detach())
            values[f"loss_{name}"] = value
            values[f"share_{name}"] = value / total if total else 0.0
        return values


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
    task = F.cross_entropy(logits.float(), label, label_smoothing=label_smoothing)
    terms = dict(extra or {})
    total = task
    for term in terms.values():
        total = total + term
    return LossTerms(total=total, task=task, extra=terms)
