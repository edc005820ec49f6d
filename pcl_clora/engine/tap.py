"""What enters the head of a model while it answers: the feature of a whole cloud."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor, nn


class FeatureTap:
    """Keeps the features that enter a head, for the thread in which the pass runs.

    A classification head is given one vector a cloud; of the token features that a segmentation head is
    given, the maximum stands beside the mean.

    Args:
        head: of the model, as long as its adapter is in place.
    """

    def __init__(self, head: nn.Module) -> None:
        self._seen: dict[int, Tensor] = {}
        self._handle = head.register_forward_pre_hook(self._note)

    def remove(self) -> None:
        """Take no features any more."""
        self._handle.remove()

    def _note(self, _: nn.Module, given: tuple[Any, ...]) -> None:
        tokens = given[0] if len(given) < 3 else given[2]
        self._seen[threading.get_ident()] = tokens

    def take(self) -> Tensor:
        """Return the features of this thread's last pass: (B, F), float32."""
        tokens = self._seen.pop(threading.get_ident()).float()
        return tokens if tokens.dim() == 2 else torch.cat([tokens.amax(dim=1), tokens.mean(dim=1)], dim=1)
