"""A moving average of the trained weights, for evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from pcl_clora.engine.optim import trained_parameters


class WeightAverage:
    """Exponential moving average of all trained parameters. With decay 0 it does nothing and costs nothing.

    Buffers (BatchNorm statistics) are not averaged: they are averages already.

    Args:
        model: whose parameters are followed.
        decay: share of the old average that stays at each step, 0 <= decay < 1.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._followed = trained_parameters(model) if decay else {}
        self.average = {name: value.detach().clone() for name, value in self._followed.items()}

    def update(self) -> None:
        """Take a step of the average towards the present weights."""
        if self._followed:
            live = [value.detach() for value in self._followed.values()]
            torch._foreach_lerp_(list(self.average.values()), live, 1 - self.decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Put the average in the place of the weights, and the weights back afterwards."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def put(self) -> None:
        """Make the average the model's weights, for good."""
        with torch.no_grad():
            for name, parameter in self._followed.items():
                parameter.copy_(self.average[name])

    def _swap(self) -> None:
        with torch.no_grad():
            for name, parameter in self._followed.items():
                held = parameter.detach().clone()
                parameter.copy_(self.average[name])
                self.average[name] = held

    def load(self, average: Mapping[str, Tensor]) -> None:
        """Take over a saved average."""
        with torch.no_grad():
            for name, value in average.items():
                self.average[name].copy_(value)
