"""What an adapter trains besides its deltas: copies of parts of the backbone, and where they wait."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from pcl_clora.adapters.base import TunerLayer
from pcl_clora.adapters.tree import locate


class Shelf(nn.Module):
    """Modules and tensors that are not in the live model at the moment, by their path in it.

    They are registered, so that they move between devices, are copied and are part of the state_dict.
    """

    def put(self, path: str, item: nn.Module | Tensor) -> None:
        """Lay an item down."""
        key = path.replace(".", "/")
        if isinstance(item, nn.Module):
            self._modules[key] = item
        elif isinstance(item, nn.Parameter):
            self._parameters[key] = item
        else:
            self._buffers[key] = item

    def take(self, path: str) -> Any:
        """Pick an item up; it is on the shelf no longer."""
        key = path.replace(".", "/")
        for place in (self._modules, self._parameters, self._buffers):
            if key in place:
                return place.pop(key)
        raise KeyError(path)


def outermost(paths: Mapping[str, str]) -> dict[str, str]:
    """Leave out paths that lie inside another one, and the second of two equal ones."""
    return {path: reason for path, reason in paths.items() if not inside(path, paths)}


def inside(path: str, others: Iterable[str]) -> bool:
    """Tell whether a dotted path lies below one of the others."""
    return any(path.startswith(f"{other}.") for other in others)


def copy_items(model: nn.Module, paths: Iterable[str]) -> dict[str, Any]:
    """Copy the modules, parameters and buffers at the paths; what they share stays shared among the copies.

    Raises:
        ValueError: if there is nothing at a path, or a module holds layers that carry deltas.
    """
    memo: dict[int, Any] = {}
    copies = {}
    for path in paths:
        owner, leaf = locate(model, path)
        item = getattr(owner, leaf)
        if isinstance(item, nn.Module) and any(isinstance(part, TunerLayer) for part in item.modules()):
            raise ValueError(
                f"{path} holds layers that another adapter changes, so it cannot be copied; train less."
            )
        copies[path] = copy.deepcopy(item, memo)
    return copies


def check_targets(model: nn.Module, targets: Iterable[str], owned: Mapping[str, str]) -> None:
    """Check that every layer to be adapted exists, is there once, and is in no part trained as a whole.

    Raises:
        ValueError: if not; the message names the layers.
    """
    seen: dict[int, str] = {}
    for path in targets:
        owner, leaf = locate(model, path)
        layer = getattr(owner, leaf)
        if path in owned or inside(path, owned):
            raise ValueError(
                f"{path} is in a part that is trained as a whole, so it needs no adapter; drop one."
            )
        identity = id(getattr(layer, "weight", layer))
        if identity in seen:
            raise ValueError(f"{path} and {seen[identity]} share one weight, which cannot carry two changes.")
        seen[identity] = path


def put_in_order(results: list[tuple[Tensor, Tensor]], count: int) -> Tensor:
    """Join the outputs of sub-batches in the order of their samples; narrower ones are filled up with -inf.

    Args:
        results: pairs of (rows (b,), outputs (b, ..., C)); the rows of all pairs together are 0 ... count -
            1.
        count: number of samples B.

    Returns:
        (B, ..., C of the widest).
    """
    widest = max((output for _, output in results), key=lambda output: output.shape[-1])
    joined = widest.new_full((count, *widest.shape[1:]), float("-inf"))
    for rows, output in results:
        joined[rows, ..., : output.shape[-1]] = output
    return joined
