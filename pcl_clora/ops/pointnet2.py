"""The functions of pointnet2_ops and KNN_CUDA under their names, on our kernels, CPU included.

Published code runs by changing one import:

    from pcl_clora.ops import pointnet2 as pointnet2_utils    # was: from pointnet2_ops import pointnet2_utils
    from pcl_clora.ops.pointnet2 import KNN                   # was: from knn_cuda import KNN

Names, signatures, layouts (channels first), dtypes (int32 indices; KNN int64) and gradients are theirs, and
so is the rule of their farthest point sampling. Three things differ: ties go to the lowest index (theirs
follow the order of threads); input need not be contiguous; and wrong input is a ValueError, on the CPU
non-finite coordinates and indices out of range too. New code should use `pcl_clora.ops`.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pcl_clora.errors import UserValueError
from pcl_clora.ops import _checks, interpolation, neighbors, sampling

__all__ = [
    "KNN",
    "GroupAll",
    "QueryAndGroup",
    "ball_query",
    "furthest_point_sample",
    "gather_operation",
    "grouping_operation",
    "three_interpolate",
    "three_nn",
]


def furthest_point_sample(xyz: Tensor, npoint: int) -> Tensor:
    """Choose points that are far apart, from index 0 on, never one within 0.0316 of the origin.

    Args:
        xyz: (B, N, 3), float32 or float64.
        npoint: how many; with more than N, the lowest index that qualifies is repeated.

    Returns:
        (B, npoint), int32. Not differentiable.
    """
    _checks.check_points(xyz, "xyz")
    copies = -(-npoint // max(1, xyz.shape[1]))  # a copy of a chosen point loses every tie to its original
    many = xyz.repeat(1, copies, 1) if copies > 1 else xyz
    return sampling.farthest_point_sample(many, npoint, compat="pointnet2").int()


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


def ball_query(radius: float, nsample: int, xyz: Tensor, new_xyz: Tensor) -> Tensor:
    """Find the first points within a radius of every query, padded with the first of them.

    Args:
        radius: > 0; a point lies within where its squared distance is below radius * radius.
        nsample: how many.
        xyz: (B, N, 3), float32 or float64, the points.
        new_xyz: (B, npoint, 3), same dtype, the queries.

    Returns:
        (B, npoint, nsample), int32; all 0 where no point lies within. Not differentiable.
    """
    return neighbors.ball_query(xyz, new_xyz, radius, nsample).int()


class QueryAndGroup(nn.Module):
    """Group points, and their features, by `ball_query`.

    Args:
        radius: of the ball.
        nsample: points in a group.
        use_xyz: whether the relative coordinates stand before the features.
    """

    def __init__(self, radius: float, nsample: int, use_xyz: bool = True) -> None:
        super().__init__()
        self.radius, self.nsample, self.use_xyz = radius, nsample, use_xyz

    def forward(self, xyz: Tensor, new_xyz: Tensor, features: Tensor | None = None) -> Tensor:
        """(B, N, 3), (B, npoint, 3) and (B, C, N) or None -> (B, 3 + C, npoint, nsample)."""
        idx = ball_query(self.radius, self.nsample, xyz, new_xyz)
        relative = grouping_operation(xyz.transpose(1, 2), idx) - new_xyz.transpose(1, 2).unsqueeze(-1)
        return _joined(
            relative, None if features is None else grouping_operation(features, idx), self.use_xyz
        )


class GroupAll(nn.Module):
    """Make one group of all points; coordinates stay as they are.

    Args:
        use_xyz: whether the coordinates stand before the features.
    """

    def __init__(self, use_xyz: bool = True) -> None:
        super().__init__()
        self.use_xyz = use_xyz

    def forward(self, xyz: Tensor, new_xyz: Tensor | None, features: Tensor | None = None) -> Tensor:
        """(B, N, 3), ignored, and (B, C, N) or None -> (B, 3 + C, 1, N)."""
        grouped = None if features is None else features.unsqueeze(2)
        return _joined(xyz.transpose(1, 2).unsqueeze(2), grouped, self.use_xyz)


class KNN(nn.Module):
    """Find nearest neighbours as `knn_cuda.KNN` does, for points of three coordinates.

    Args:
        k: how many neighbours.
        transpose_mode: True takes and gives points-last-but-one (B, N, 3); False channels first (B, 3, N).
    """

    def __init__(self, k: int, transpose_mode: bool = False) -> None:
        super().__init__()
        self.k, self.transpose_mode = k, transpose_mode

    def forward(self, ref: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """Find the k points of ref nearest to every query.

        Args:
            ref: (B, N, 3), or (B, 3, N) without transpose_mode.
            query: (B, M, 3), or (B, 3, M).

        Returns:
            Distances, not squared, ascending, and int64 indices into N: (B, M, k), or (B, k, M) without
            transpose_mode. Not differentiable.
        """
        with torch.no_grad():
            if self.transpose_mode:
                found = neighbors.knn(ref, query, self.k)
                return found.dist2.sqrt(), found.idx
            _checks.check_points(ref, "ref", channels=None)
            _checks.check_points(query, "query", channels=None)
            found = neighbors.knn(ref.transpose(1, 2), query.transpose(1, 2), self.k)
            return found.dist2.sqrt().transpose(1, 2).contiguous(), found.idx.transpose(1, 2).contiguous()


def _as_int64(idx: Tensor) -> Tensor:
    if isinstance(idx, Tensor) and idx.dtype == torch.int32:
        return idx.long()
    return idx


def _joined(xyz: Tensor, features: Tensor | None, use_xyz: bool) -> Tensor:
    if features is None:
        if not use_xyz:
            raise UserValueError("use_xyz=False leaves nothing where there are no features; pass features.")
        return xyz
    return torch.cat([xyz, features], 1) if use_xyz else features
