"""The CUDA packages pointnet2_ops and knn_cuda behind our schemas, as far as they can do what those ask.

They take float32 on CUDA, channels first, and give int32 indices and distances that are not squared;
pointnet2_ops samples from index 0 and skips points near the origin. What they cannot do is refused by name.
Their distances may be fused by the compiler, so two points whose distances differ in the last place may swap;
the distances returned here are recomputed from the indices in our order of operations.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from pcl_clora.errors import MissingPackageError, UserValueError
from pcl_clora.ops import _served, reference

DEVICE_TYPE = "cuda"  # a constant so that tests can put packages of the same signatures in their place
REMEDY = "choose use_backend('auto')"


def kernels() -> dict[str, Callable[..., Any]]:
    """Import both packages and return the kernels made of them.

    Raises:
        ImportError: naming the package and where to get it.
    """
    _package("pointnet2_ops.pointnet2_utils")
    _package("knn_cuda")
    ours = (farthest_point_sample, knn, ball_query, gather_points, group_points, three_interpolate)
    return {kernel.__name__: _unless_empty(kernel) for kernel in ours}


def farthest_point_sample(
    points: Tensor,
    num_samples: int,
    start_index: int = 0,
    skip_origin: bool = False,
    lengths: Tensor | None = None,
) -> Tensor:
    """Call furthest_point_sample, which knows one start and one rule."""
    _refuse(points, "farthest_point_sample", lengths)
    if not skip_origin:
        raise UserValueError(
            "backend 'pointnet2' samples by its own rule only: pass compat='pointnet2' to get it, or "
            f"{REMEDY}."
        )
    if start_index != 0:
        raise UserValueError(
            f"backend 'pointnet2' starts at index 0, start_index={start_index} was asked; {REMEDY}."
        )
    chosen: Tensor = _pointnet2().furthest_point_sample(points.contiguous(), num_samples)
    return chosen.long()


def knn(points: Tensor, queries: Tensor, k: int, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Call KNN, then recompute the distances and sort by them and the index."""
    _refuse(points, "knn", lengths)
    search = _package("knn_cuda").KNN(k=k, transpose_mode=True)
    idx: Tensor = search(points.contiguous(), queries.contiguous())[1].long().sort(dim=2).values
    x, y, z = (_gather(points, idx) - queries.unsqueeze(2)).unbind(3)
    dist2, order = ((x * x + y * y) + z * z).sort(dim=2, stable=True)
    return dist2, idx.gather(2, order)


def ball_query(points: Tensor, queries: Tensor, radius: float, num_samples: int) -> Tensor:
    """Call ball_query."""
    _refuse(points, "ball_query")
    found: Tensor = _pointnet2().ball_query(radius, num_samples, points.contiguous(), queries.contiguous())
    return found.long()


def gather_points(points: Tensor, idx: Tensor) -> Tensor:
    """Call gather_operation."""
    _refuse(points, "gather_points")
    return _gather(points, idx)


def group_points(
    points: Tensor,
    num_groups: int,
    group_size: int,
    start_index: int = 0,
    skip_origin: bool = False,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Put patches together from the three calls that published code makes."""
    _refuse(points, "group_points", lengths)
    if num_groups == points.shape[1]:
        center_idx = torch.arange(num_groups, device=points.device).repeat(len(points), 1)
    else:
        center_idx = farthest_point_sample(points, num_groups, start_index, skip_origin)
    center = _gather(points, center_idx)
    _, idx = knn(points, center, group_size)
    return center, _gather(points, idx) - center.unsqueeze(2), idx, center_idx


def three_interpolate(features: Tensor, idx: Tensor, weight: Tensor) -> Tensor:
    """Call three_interpolate."""
    _refuse(features, "three_interpolate")
    channels_first = features.transpose(1, 2).contiguous()
    blended: Tensor = _pointnet2().three_interpolate(
        channels_first, idx.int().contiguous(), weight.contiguous()
    )
    return blended.transpose(1, 2).contiguous()


def _unless_empty(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Leave out calls that have nothing to do: a grid of no blocks, and a stack of no clouds, are errors."""

    @wraps(kernel)
    def called(*arguments: Any, **named: Any) -> Any:
        if any(isinstance(value, Tensor) and value.numel() == 0 for value in arguments):
            return getattr(reference, kernel.__name__)(*arguments, **named)
        return kernel(*arguments, **named)

    return called


def _gather(points: Tensor, idx: Tensor) -> Tensor:
    """(B, N, C) and (B, ...) -> (B, ..., C)."""
    flat = idx.reshape(len(idx), -1).int()
    picked: Tensor = _pointnet2().gather_operation(points.transpose(1, 2).contiguous(), flat)
    return picked.transpose(1, 2).reshape(*idx.shape, points.shape[2]).contiguous()


def _refuse(points: Tensor, op: str, lengths: Tensor | None = None) -> None:
    if points.device.type != DEVICE_TYPE:
        raise UserValueError(
            f"backend 'pointnet2' runs {op} on CUDA only, the tensor is on {points.device}; move it, or "
            f"{REMEDY}."
        )
    if points.dtype != torch.float32:
        dtype = str(points.dtype).removeprefix("torch.")
        raise UserValueError(
            f"backend 'pointnet2' takes float32 only, not {dtype}; use .float(), or {REMEDY}."
        )
    if lengths is not None:
        raise UserValueError(f"backend 'pointnet2' has no {op} with lengths; {REMEDY}.")


def _pointnet2() -> Any:
    return _package("pointnet2_ops.pointnet2_utils")


def _package(module: str) -> Any:
    try:
        found = import_module(module)
    except ImportError as error:
        raise MissingPackageError(
            f"backend 'pointnet2' needs the packages pointnet2_ops and knn_cuda, and {module} cannot be "
            f"imported ({error}); install both from their repositories, or {REMEDY}. To run code written for "
            "them without them, import pcl_clora.ops.pointnet2 instead."
        ) from error
    if _served.is_served(found):
        raise MissingPackageError(
            f"backend 'pointnet2' needs the package {module}, and pcl_clora.ops.pointnet2.install() serves "
            f"our own kernels under that name; remove() what it serves, or {REMEDY}."
        )
    return found
