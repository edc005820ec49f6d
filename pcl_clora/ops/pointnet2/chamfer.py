"""The extension `chamfer` of the field's `extensions.chamfer_dist`: distances and their gradient, by hand."""

from __future__ import annotations

import torch
from torch import Tensor

from pcl_clora.ops import _checks, neighbors
from pcl_clora.ops._library import chamfer_gradient

__all__ = ["backward", "forward"]


@torch.no_grad()
def forward(xyz1: Tensor, xyz2: Tensor) -> list[Tensor]:
    """Find the nearest neighbours between two clouds.

    Args:
        xyz1: (B, N, 3), float32 or float64.
        xyz2: (B, M, 3), same dtype.

    Returns:
        Squared distances (B, N) and (B, M), and the neighbours as int32 indices, (B, N) into xyz2 and (B, M)
        into xyz1. Not differentiable: the code that imports this calls `backward` itself.
    """
    found = neighbors.chamfer_distance(xyz1, xyz2)
    return [found.dist_a, found.dist_b, found.idx_a.int(), found.idx_b.int()]


@torch.no_grad()
def backward(
    xyz1: Tensor, xyz2: Tensor, idx1: Tensor, idx2: Tensor, grad_dist1: Tensor, grad_dist2: Tensor
) -> list[Tensor]:
    """Return the gradients of both clouds.

    Args:
        xyz1: (B, N, 3), as given to `forward`.
        xyz2: (B, M, 3), as given to `forward`.
        idx1: (B, N), int32 or int64, as `forward` returned it.
        idx2: (B, M), int32 or int64, as `forward` returned it.
        grad_dist1: (B, N), gradient of the first distances.
        grad_dist2: (B, M), gradient of the second distances.

    Returns:
        Gradients (B, N, 3) and (B, M, 3).
    """
    _checks.check_points(xyz1, "xyz1")
    _checks.check_points(xyz2, "xyz2")
    return [*chamfer_gradient(xyz1, xyz2, idx1.long(), idx2.long(), grad_dist1, grad_dist2)]
