"""Exact neighbours: knn, three_nn, ball_query and the chamfer distance."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from pcl_clora.errors import UserValueError
from pcl_clora.ops import _checks
from pcl_clora.ops._library import call


class KNN(NamedTuple):
    """Nearest neighbours of every query.

    Attributes:
        dist2: (B, M, k), squared distances in the unit of the points squared, ascending.
        idx: (B, M, k), int64, indices into the N points; equal distances stand in the order of the index.
    """

    dist2: Tensor
    idx: Tensor


class Chamfer(NamedTuple):
    """Nearest neighbours between two clouds, both ways.

    Attributes:
        dist_a: (B, N), squared distance from every point of a to its nearest point of b.
        dist_b: (B, M), the same from b to a.
        idx_a: (B, N), int64, that nearest point as an index into b; the lowest of equals.
        idx_b: (B, M), int64, the same into a.
    """

    dist_a: Tensor
    dist_b: Tensor
    idx_a: Tensor
    idx_b: Tensor


def knn(points: Tensor, queries: Tensor, k: int, *, lengths: Tensor | None = None) -> KNN:
    """Find the k nearest points of every query, exactly.

    Distances are computed as (a - b)^2, coordinate by coordinate, so a point is at distance 0 of itself and
    an offset of the whole cloud costs no more than what the coordinates themselves lose to rounding. Memory
    does not grow with N x M.

    Args:
        points: (B, N, 3), float32 or float64, finite, any unit.
        queries: (B, M, 3), same dtype and unit.
        k: how many neighbours, 1 <= k <= N.
        lengths: (B,), int64, how many points each cloud has, 1 <= lengths[b] <= N, for clouds of different
            size in one tensor; the shortest must have k. What lies behind is never looked at. The queries
            have no lengths: all M are answered. None: all clouds have N points.

    Returns:
        dist2 (B, M, k) ascending and idx (B, M, k); ties go to the lower index. dist2 is differentiable with
        respect to points and queries; idx is not.

    Raises:
        TypeError: if an argument is not a tensor.
        ValueError: if a shape or dtype is wrong, batch, device or dtype differ, k or lengths are out of
            range, or a coordinate is not finite (values are checked on the CPU; an accelerator would have to
            wait, see `check_values`).
    """
    _checks.check_points(points, "points")
    _checks.check_points(queries, "queries")
    _checks.check_pair(points, "points", queries, "queries")
    _checks.check_count(k, "k", points.shape[1], "lower k, or use larger clouds.")
    _checks.check_lengths(lengths, points)
    return KNN(*call("knn", points, queries, k, lengths))


def ball_query(points: Tensor, queries: Tensor, radius: float, num_samples: int) -> Tensor:
    """Find the first points, in the order of the index, that lie within a radius of every query.

    A point lies within where dist2 < radius * radius, both in the dtype of points. Not the nearest: `knn`
    finds those.

    Args:
        points: (B, N, 3), float32 or float64, finite, any unit, N >= 1.
        queries: (B, M, 3), same dtype and unit.
        radius: > 0, in the unit of the points.
        num_samples: S >= 1, how many to return; it may be more than N.

    Returns:
        (B, M, S), int64, ascending indices into N. Where fewer than S points lie within, the first of them
        fills the rest; where none does, all are 0. Not differentiable.

    Raises:
        TypeError: if an argument is not a tensor.
        ValueError: as `knn`, and if radius is not a positive number or a cloud has no points.

    Source: Qi et al., PointNet++, NeurIPS 2017, section 3.2; order, padding and strictness are those of
        pointnet2_ops.
    """
    _checks.check_points(points, "points")
    _checks.check_points(queries, "queries")
    _checks.check_pair(points, "points", queries, "queries")
    _checks.check_radius(radius)
    _checks.check_count(num_samples, "num_samples")
    if points.shape[1] == 0:
        raise UserValueError("points holds clouds of 0 points; a ball query needs at least one.")
    found: Tensor = call("ball_query", points, queries, float(radius), num_samples)
    return found


def three_nn(points: Tensor, queries: Tensor) -> KNN:
    """Find the three nearest points of every query, also in clouds of one or two points.

    Args:
        points: (B, M, 3), float32 or float64, finite: the points that carry features.
        queries: (B, N, 3), same dtype and unit: the points that want features.

    Returns:
        dist2 (B, N, 3) ascending and idx (B, N, 3) as `knn` returns them. Where a cloud has fewer than three
        points the missing neighbours have dist2 = inf and idx = 0, so an inverse-distance weight of them is
        0.

    Raises:
        TypeError: if an argument is not a tensor.
        ValueError: as `knn`, and if there is no point at all.

    Source: Qi et al., PointNet++, NeurIPS 2017, section 3.4; the padding is that of pointnet2_ops.
    """
    _checks.check_points(points, "points")
    dist2, idx = knn(points, queries, min(3, max(1, points.shape[1])))
    missing = 3 - dist2.shape[2]
    if missing:
        dist2, idx = F.pad(dist2, (0, missing), value=torch.inf), F.pad(idx, (0, missing))
    return KNN(dist2, idx)


def chamfer_distance(a: Tensor, b: Tensor) -> Chamfer:
    """Measure how far each of two clouds is from the other, point by point.

    Nothing is reduced: the usual losses are `dist_a.mean() + dist_b.mean()` ("L2") and
    `(dist_a.sqrt().mean() + dist_b.sqrt().mean()) / 2` ("L1"; its gradient is infinite where points
    coincide).

    Args:
        a: (B, N, 3), float32 or float64, finite, any unit, N >= 1.
        b: (B, M, 3), same dtype and unit, M >= 1.

    Returns:
        Squared distances dist_a (B, N) and dist_b (B, M), and the neighbours idx_a and idx_b; ties go to the
        lowest index. The distances are differentiable with respect to a and b.

    Raises:
        TypeError: if an argument is not a tensor.
        ValueError: if a shape or dtype is wrong, batch, device or dtype differ, a cloud has no points, or a
            coordinate is not finite (checked on the CPU; see `check_values`).

    Source: Fan et al., A Point Set Generation Network, CVPR 2017, section 4.2.
    """
    _checks.check_points(a, "a")
    _checks.check_points(b, "b")
    _checks.check_pair(a, "a", b, "b")
    if a.shape[1] == 0 or b.shape[1] == 0:
        raise UserValueError(f"a has {a.shape[1]} points and b {b.shape[1]}; both clouds need at least one.")
    return Chamfer(*call("chamfer_distance", a, b))
