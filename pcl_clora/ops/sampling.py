"""Choosing some points of a cloud: farthest point sampling and picking by index."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from pcl_clora.ops import _checks
from pcl_clora.ops._library import call

Compat = Literal["none", "pointnet2"]


def farthest_point_sample(
    points: Tensor,
    num_samples: int,
    *,
    start_index: int = 0,
    compat: Compat = "none",
    lengths: Tensor | None = None,
) -> Tensor:
    """Choose points that are far apart, one after another.

    The first point is `start_index`; every next one is the point whose distance to its nearest chosen point
    is largest. Ties go to the lowest index, so every backend returns the same indices. When only copies of
    chosen points are left, the lowest index is repeated.

    Args:
        points: (B, N, 3), float32 or float64, finite, any unit. Not normalised here.
        num_samples: S, how many to keep, 1 <= S <= N.
        start_index: index of the first point in every cloud.
        compat: "pointnet2" reproduces the rule of the CUDA library pointnet2_ops: a point whose squared norm
            is at most 1e-3 is never chosen (except as the first), whatever the unit; 0 is returned when no
            point qualifies; distances above 1e10 (squared) count as 1e10. That library breaks ties by thread
            order, here they go to the lowest index. "none" treats all points alike.
        lengths: (B,), int64, how many points each cloud has, 1 <= lengths[b] <= N, for clouds of different
            size in one tensor; the shortest must have room for num_samples and start_index. What lies behind
            is never looked at. The result is that of every cloud alone. None: all clouds have N points.

    Returns:
        (B, S), int64, indices into N in the order they were chosen. Not differentiable.

    Raises:
        TypeError: if points is not a tensor.
        ValueError: if points is not (B, N, 3) in float32 or float64, or a number is out of range. Where a
            value can only be known by looking at the data (NaN or infinity in points, lengths), the check is
            made on the CPU; an accelerator would have to wait, see `check_values`.

    Source: Qi et al., PointNet++, NeurIPS 2017, section 3.2. The tie rule is our choice.
    """
    _checks.check_points(points, "points")
    skip_origin = _checks.check_compat(compat)
    _checks.check_count(num_samples, "num_samples", points.shape[1], "lower it, or repeat points first.")
    _checks.check_start_index(start_index, points.shape[1])
    _checks.check_lengths(lengths, points)
    chosen: Tensor = call("farthest_point_sample", points, num_samples, start_index, skip_origin, lengths)
    return chosen


def gather_points(points: Tensor, idx: Tensor) -> Tensor:
    """Pick points, or their features, by index within each cloud.

    Args:
        points: (B, N, C), float32 or float64, any unit.
        idx: (B, ...), int64, indices into N.

    Returns:
        (B, ..., C), same dtype as points: result[b, i, :] = points[b, idx[b, i], :]. Differentiable with
        respect to points, twice; points picked several times collect all their gradients.

    Raises:
        TypeError: if an argument is not a tensor.
        ValueError: if a shape or dtype is wrong, batch or device differ, or an index is out of range (checked
            on the CPU; an accelerator reports it in its own way).
    """
    _checks.check_points(points, "points", channels=None)
    _checks.check_index(idx, "idx")
    _checks.check_pair(points, "points", idx, "idx", dtype=False)
    picked: Tensor = call("gather_points", points, idx)
    return picked
