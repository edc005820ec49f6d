"""In which tensors two weights files differ, and by how much: did a frozen backbone stay as it was?"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pcl_clora.models.weights._left_out import reason_left_out, unwrap
from pcl_clora.models.weights._official_view import OfficialView, is_buffer, view_officially
from pcl_clora.models.weights._sources import open_source

GROUPS = ("backbone", "backbone statistics", "tokens", "head", "other")


@dataclass(frozen=True)
class TensorChange:
    """How a tensor differs between two files.

    Attributes:
        name: official name without wrappers.
        group: "backbone", "backbone statistics" (running mean, variance and count of BatchNorm), "tokens",
            "head", or "other" (pre-training parts, what a method added).
        max_abs: largest difference of a value.
        relative: L2 norm of the difference / L2 norm in the first file; infinite where that is zero.
        share: share of the values that differ, in [0, 1].
        shapes: both shapes where they differ; the numbers are then nan.
    """

    name: str
    group: str
    max_abs: float
    relative: float
    share: float
    shapes: tuple[tuple[int, ...], tuple[int, ...]] | None = None


@dataclass(frozen=True)
class Comparison:
    """What `compare_weights` found.

    Attributes:
        first: the first file, what it holds.
        second: the second file, what it holds.
        equal: group -> number of tensors that are equal bit by bit.
        changes: tensors that differ, by group and then by relative difference.
        only_first: names that only the first file has.
        only_second: names that only the second file has.
    """

    first: str
    second: str
    equal: Mapping[str, int]
    changes: tuple[TensorChange, ...]
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]

    def count(self, group: str) -> tuple[int, int]:
        """Return how many tensors of a group differ, and how many both files have."""
        changed = sum(change.group == group for change in self.changes)
        return changed, changed + self.equal.get(group, 0)

    def verdict(self) -> str:
        """Say in a sentence what became of the backbone."""
        weights, statistics = self.count("backbone"), self.count("backbone statistics")
        if weights[1] == 0:
            return "The files have no backbone in common."
        if weights[0] == statistics[0] == 0:
            return "The backbone is the same bit by bit, statistics included."
        if weights[0] == 0:
            return (
                f"The weights of the backbone are the same, but {statistics[0]} of {statistics[1]} "
                "statistics of its BatchNorm moved: it was frozen in name only, and computes something else."
            )
        moved = f"{weights[0]} of {weights[1]} weights of the backbone differ"
        return f"{moved}, and {statistics[0]} of {statistics[1]} statistics of its BatchNorm."

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain values."""
        groups = {name: dict(zip(("changed", "common"), self.count(name), strict=True)) for name in GROUPS}
        return {**asdict(self), "groups": groups, "verdict": self.verdict()}


def compare_weights(first: str | Path, second: str | Path) -> Comparison:
    """Compare two files tensor by tensor, by their official names, whatever their own names are.

    Args:
        first: a weights file, run folder or id of the hub; the reference of the relative differences.
        second: another one.

    Raises:
        WeightsError: if a file is refused.
    """
    views = [view_officially(open_source(source).checkpoint) for source in (first, second)]
    names = [_by_name(view) for view in views]
    shared = [name for name in names[0] if name in names[1]]
    equal = dict.fromkeys(GROUPS, 0)
    changes = []
    for name in shared:
        a, b = (view.tensor(found[name]) for view, found in zip(views, names, strict=True))
        change = _compare(name, a, b)
        if change is None:
            equal[group_of(name)] += 1
        else:
            changes.append(change)
    changes.sort(key=lambda change: (GROUPS.index(change.group), -_sortable(change.relative)))
    return Comparison(
        first=f"{first} ({views[0].identity})",
        second=f"{second} ({views[1].identity})",
        equal=equal,
        changes=tuple(changes),
        only_first=_without(names[0], shared),
        only_second=_without(names[1], shared),
    )


def _by_name(view: OfficialView) -> dict[str, str]:
    """Unwrapped official name -> official key; the first of two stands."""
    found: dict[str, str] = {}
    for official in view.keys:
        found.setdefault(unwrap(official), official)
    return found


def _without(names: Mapping[str, str], shared: Sequence[str]) -> tuple[str, ...]:
    common = set(shared)
    return tuple(name for name in names if name not in common)


def group_of(name: str) -> str:
    """Name the group of an unwrapped official name: by why another network would leave it out."""
    kind = reason_left_out(name, ()).kind
    if kind in ("head", "token"):
        return "head" if kind == "head" else "tokens"
    if kind not in ("branch", "unknown") or not re.match(
        r"(encoder|reduce_dim|pos_embed|blocks|norm)\b", name
    ):
        return "other"
    return "backbone statistics" if is_buffer(name) else "backbone"


def _compare(name: str, first: Tensor, second: Tensor) -> TensorChange | None:
    """Measure in double precision; None for tensors that are equal bit by bit, types aside."""
    group = group_of(name)
    if first.shape != second.shape:
        nan = float("nan")
        return TensorChange(name, group, nan, nan, nan, (tuple(first.shape), tuple(second.shape)))
    a, b = first.double(), second.double()
    if torch.equal(a, b):
        return None
    difference = (b - a).abs()
    norm = float(a.norm())
    return TensorChange(
        name=name,
        group=group,
        max_abs=float(difference.max()),
        relative=float(difference.norm()) / norm if norm else float("inf"),
        share=float((difference != 0).double().mean()),
    )


def _sortable(value: float) -> float:
    return value if value == value else float("inf")
