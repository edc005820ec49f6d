"""How well hidden patches are rebuilt: sums over clouds, so that evaluations of any batch size agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor

from pcl_clora.errors import UserValueError
from pcl_clora.io import finite


class ReconstructionMeter:
    """The loss summed over clouds.

    Args:
        device: where the sums live.

    Attributes:
        sums: (2,), float64: sum of the losses of all clouds, and number of clouds.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        self.sums = torch.zeros(2, dtype=torch.float64, device=device)

    def update(self, loss: Tensor, num_clouds: int) -> None:
        """Add a batch: its mean loss, (), and how many clouds it has."""
        self.sums += torch.stack([loss.detach().double() * num_clouds, loss.new_tensor(num_clouds).double()])

    def state(self) -> Mapping[str, Tensor]:
        """Return the sums by name; the tensor itself."""
        return {"sums": self.sums}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over sums."""
        self.sums.copy_(state["sums"])

    def reset(self) -> None:
        """Forget everything."""
        self.sums.zero_()

    def metrics(self) -> ReconstructionMetrics:
        """Compute the mean.

        Raises:
            ValueError: if nothing was counted.
        """
        total, count = self.sums.tolist()
        if not count:
            raise UserValueError("No cloud was rebuilt; is the split empty?")
        return ReconstructionMetrics(total / count, int(count))


@dataclass(frozen=True)
class ReconstructionMetrics:
    """Result of rebuilding hidden patches.

    Attributes:
        loss: mean loss of a cloud, in the units of the model's loss; the smaller, the better.
        num_clouds: how many clouds were rebuilt.
    """

    loss: float
    num_clouds: int

    @property
    def score(self) -> float:
        """The number that the log shows: the loss. It chooses no epoch, pre-training takes the last one."""
        return self.loss

    def summary(self) -> dict[str, float]:
        """Return the loss."""
        return {"loss": self.loss}

    def as_json(self, class_names: Sequence[str]) -> dict[str, Any]:
        """Return everything in json types."""
        return cast(dict[str, Any], finite({"loss": self.loss, "num_clouds": self.num_clouds}))
