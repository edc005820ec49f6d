"""What two adapter files have in common, and in what they differ."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from pcl_clora.adapters.files import read_adapter
from pcl_clora.adapters.share import find_adapter


class AdapterDifference(NamedTuple):
    """In what two adapter files differ.

    Attributes:
        said: (key of the header, first, second), where they say other things.
        only_first: tensors that the second lacks.
        only_second: tensors that the first lacks.
        reshaped: (tensor, first shape, second shape).
        changed: tensor -> norm of the difference / norm of the first, where values differ.
        equal: how many tensors have the same bits.
    """

    said: list[tuple[str, Any, Any]]
    only_first: list[str]
    only_second: list[str]
    reshaped: list[tuple[str, tuple[int, ...], tuple[int, ...]]]
    changed: dict[str, float]
    equal: int


def compare_adapters(first: str | Path, second: str | Path) -> AdapterDifference:
    """Compare two adapter files: what their headers say, and their tensors by name.

    Raises:
        AdapterFileError: if one is missing, damaged or no adapter.
    """
    (head1, state1), (head2, state2) = (read_adapter(find_adapter(path)) for path in (first, second))
    flat1, flat2 = (_flat(head.model_dump(mode="json")) for head in (head1, head2))
    said = [
        (key, flat1.get(key), flat2.get(key))
        for key in sorted({*flat1, *flat2})
        if flat1.get(key) != flat2.get(key)
    ]
    common = [name for name in state1 if name in state2]
    same_shape = [name for name in common if state1[name].shape == state2[name].shape]
    reshaped = [
        (name, tuple(state1[name].shape), tuple(state2[name].shape))
        for name in common
        if name not in same_shape
    ]
    changed = {name: _distance(state1[name], state2[name]) for name in same_shape}
    changed = {name: value for name, value in changed.items() if value != 0}
    return AdapterDifference(
        said,
        sorted(state1.keys() - state2.keys()),
        sorted(state2.keys() - state1.keys()),
        reshaped,
        changed,
        len(same_shape) - len(changed),
    )


def _distance(first: Tensor, second: Tensor) -> float:
    difference, size = (second.double() - first.double()).norm(), first.double().norm()
    return float(difference / size) if size > 0 else float(difference) and float("inf")


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            flat |= _flat(item, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = item
    return flat
