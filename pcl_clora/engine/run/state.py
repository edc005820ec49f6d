"""Where a run stands."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pcl_clora.data.norms import NormsMeter
from pcl_clora.engine.tasks import Meter


@dataclass
class RunState:
    """Position of a run and what it has summed up so far; all of it is in a checkpoint.

    Attributes:
        meter: of the training predictions of this epoch.
        epoch: epoch of the next batch, 0-based.
        batch: number of the next batch in its epoch, 0-based.
        step: steps done.
        loss_sum: sum of the losses of this epoch.
        seconds: time in the loop, over all parts of an interrupted run.
        epoch_seconds: the same within this epoch, evaluations left out.
        best: epoch and metrics of the best evaluation on the split that chooses, None before the first.
        norms: sizes of the clouds that were read for training.
    """

    meter: Meter
    epoch: int = 0
    batch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    seconds: float = 0.0
    epoch_seconds: float = 0.0
    best: dict[str, Any] | None = None
    norms: NormsMeter = field(default_factory=NormsMeter)
    _tick: float = field(default_factory=time.monotonic)

    def start_clock(self) -> None:
        """Begin to measure."""
        self._tick = time.monotonic()

    def take_time(self, *, training: bool) -> None:
        """Add the time since the last call; `training` says whether it belongs to the epoch."""
        now = time.monotonic()
        self.seconds += now - self._tick
        self.epoch_seconds += (now - self._tick) if training else 0.0
        self._tick = now

    def next_epoch(self) -> None:
        """Go to the first batch of the next epoch."""
        self.epoch, self.batch = self.epoch + 1, 0
        self.loss_sum, self.epoch_seconds = 0.0, 0.0
        self.meter.reset()

    def tree(self) -> dict[str, Any]:
        """Return everything as plain values and tensors."""
        names = ("epoch", "batch", "step", "loss_sum", "seconds", "epoch_seconds", "best")
        sums = {"meter": dict(self.meter.state()), "norms": self.norms.state}
        return {**sums, **{name: getattr(self, name) for name in names}}

    def load(self, tree: Mapping[str, Any]) -> None:
        """Take over a saved state."""
        for name, value in tree.items():
            if name == "meter":
                self.meter.load(value)
            elif name == "norms":
                self.norms.state = value
            else:
                setattr(self, name, value)
