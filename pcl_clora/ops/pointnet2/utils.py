"""The module `pointnet2_ops.pointnet2_utils`, with the arguments that votenet's copy of it adds."""

from __future__ import annotations

from typing import SupportsFloat, SupportsIndex

import torch
from torch import Tensor, nn

from pcl_clora.errors import UserTypeError, UserValueError
from pcl_clora.ops import _checks, interpolation, neighbors, sampling

__all__ = [
    "BallQuery",
    "FurthestPointSampling",
    "GatherOperation",
    "GroupAll",
    "GroupingOperation",
    "QueryAndGroup",
    "ThreeInterpolate",
    "ThreeNN",
    "ball_query",
    "furthest_point_sample",
    "gather_operation",
    "grouping_operation",
    "three_interpolate",
    "three_nn",
]


class AssertedError(UserValueError, AssertionError):
    """A wrong argument where the original has an `assert`: code that catches either gets it."""


def furthest_point_sample(xyz: Tensor, npoint: SupportsIndex) -> Tensor:
    """Choose points that are far apart, from index 0 on, never one within 0.0316 of the origin.

    Args:
        xyz: (B, N, 3), float32 or float64.
        npoint: how many, also 0; with more than N, the lowest index that qualifies is repeated.

    Returns:
        (B, npoint), int32. Not differentiable.
    """
    _checks.check_points(xyz, "xyz")
    count = _checks.as_count(npoint, "npoint")
    if count == 0:
        return xyz.new_empty((xyz.shape[0], 0), dtype=torch.int32)
    copies = -(-count // max(1, xyz.shape[1]))  # a copy of a chosen point loses every tie to its original
    many = xyz.repeat(1, copies, 1) if copies > 1 else xyz
    return sampling.farthest_point_sample(many, count, compat="pointnet2").int()


def gather_operation(features: Tensor, idx: Tensor) -> Tensor:
    """Pick features of points.

    Args:
        features: (B, C, N), float32 or float64.
        idx: (B, npoint), int32 or int64, indices into N.

    Returns:
        (B, C, npoint), differentiable with respect to features.
    """
    _checks.check_points(features, "features", channels=None)
    return sampling.gather_points(features.transpose(1, 2), _as_int64(idx)).transpose(1, 2).contiguous()


def grouping_operation(features: Tensor, idx: Tensor) -> Tensor:
    """Pick features of the points of many groups.

    Args:
        features: (B, C, N), float32 or float64.
        idx: (B, npoint, nsample), int32 or int64, indices into N.

    Returns:
        (B, C, npoint, nsample), differentiable with respect to features.
    """
    _checks.check_points(features, "features", channels=None)
    grouped = sampling.gather_points(features.transpose(1, 2), _as_int64(idx))
    return grouped.permute(0, 3, 1, 2).contiguous()


def three_nn(unknown: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Find the three nearest known points of every unknown one.

    Args:
        unknown: (B, n, 3), float32 or float64.
        known: (B, m, 3), same dtype.

    Returns:
        Distances (B, n, 3), not squared, ascending, and indices into m, int32. Where m < 3, the missing ones
        have distance inf and index 0. Not differentiable.
    """
    with torch.no_grad():
        found = neighbors.three_nn(known, unknown)
        return found.dist2.sqrt(), found.idx.int()


def three_interpolate(features: Tensor, idx: Tensor, weight: Tensor) -> Tensor:
    """Blend the features of three points for every target point.

    Args:
        features: (B, C, m), float32 or float64.
        idx: (B, n, 3), int32 or int64, indices into m.
        weight: (B, n, 3), same dtype as features.

    Returns:
        (B, C, n), differentiable with respect to features and, beyond the original, weight.
    """
    _checks.check_points(features, "features", channels=None)
    blended = interpolation.three_interpolate(features.transpose(1, 2), _as_int64(idx), weight)
    return blended.transpose(1, 2).contiguous()


def ball_query(radius: SupportsFloat, nsample: SupportsIndex, xyz: Tensor, new_xyz: Tensor) -> Tensor:
    """Find the first points within a radius of every query, padded with the first of them.

    Args:
        radius: >= 0, a number, or a tensor or numpy array of one; a point lies within where its squared
            distance is below radius * radius, so within a radius of 0 there is none.
        nsample: how many.
        xyz: (B, N, 3), float32 or float64, the points.
        new_xyz: (B, npoint, 3), same dtype, the queries.

    Returns:
        (B, npoint, nsample), int32; all 0 where no point lies within. Not differentiable.
    """
    number, count = _as_radius(radius), _checks.as_count(nsample, "nsample")
    if number == 0.0:  # any other radius checks the rest
        return torch.zeros_like(neighbors.ball_query(xyz, new_xyz, 1.0, count), dtype=torch.int32)
    largest = torch.finfo(torch.float32).max  # for an infinite one; its square is infinite in float32
    return neighbors.ball_query(xyz, new_xyz, min(number, largest), count).int()


class FurthestPointSampling:
    """`furthest_point_sample` as `FurthestPointSampling.apply(xyz, npoint)`."""

    apply = staticmethod(furthest_point_sample)


class GatherOperation:
    """`gather_operation` as `GatherOperation.apply(features, idx)`."""

    apply = staticmethod(gather_operation)


class ThreeNN:
    """`three_nn` as `ThreeNN.apply(unknown, known)`."""

    apply = staticmethod(three_nn)


class ThreeInterpolate:
    """`three_interpolate` as `ThreeInterpolate.apply(features, idx, weight)`."""

    apply = staticmethod(three_interpolate)


class GroupingOperation:
    """`grouping_operation` as `GroupingOperation.apply(features, idx)`."""

    apply = staticmethod(grouping_operation)


class BallQuery:
    """`ball_query` as `BallQuery.apply(radius, nsample, xyz, new_xyz)`."""

    apply = staticmethod(ball_query)


class QueryAndGroup(nn.Module):
    """Group points, and their features, by `ball_query`.

    Args:
        radius: of the ball, as `ball_query` takes it.
        nsample: points in a group.
        use_xyz: whether the relative coordinates stand before the features.
        ret_grouped_xyz: whether the relative coordinates are returned too.
        normalize_xyz: whether the relative coordinates are divided by the radius.
        sample_uniformly: whether a ball of fewer points is filled with random ones of them, where
            `ball_query` repeats the first; the points of a ball then stand in ascending order.
        ret_unique_cnt: whether the number of points of every ball is returned too; needs sample_uniformly.
        generator: of the random points, on the CPU; None is that of `torch.manual_seed`, as in votenet.
    """

    def __init__(
        self,
        radius: SupportsFloat,
        nsample: int,
        use_xyz: bool = True,
        ret_grouped_xyz: bool = False,
        normalize_xyz: bool = False,
        sample_uniformly: bool = False,
        ret_unique_cnt: bool = False,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if ret_unique_cnt and not sample_uniformly:
            raise AssertedError("ret_unique_cnt=True counts what is sampled; pass sample_uniformly=True too.")
        self.radius, self.nsample, self.use_xyz = radius, nsample, use_xyz
        self.ret_grouped_xyz, self.normalize_xyz = ret_grouped_xyz, normalize_xyz
        self.sample_uniformly, self.ret_unique_cnt = sample_uniformly, ret_unique_cnt
        self.generator = generator

    def forward(
        self, xyz: Tensor, new_xyz: Tensor, features: Tensor | None = None
    ) -> Tensor | tuple[Tensor, ...]:
        """Group around the centres.

        Args:
            xyz: (B, N, 3).
            new_xyz: (B, npoint, 3).
            features: (B, C, N), or None.

        Returns:
            (B, 3 + C, npoint, nsample), C of them without use_xyz, 3 without features. With ret_grouped_xyz
            or ret_unique_cnt a tuple of this, the relative coordinates (B, 3, npoint, nsample), and the
            counts (B, npoint), float32 on the CPU.
        """
        if features is None and not self.use_xyz:
            raise AssertedError("use_xyz=False leaves nothing where there are no features; pass features.")
        idx = ball_query(self.radius, self.nsample, xyz, new_xyz)
        counts = _fill_at_random(idx, self.generator) if self.sample_uniformly else None
        relative = grouping_operation(xyz.transpose(1, 2), idx) - new_xyz.transpose(1, 2).unsqueeze(-1)
        if self.normalize_xyz:
            relative = relative / _as_radius(self.radius)
        grouped = None if features is None else grouping_operation(features, idx)
        found = [_joined(relative, grouped, self.use_xyz)]
        if self.ret_grouped_xyz:
            found.append(relative)
        if self.ret_unique_cnt and counts is not None:
            found.append(counts)
        return found[0] if len(found) == 1 else tuple(found)


class GroupAll(nn.Module):
    """Make one group of all points; coordinates stay as they are.

    Args:
        use_xyz: whether the coordinates stand before the features.
        ret_grouped_xyz: whether the coordinates are returned too.
    """

    def __init__(self, use_xyz: bool = True, ret_grouped_xyz: bool = False) -> None:
        super().__init__()
        self.use_xyz, self.ret_grouped_xyz = use_xyz, ret_grouped_xyz

    def forward(
        self, xyz: Tensor, new_xyz: Tensor | None = None, features: Tensor | None = None
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Group all points.

        Args:
            xyz: (B, N, 3).
            new_xyz: ignored.
            features: (B, C, N), or None: then the coordinates alone, whatever use_xyz says.

        Returns:
            (B, 3 + C, 1, N), C of them without use_xyz. With ret_grouped_xyz also the coordinates
            (B, 3, 1, N).
        """
        of_all = xyz.transpose(1, 2).unsqueeze(2)
        grouped = _joined(of_all, None if features is None else features.unsqueeze(2), self.use_xyz)
        return (grouped, of_all) if self.ret_grouped_xyz else grouped


def _as_int64(idx: Tensor) -> Tensor:
    if isinstance(idx, Tensor) and idx.dtype == torch.int32:
        return idx.long()
    return idx


def _as_radius(radius: SupportsFloat) -> float:
    """Return a radius as a number: pybind takes whatever Python can make a float of."""
    item = getattr(radius, "item", None)
    try:
        number = radius if item is None else item()
    except (RuntimeError, ValueError):  # torch and numpy, of more than one number
        raise UserValueError(f"radius={radius!r} is not one number; call once per radius.") from None
    if not isinstance(number, int | float):
        raise UserTypeError(f"radius is a {type(radius).__name__}; pass a number in the unit of the points.")
    if not number >= 0:
        raise UserValueError(
            f"radius={number!r} is neither positive nor 0; pass it in the unit of the points."
        )
    return float(number)


def _fill_at_random(idx: Tensor, generator: torch.Generator | None) -> Tensor:
    """Replace the repeated first index of every ball by random ones of the ball, in place; count its points.

    One draw per ball, in their order: the numbers that votenet draws from the same state of the generator.
    """
    counts = torch.zeros(idx.shape[:2])
    for ball, count in zip(idx.flatten(0, 1), counts.view(-1), strict=True):
        inside = ball.unique()
        drawn = torch.randint(len(inside), (len(ball) - len(inside),), generator=generator)
        ball.copy_(torch.cat([inside, inside[drawn.to(inside.device)]]))
        count.fill_(len(inside))
    return counts


def _joined(xyz: Tensor, features: Tensor | None, use_xyz: bool) -> Tensor:
    if features is None:
        return xyz
    return torch.cat([xyz, features], 1) if use_xyz else features
