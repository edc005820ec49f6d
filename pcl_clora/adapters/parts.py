"""Checks and copies made before an adapter is attached."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from pcl_clora.adapters.base import TunerLayer
from pcl_clora.adapters.paths import at_or_inside, locate
from pcl_clora.errors import UserValueError


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
