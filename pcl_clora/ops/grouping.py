"""Cutting a cloud into overlapping patches."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from pcl_clora.ops import _checks
from pcl_clora.ops._library import call
from pcl_clora.ops.sampling import Compat


class PointGroups(NamedTuple):
    """Patches of a cloud.

    Attributes:
        center: (B, G, 3), the centres, points of the cloud.
        neighborhood: (B, G, K, 3), the nearest points of every centre minus the centre, nearest first; the
            first is the centre itself or a copy of it, so it is zero.
        idx: (B, G, K), int64, which points of the cloud they are.
    """

    center: Tensor
    neighborhood: Tensor
    idx: Tensor


def group_points(
    points: Tensor,
    num_groups: int,
    group_size: int,
    *,
    start_index: int = 0,
    compat: Compat = "none",
    lengths: Tensor | None = None,
) -> PointGroups:
    """Cut every cloud into patches: farthest points as centres, their nearest points, relative coordinates.

    Where `num_groups` equals the number of points of a cloud, every point is a centre and they keep their
    order: sampling could only permute them.

    Args:
        points: (B, N, 3), float32 or float64, finite, any unit.
        num_groups: G, how many patches, 1 <= G <= N.
        group_size: K, points in a patch, 1 <= K <= N.
        start_index: index of the first centre in every cloud.
        compat: as in `farthest_point_sample`.
        lengths: (B,), int64, how many points each cloud has, as in `farthest_point_sample`; the shortest must
            have room for num_groups, group_size and start_index.

    Returns:
        center (B, G, 3), neighborhood (B, G, K, 3) and idx (B, G, K). center and neighborhood are
        differentiable with respect to points, the choice of points is not.

    Raises:
        TypeError: if points is not a tensor.
        ValueError: as `farthest_point_sample` and `knn`.

    Source: Pang et al., Point-MAE, ECCV 2022, section 3.1.
    """
    _checks.check_points(points, "points")
    skip_origin = _checks.check_compat(compat)
    _checks.check_count(num_groups, "num_groups", points.shape[1], "lower num_groups, or use larger clouds.")
    _checks.check_count(group_size, "group_size", points.shape[1], "lower group_size, or use larger clouds.")
    _checks.check_start_index(start_index, points.shape[1])
    _checks.check_lengths(lengths, points)
    center, neighborhood, idx, _ = call(
        "group_points", points, num_groups, group_size, start_index, skip_origin, lengths
    )
    return PointGroups(center, neighborhood, idx)
