"""Carrying features from a few points to many."""

from __future__ import annotations

from torch import Tensor

from pcl_clora.errors import UserValueError
from pcl_clora.ops import _checks
from pcl_clora.ops._library import call


def three_interpolate(features: Tensor, idx: Tensor, weight: Tensor) -> Tensor:
    """Blend the features of three points for every target point.

    result[b, n] = weight[b, n, 0] * features[b, idx[b, n, 0]] + ... over three points.
    The weights are used as they are; the usual choice is inverse distances of `three_nn` that sum to 1.

    Args:
        features: (B, M, C), float32 or float64.
        idx: (B, N, 3), int64, indices into M.
        weight: (B, N, 3), same dtype as features.

    Returns:
        (B, N, C), same dtype. Differentiable with respect to features and weight, twice.

    Raises:
        TypeError: if an argument is not a tensor.
        ValueError: if a shape or dtype is wrong, batch, device or dtype differ, or an index is out of range
            (checked on the CPU; an accelerator reports it in its own way).

    Source: Qi et al., PointNet++, NeurIPS 2017, section 3.4.
    """
    _checks.check_points(features, "features", channels=None)
    _checks.check_index(idx, "idx")
    _checks.check_points(weight, "weight")
    _checks.check_pair(features, "features", idx, "idx", dtype=False)
    _checks.check_pair(features, "features", weight, "weight")
    if idx.shape != weight.shape:
        raise UserValueError(
            f"idx has shape {tuple(idx.shape)} and weight {tuple(weight.shape)}; both must be (B, N, 3)."
        )
    blended: Tensor = call("three_interpolate", features, idx, weight)
    return blended
