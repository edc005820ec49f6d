"""Which axis points up in a folder of files: what their formats say, what their shapes say."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcl_clora.data import Batch, InputRule, PointLoader
from pcl_clora.data.frame import guess_up
from pcl_clora.data.input_rule import Up
from pcl_clora.engine.probes.features import BATCH_SIZE, extract_features
from pcl_clora.io import format_of

MOST_CLOUDS = 300  # that the pose is chosen by
MIXED = 0.15  # share of the telling clouds whose nearest mate is turned, above which the axes are mixed
FEWEST = 8  # telling clouds that are needed for that
CLEARLY = 1.25  # times as far from itself turned as from a mate: then a cloud tells
SURE = 2.0  # standard deviations of a sign test by which another axis than y has to be better
AXES: tuple[Up, ...] = ("y", "z", "x")


@dataclass(frozen=True)
class Pose:
    """What was found.

    Attributes:
        up: the axis that is taken to point up.
        mixed: whether the axes of the files differ.
        why: in words, without a full stop.
        accuracies: axis -> share of clouds whose nearest neighbour is of their class; empty if not asked.
    """

    up: Up
    mixed: bool
    why: str
    accuracies: dict[str, float] = field(default_factory=dict)


def find_pose(
    clouds: Tensor, labels: Tensor, files: Iterable[str | Path], backbone: nn.Module, *, classes: bool
) -> Pose:
    """Find the axis that points up, or that it differs from file to file.

    What a format says (las, e57: z; glb: y) comes first, and formats that contradict one another mean mixed
    axes. Otherwise frozen features decide: the axes are mixed where the nearest other cloud of a class is
    often one that is turned to another axis; if not, the axis is the one under which the nearest neighbour of
    most clouds is of their own class, or y where no other is clearly better. Flat scans without classes point
    up along their flattest axis.

    Args:
        clouds: (n, N, 3), as they lie in the files.
        labels: (n,), int64, classes, or categories of labelled clouds.
        files: of the clouds.
        backbone: frozen.
        classes: whether the labels tell clouds apart.
    """
    said = {kind.up for file in files if (kind := format_of(_file(file))) is not None}
    told = sorted(axis for axis in said if axis)
    if len(told) > 1:
        return Pose("y", True, f"the formats of the files say {' and '.join(told)}")
    if told and "" not in said:
        return Pose(told[0], False, "the format of the files says it")
    chosen = torch.linspace(0, len(clouds) - 1, min(MOST_CLOUDS, len(clouds))).long()
    clouds, labels = clouds[chosen], labels[chosen]
    features = torch.stack([_features(backbone, clouds, axis) for axis in AXES])
    turned, telling = turned_share(features, labels)
    if telling >= FEWEST and turned > MIXED:
        why = f"{100 * turned:.0f} % of the clouds are nearest to one of their class that is turned"
        return Pose("y", True, why)
    if classes:
        found = zip(AXES, features, strict=True)
        return choose_axis({axis: _neighbour_right(each, labels) for axis, each in found})
    flat = [guess_up(cloud.numpy()) for cloud in clouds]
    for axis in ("z", "y"):
        if 2 * flat.count(axis) > len(flat):
            return Pose(axis, False, "most clouds are by far the flattest along it")
    return Pose("y", False, "nothing says otherwise")


def choose_axis(right: Mapping[Up, Tensor]) -> Pose:
    """Choose the axis under which most clouds are right; y where no other is clearly better.

    Args:
        right: axis -> (n,), bool, whose nearest neighbour is of their own class.
    """
    accuracies: dict[str, float] = {axis: float(each.double().mean()) for axis, each in right.items()}
    up = max(right, key=lambda axis: accuracies[axis])  # the first of equals
    for_it, against = int((right[up] & ~right["y"]).sum()), int((right["y"] & ~right[up]).sum())
    listed = ", ".join(f"{axis} {100 * value:.1f} %" for axis, value in accuracies.items())
    why = f"nearest neighbour of frozen features right: {listed}"
    if up != "y" and for_it - against <= SURE * (for_it + against) ** 0.5:
        return Pose("y", False, f"{why}; no axis is clearly better", accuracies)
    return Pose(up, False, why, accuracies)


def turned_share(features: Tensor, labels: Tensor) -> tuple[float, int]:
    """Say how many clouds are nearer to a turned cloud of their class than to one that stands as they do.

    Only clouds that tell are counted: those that are clearly nearer to another cloud of their class than to
    themselves turned. Balls are not, whose pose says nothing.

    Args:
        features: (P, n, F), of every cloud in P poses.
        labels: (n,), int64.

    Returns:
        The share, and how many clouds tell.
    """
    poses, count, _ = features.shape
    mates = (labels[:, None] == labels[None]) & ~torch.eye(count, dtype=torch.bool)
    same = torch.full((count,), torch.inf)
    turned, own = same.clone(), same.clone()
    for first in range(poses):
        for second in range(poses):
            distance = torch.cdist(features[first], features[second])
            nearest = distance.masked_fill(~mates, torch.inf).amin(dim=1)
            if first == second:
                same = torch.minimum(same, nearest)
            else:
                turned = torch.minimum(turned, nearest)
                own = torch.minimum(own, distance.diagonal())
    telling = own > CLEARLY * torch.minimum(same, turned)
    number = int(telling.sum())
    return (float((turned < same)[telling].double().mean()) if number else 0.0), number


@dataclass(frozen=True)
class _Turned:
    """Clouds in memory, turned, as a loader gives them."""

    points: Tensor

    def batches(self, _: int) -> Iterator[Batch]:
        for start in range(0, len(self.points), BATCH_SIZE):
            piece = self.points[start : start + BATCH_SIZE]
            place = torch.arange(start, start + len(piece))
            yield Batch(piece, torch.zeros(len(piece), dtype=torch.int64), place)


def _features(backbone: nn.Module, clouds: Tensor, up: Up) -> Tensor:
    turned = _Turned(InputRule(up=up).turn(clouds))
    features, _ = extract_features(backbone, cast(PointLoader, turned), clouds.shape[1])
    return features


def _neighbour_right(features: Tensor, labels: Tensor) -> Tensor:
    features = F.normalize(features - features.mean(dim=0), dim=1)
    likeness = features @ features.t()
    likeness.fill_diagonal_(-torch.inf)
    return labels[likeness.argmax(dim=1)] == labels


def _file(file: str | Path) -> str:
    return str(file).partition("#")[0]
