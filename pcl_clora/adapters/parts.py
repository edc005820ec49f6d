"""What an adapter trains besides its deltas: copies of parts of the backbone, and where they wait."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from pcl_clora.adapters.base import TunerLayer
from pcl_clora.adapters.paths import locate
from pcl_clora.errors import UserValueError


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


def at_or_inside(path: str, others: Collection[str]) -> bool:
    """Tell whether a dotted path is one of the others or lies below one."""
    return path in others or inside(path, others)


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
            raise UserValueError(
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
        if at_or_inside(path, owned):
            raise UserValueError(
                f"{path} is in a part that is trained as a whole, so it needs no adapter; drop one."
            )
        identity = id(getattr(layer, "weight", layer))
        if identity in seen:
            raise UserValueError(
                f"{path} and {seen[identity]} share one weight, which cannot carry two changes."
            )
        seen[identity] = path
