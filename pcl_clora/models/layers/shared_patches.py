"""Patches of a batch that are computed once: for several adapters on one backbone, or for several epochs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

import torch
from torch import Tensor

from pcl_clora.ops import PointGroups

T = TypeVar("T")
Embedded = tuple[Tensor, Tensor]


class SharedPatches:
    """What passes over the same batch have in common: its groups, and the features of its patches.

    Attributes:
        embeds: whether features are shared too. An adapter that changes the patch encoder has others, and
            switches it off for its own pass.
    """

    def __init__(self) -> None:
        self.embeds = True
        self._groups: dict[int, tuple[Tensor, PointGroups]] = {}
        self._embedded: dict[int, tuple[Tensor, Embedded]] = {}

    def groups(self, points: Tensor, compute: Callable[[], PointGroups]) -> PointGroups:
        """Return the groups of a batch (B, N, 3), computed at the first call with this tensor."""
        return _once(self._groups, points, compute)

    def embedded(self, neighborhood: Tensor, compute: Callable[[], Embedded]) -> Embedded:
        """Return features and positions of patches (B, G, K, 3), computed at their first call."""
        return _once(self._embedded, neighborhood, compute) if self.embeds else compute()

    def encoded(self, neighborhood: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        """Return what the patch encoder makes of patches (B, G, K, 3): (B, G, C)."""
        return compute()


def _once(known: dict[int, tuple[Tensor, T]], key: Tensor, compute: Callable[[], T]) -> T:
    """Compute once for a tensor; it is kept beside the result, so that no other takes its number."""
    if id(key) not in known:
        known[id(key)] = (key, compute())
    return known[id(key)][1]


_current: ContextVar[SharedPatches | None] = ContextVar("shared_patches", default=None)


def current() -> SharedPatches | None:
    """Return what the passes of this thread share now; None outside of `shared_patches`."""
    return None if torch.compiler.is_compiling() else _current.get()


@contextmanager
def shared_patches(shared: SharedPatches | None = None) -> Iterator[SharedPatches]:
    """Compute groups and patch features of every batch once inside the block; in this thread only.

    Args:
        shared: what is known already; None for nothing.
    """
    shared = SharedPatches() if shared is None else shared
    token = _current.set(shared)
    try:
        yield shared
    finally:
        _current.reset(token)
