"""Are confidences true? Expected calibration error, reliability bins, and a temperature that mends them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pcl_clora.engine.randomness import make_generator
from pcl_clora.errors import UserValueError

NUM_BINS = 15


@dataclass(frozen=True)
class Reliability:
    """How confidences and accuracies of clouds, or of points, agree.

    Attributes:
        ece: expected calibration error, the mean over all predictions of |accuracy - confidence| of their
            bin, in [0, 1].
        confidence: mean confidence of every bin, nan in an empty one.
        accuracy: share of right predictions of every bin, nan in an empty one.
        count: predictions of every bin.
        unit: what was predicted, "clouds" or "points".
    """

    ece: float
    confidence: tuple[float, ...]
    accuracy: tuple[float, ...]
    count: tuple[int, ...]
    unit: str

    def as_json(self) -> dict[str, Any]:
        """Return everything in json types; what is not defined becomes None."""
        return {"unit": self.unit, "ece": self.ece, "bins": self.bins()}

    def bins(self) -> list[dict[str, Any]]:
        """Return the bins in json types; what is not defined becomes None."""
        bins: list[dict[str, Any]] = []
        for confidence, accuracy, count in zip(self.confidence, self.accuracy, self.count, strict=True):
            known = count > 0
            bins.append(
                {
                    "count": count,
                    "confidence": confidence if known else None,
                    "accuracy": accuracy if known else None,
                }
            )
        return bins


class ReliabilityMeter:
    """Sums over everything seen so far, in bins of equal width over the confidences 0 to 1.

    Args:
        unit: what is predicted, "clouds" or "points".
        num_bins: how many bins.
        device: where the sums live; updates stay there and need no synchronisation.

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, section 2.
    """

    def __init__(self, unit: str, *, num_bins: int = NUM_BINS, device: torch.device | str = "cpu") -> None:
        self.unit, self.num_bins = unit, num_bins
        self._count = torch.zeros(num_bins, dtype=torch.int64, device=device)
        self._right = torch.zeros_like(self._count)
        self._confidence = torch.zeros(num_bins, dtype=torch.float64, device=device)

    def update(self, confidence: Tensor, right: Tensor) -> None:
        """Count predictions.

        Args:
            confidence: (n,), float64, their probabilities.
            right: (n,), bool.
        """
        place = (confidence * self.num_bins).ceil().long().sub(1).clamp(0, self.num_bins - 1)
        self._count.index_add_(0, place, torch.ones_like(place))
        self._right.index_add_(0, place, right.long())
        self._confidence.index_add_(0, place, confidence)

    def reliability(self) -> Reliability:
        """Compute what the sums say.

        Raises:
            ValueError: if nothing was counted.
        """
        count, total = self._count.cpu(), int(self._count.sum())
        if total == 0:
            raise UserValueError("No prediction was counted; is the split empty?")
        confidence, accuracy = self._confidence.cpu() / count, self._right.cpu().double() / count
        gap = (accuracy - confidence).abs().nan_to_num(0.0)
        return Reliability(
            ece=float((gap * count).sum() / total),
            confidence=tuple(confidence.tolist()),
            accuracy=tuple(accuracy.tolist()),
            count=tuple(count.tolist()),
            unit=self.unit,
        )


@dataclass(frozen=True)
class Calibration(Reliability):
    """How confidences and accuracies agree; the confidence of a cloud is its largest softmax probability.

    Attributes:
        nll: mean negative log-likelihood of the true classes, nats.
    """

    nll: float

    def as_json(self) -> dict[str, Any]:
        """Return everything in json types; what is not defined becomes None."""
        return {"ece": self.ece, "nll": self.nll, "bins": self.bins()}


def measure_calibration(logits: Tensor, label: Tensor, *, num_bins: int = NUM_BINS) -> Calibration:
    """Compare confidences with accuracies in bins of equal width.

    Args:
        logits: (n, C).
        label: (n,), int64.
        num_bins: bins over the confidences 0 to 1.

    Raises:
        ValueError: if there are no clouds, or their numbers differ.

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, section 2.
    """
    _check(logits, label)
    probability, predicted = logits.double().softmax(-1).max(-1)
    meter = ReliabilityMeter("clouds", num_bins=num_bins, device=logits.device)
    meter.update(probability, predicted == label)
    return Calibration(**vars(meter.reliability()), nll=float(F.cross_entropy(logits.double(), label)))


def fit_temperature(logits: Tensor, label: Tensor) -> float:
    """Find the temperature T for which logits / T have the smallest negative log-likelihood.

    That is a convex problem in 1 / T with one unknown, so it is solved by halving an interval of log(1 / T).

    Args:
        logits: (n, C), of clouds that the model was not trained on.
        label: (n,), int64.

    Returns:
        T, between 1e-3 and 1e3; a bound is returned where the optimum lies beyond (all clouds right: T -> 0).

    Source: Guo et al., ICML 2017, section 4.2; the solver is ours.
    """
    _check(logits, label)
    exact = logits.double()
    target = exact.gather(1, label.unsqueeze(1)).mean()

    def slope(inverse: float) -> float:
        """Derivative of the mean negative log-likelihood with respect to 1 / T."""
        return float(((exact * inverse).softmax(-1) * exact).sum(-1).mean() - target)

    low, high = -3.0, 3.0
    for _ in range(60):
        middle = (low + high) / 2
        if slope(10.0**middle) > 0:
            high = middle
        else:
            low = middle
    return float(10.0 ** -((low + high) / 2))


def cross_fit_temperature(
    logits: Tensor, label: Tensor, *, seed: int = 0
) -> tuple[Tensor, tuple[float, float]]:
    """Scale every half of the clouds by the temperature that was fitted on the other half.

    For runs without a validation split: no cloud helps to choose its own temperature.

    Args:
        logits: (n, C), n >= 2.
        label: (n,), int64.
        seed: decides the halves.

    Returns:
        Scaled logits (n, C), and the temperatures fitted on the first and on the second half.
    """
    _check(logits, label)
    if len(label) < 2:
        raise UserValueError("Two halves need at least two clouds.")
    order = torch.randperm(len(label), generator=make_generator(seed, "temperature"))
    halves: Sequence[Tensor] = order.tensor_split(2)
    fitted = [fit_temperature(logits[half], label[half]) for half in halves]
    scaled = logits.double().clone()
    scaled[halves[0]] /= fitted[1]
    scaled[halves[1]] /= fitted[0]
    return scaled, (fitted[0], fitted[1])


def _check(logits: Tensor, label: Tensor) -> None:
    if logits.dim() != 2 or label.shape != logits.shape[:1] or len(label) == 0:
        raise UserValueError(
            f"logits is {tuple(logits.shape)} and label {tuple(label.shape)}; expected (n, C) and "
            "(n,), n >= 1."
        )
