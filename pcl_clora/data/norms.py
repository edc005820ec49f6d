"""How large the clouds of a training are, and where they lie."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from pcl_clora.config import Config


class Norms(Config):
    """Sizes of the clouds that a training met, as they were read, before they were thinned and augmented."""

    radius_min: NonNegativeFloat  # smallest distance of a cloud's farthest point from its mean
    radius_max: NonNegativeFloat  # largest one
    offset_min: NonNegativeFloat  # smallest distance of a cloud's mean from the origin
    offset_max: NonNegativeFloat  # largest one

    def hold(self, radius: float, offset: float) -> bool:
        """Tell whether a cloud is like those that were met, give or take their spread and a twentieth."""
        slack = (self.radius_max - self.radius_min) + self.radius_max / 20
        wander = (self.offset_max - self.offset_min) + self.radius_max / 20
        near = offset <= self.offset_max + wander
        return near and self.radius_min - slack <= radius <= self.radius_max + slack

    def doubt(self, radius: float, offset: float) -> str:
        """Say that a cloud lies far outside what was met, with both numbers; "" if it does not."""
        said = []
        if not self.radius_min / 2 <= radius <= 2 * self.radius_max:
            met = f"{self.radius_min:.4g} to {self.radius_max:.4g}"
            said.append(f"its farthest point is {radius:.4g} from its mean, in training that was {met}")
        if offset > self.offset_max + self.radius_max:
            met = f"{self.offset_min:.4g} to {self.offset_max:.4g}"
            said.append(f"its mean is {offset:.4g} from the origin, in training that was {met}")
        return "; ".join(said)


@dataclass
class NormsMeter:
    """Collects norms over batches.

    Attributes:
        state: (4,), smallest radius and offset, and their largest with a minus, on the device of the clouds,
            so that nothing waits for it; None before the first batch.
    """

    state: Tensor | None = None

    def update(self, points: Tensor) -> None:
        """Take clouds (B, N, 3) in."""
        radius, offset = measure(points)
        now = torch.stack([radius.amin(), offset.amin(), -radius.amax(), -offset.amax()])
        self.state = now if self.state is None else torch.minimum(self.state.to(now.device), now)

    def norms(self) -> Norms | None:
        """Return what was met; None before the first batch, or if it was not finite."""
        if self.state is None or not bool(self.state.isfinite().all()):
            return None
        low, near, high, far = (abs(value) for value in self.state.tolist())
        return Norms(radius_min=low, radius_max=high, offset_min=near, offset_max=far)


def measure(points: Tensor) -> tuple[Tensor, Tensor]:
    """Measure clouds (..., N, 3): distance of the farthest point from the mean, and of the mean from 0."""
    mean = points.mean(dim=-2, keepdim=True)
    return (points - mean).norm(dim=-1).amax(dim=-1), mean.squeeze(-2).norm(dim=-1)
