"""The package `knn_cuda`: nearest neighbours of points with any number of coordinates."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pcl_clora.errors import UserValueError
from pcl_clora.ops import _checks, _values, neighbors, reference

__all__ = ["KNN", "knn"]


class KNN(nn.Module):
    """Find nearest neighbours as `knn_cuda.KNN` does.

    Args:
        k: how many neighbours.
        transpose_mode: True takes and gives points-last-but-one (B, N, C); False channels first (B, C, N).
    """

    def __init__(self, k: int, transpose_mode: bool = False) -> None:
        super().__init__()
        self.k, self._t = k, transpose_mode

    def forward(self, ref: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """Find the k points of ref nearest to every query; ties go to the lowest index.

        Args:
            ref: (B, N, C), or (B, C, N) without transpose_mode; any real dtype, computed in float32.
            query: (B, M, C), or (B, C, M).

        Returns:
            Distances, not squared, ascending, float32, and int64 indices into N: (B, M, k), or (B, k, M)
            without transpose_mode. Not differentiable.
        """
        return _search(ref, query, self.k, channels_first=not self._t)


def knn(ref: Tensor, query: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Find the k points of one cloud nearest to every query, channels first.

    Args:
        ref: (C, N); any real dtype, computed in float32.
        query: (C, M).
        k: how many.

    Returns:
        Distances (k, M), not squared, ascending, float32, and int64 indices into N. Not differentiable.
    """
    for name, value in (("ref", ref), ("query", query)):
        if isinstance(value, Tensor) and value.dim() != 2:
            raise UserValueError(
                f"{name} has shape {tuple(value.shape)}; knn takes one cloud, (C, N): KNN takes a batch."
            )
    alone = [value[None] if isinstance(value, Tensor) else value for value in (ref, query)]
    dist, idx = _search(alone[0], alone[1], k, channels_first=True)
    return dist[0], idx[0]


@torch.no_grad()
def _search(ref: Tensor, query: Tensor, k: int, *, channels_first: bool) -> tuple[Tensor, Tensor]:
    points, queries = _as_float(ref), _as_float(query)
    _checks.check_points(points, "ref", channels=None)
    _checks.check_points(queries, "query", channels=None)
    if channels_first:
        points, queries = points.transpose(1, 2), queries.transpose(1, 2)
    _checks.check_pair(points, "ref", queries, "query")
    channels = points.shape[2]
    if channels != queries.shape[2]:
        raise UserValueError(
            f"ref has {channels} channels and query {queries.shape[2]}; both need the same. "
            "With transpose_mode=True channels are the last axis, without it the second."
        )
    k = _checks.as_count(k, "k")
    _checks.check_count(k, "k", points.shape[1], "lower k, or use larger clouds.")
    if channels <= 3:  # an axis of zeros changes no bit of a distance
        dist2, idx = neighbors.knn(F.pad(points, (0, 3 - channels)), F.pad(queries, (0, 3 - channels)), k)
    else:  # the compiled kernels know three axes
        if _values.are_checked_here(points):
            _values.check_knn(points, queries, k)
        dist2, idx = reference.knn(points, queries, k)
    dist = dist2.sqrt()
    if channels_first:
        return dist.transpose(1, 2).contiguous(), idx.transpose(1, 2).contiguous()
    return dist, idx


def _as_float(value: Tensor) -> Tensor:
    """Cast as the original does: halves and integers are welcome, and doubles lose digits."""
    return value.float() if isinstance(value, Tensor) and not value.is_complex() else value
