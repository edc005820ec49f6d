"""What every op means, in plain torch: these kernels run on any device and define the bits of all others.

A squared distance is always ((dx * dx + dy * dy) + dz * dz) with d = a - b, each step rounded on its own: no
|a|^2 - 2ab + |b|^2, no fused multiply-add. It is exact for coincident points, is as stable under a large
offset as the dtype allows, and any compiler that is told not to contract reproduces it.

The kernels work on coordinate planes (3, B, N), because torch runs fastest along a contiguous last axis, and
in pieces of the distance matrix that stay in the cache, so memory never grows with N x M. On the CPU they
refuse non-finite coordinates and indices out of range. On another device such a check would wait for the
device, so it is left out: the indices of a cloud with NaN in it are then unspecified, but lie in range.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

ORIGIN_DIST2 = 1e-3  # pointnet2_ops never picks a point this close (squared) to the origin
POINTNET2_START = 1e10  # nor does it know a distance above this

_CPU_PIECE = 1 << 17  # numbers in one piece: half a MiB in float32, a few of which fit an L2 cache
_DEVICE_PIECE = 1 << 25  # an accelerator wants few, large launches


def farthest_point_sample(
    points: Tensor, num_samples: int, start_index: int = 0, skip_origin: bool = False
) -> Tensor:
    """Choose points far apart; see `pcl_clora.ops.farthest_point_sample`."""
    _refuse_non_finite(points, "points")
    return _farthest_point_sample(_planes(points), num_samples, start_index, skip_origin)


def _farthest_point_sample(planes: Tensor, num_samples: int, start_index: int, skip_origin: bool) -> Tensor:
    _, batch, num_points = planes.shape
    chosen = torch.empty((num_samples, batch), dtype=torch.int64, device=planes.device)
    if batch == 0:
        return chosen.t().contiguous()
    nearest = planes.new_full((batch, num_points), POINTNET2_START if skip_origin else torch.inf)
    if skip_origin:  # a distance of -1 loses every comparison and survives every minimum
        x, y, z = planes.unbind(0)
        nearest.masked_fill_(((x * x + y * y) + z * z).double() <= ORIGIN_DIST2, -1.0)
    delta = torch.empty_like(planes)
    dx, dy, dz = delta.unbind(0)
    last = torch.full((batch, 1), start_index, dtype=torch.int64, device=planes.device)
    last_of_planes = last.expand(3, batch, 1)
    last_point = planes.new_empty((3, batch, 1))
    farthest = planes.new_empty((batch, 1))
    slots = chosen.unsqueeze(-1).unbind(0)
    slots[0].copy_(last)
    for slot in slots[1:]:
        torch.gather(planes, 2, last_of_planes, out=last_point)
        torch.sub(planes, last_point, out=delta)
        delta.mul_(delta)
        dx.add_(dy).add_(dz)
        torch.minimum(nearest, dx, out=nearest)
        torch.max(nearest, 1, keepdim=True, out=(farthest, last))  # torch promises the first maximum
        slot.copy_(last)
    return chosen.t().contiguous()


def knn(points: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Find the k nearest points of every query; see `pcl_clora.ops.knn`."""
    _refuse_non_finite(points, "points")
    _refuse_non_finite(queries, "queries")
    return _knn(_planes(points), _planes(queries), k)


def _knn(points: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    shape = (points.shape[1], queries.shape[2], k)
    dist2 = points.new_empty(shape)
    idx = torch.empty(shape, dtype=torch.int64, device=points.device)
    for clouds, rows in _pieces(points, queries):
        piece = _pairwise_dist2(points[:, clouds], queries[:, clouds, rows])
        piece_dist2, piece_idx = _smallest(piece, k)
        dist2[clouds, rows] = piece_dist2
        idx[clouds, rows] = piece_idx
    return dist2, idx


def _smallest(dist2: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k smallest of the last axis in ascending order, equal ones by index."""
    if dist2.dtype != torch.float32:
        values, idx = torch.sort(dist2, stable=True)
        return values[..., :k], idx[..., :k]
    # torch.topk leaves the order of equal values open. The bits of a float >= 0 order as an integer does, so
    # (bits, index) packed into one int64 has no equal values, and is quicker to compare than floats.
    index = torch.arange(dist2.shape[-1], device=dist2.device)
    keys = dist2.view(torch.int32).to(torch.int64).bitwise_left_shift_(32).bitwise_or_(index)
    idx = torch.topk(keys, k, largest=False, sorted=True).values.bitwise_and_(0xFFFFFFFF)
    return dist2.gather(-1, idx), idx


def gather_points(points: Tensor, idx: Tensor) -> Tensor:
    """Pick points by index; see `pcl_clora.ops.gather_points`."""
    _refuse_out_of_range(idx, points.shape[1])
    return _gather_points(points, idx)


def _gather_points(points: Tensor, idx: Tensor) -> Tensor:
    batch, num_points, channels = points.shape
    flat = _flat_index(idx, num_points)
    return points.reshape(batch * num_points, channels).index_select(0, flat).view(*idx.shape, channels)


def gather_points_backward(grad: Tensor, idx: Tensor, num_points: int) -> Tensor:
    """Add what was picked back to where it came from: the transpose of `gather_points`."""
    batch, channels = grad.shape[0], grad.shape[-1]
    total = grad.new_zeros((batch * num_points, channels))
    total.index_add_(0, _flat_index(idx, num_points), grad.reshape(idx.numel(), channels))
    return total.view(batch, num_points, channels)


def group_points(
    points: Tensor, num_groups: int, group_size: int, start_index: int = 0, skip_origin: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cut clouds into patches; see `pcl_clora.ops.group_points`. Also returns the indices of the centres."""
    _refuse_non_finite(points, "points")
    batch, num_points, _ = points.shape
    planes = _planes(points)
    if num_groups == num_points:
        center_idx = torch.arange(num_points, device=points.device).repeat(batch, 1)
    else:
        center_idx = _farthest_point_sample(planes, num_groups, start_index, skip_origin)
    center = _gather_points(points, center_idx)
    _, idx = _knn(planes, _planes(center), group_size)
    neighborhood = _gather_points(points, idx).sub_(center.unsqueeze(2))
    return center, neighborhood, idx, center_idx


def three_interpolate(features: Tensor, idx: Tensor, weight: Tensor) -> Tensor:
    """Blend three features per point; see `pcl_clora.ops.three_interpolate`."""
    _refuse_out_of_range(idx, features.shape[1])
    batch, num_points, channels = features.shape
    flat = _flat_index(idx, num_points).view(-1, 3)
    blended = F.embedding_bag(
        flat,
        features.reshape(batch * num_points, channels),
        mode="sum",
        per_sample_weights=weight.reshape(-1, 3),
    )
    return blended.view(batch, idx.shape[1], channels)


def three_interpolate_backward(grad: Tensor, idx: Tensor, weight: Tensor, num_points: int) -> Tensor:
    """Gradient of `three_interpolate` with respect to its features."""
    batch, num_targets, channels = grad.shape
    total = grad.new_zeros((batch * num_points, channels))
    flat_grad, flat_weight = grad.reshape(-1, channels), weight.reshape(-1, 3)
    flat_idx = _flat_index(idx, num_points).view(-1, 3)
    step = max(1, _budget(grad) // channels)
    for start in range(0, batch * num_targets, step):
        rows = slice(start, start + step)
        for corner in range(3):
            share = flat_grad[rows] * flat_weight[rows, corner, None]
            total.index_add_(0, flat_idx[rows, corner], share)
    return total.view(batch, num_points, channels)


def chamfer_distance(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Find the nearest neighbours between two clouds; see `pcl_clora.ops.chamfer_distance`."""
    _refuse_non_finite(a, "a")
    _refuse_non_finite(b, "b")
    planes_a, planes_b = _planes(a), _planes(b)
    dist_a, idx_a = a.new_empty(a.shape[:2]), torch.empty(a.shape[:2], dtype=torch.int64, device=a.device)
    dist_b = b.new_full(b.shape[:2], torch.inf)
    idx_b = torch.zeros(b.shape[:2], dtype=torch.int64, device=b.device)
    for clouds, rows in _pieces(planes_b, planes_a):
        piece = _pairwise_dist2(planes_b[:, clouds], planes_a[:, clouds, rows])
        dist_a[clouds, rows], idx_a[clouds, rows] = piece.min(2)
        nearest, row = piece.min(1)
        closer = nearest < dist_b[clouds]  # strict: an earlier row keeps a tie
        dist_b[clouds] = torch.where(closer, nearest, dist_b[clouds])
        idx_b[clouds] = torch.where(closer, row + rows.start, idx_b[clouds])
    return dist_a, dist_b, idx_a, idx_b


def _planes(points: Tensor) -> Tensor:
    """(B, N, 3) -> (3, B, N), contiguous."""
    return points.permute(2, 0, 1).contiguous()


def _pieces(points: Tensor, queries: Tensor) -> Iterator[tuple[slice, slice]]:
    """Cut the (B, M, N) distances into pieces of bounded size: whole clouds, or rows of one cloud."""
    _, batch, num_points = points.shape
    num_queries = queries.shape[2]
    budget = _budget(points)
    if num_queries == 0:
        return
    if num_queries * num_points <= budget:
        step = budget // (num_queries * num_points)
        for start in range(0, batch, step):
            yield slice(start, min(start + step, batch)), slice(0, num_queries)
        return
    step = max(1, budget // num_points)
    for cloud in range(batch):
        for start in range(0, num_queries, step):
            yield slice(cloud, cloud + 1), slice(start, min(start + step, num_queries))


def _budget(tensor: Tensor) -> int:
    return _CPU_PIECE if tensor.device.type == "cpu" else _DEVICE_PIECE


def _pairwise_dist2(points: Tensor, queries: Tensor) -> Tensor:
    """(3, B, N) and (3, B, M) -> (B, M, N), in the order of operations that every backend keeps."""
    x, y, z = (queries[axis].unsqueeze(2) - points[axis].unsqueeze(1) for axis in range(3))
    return x.mul_(x).add_(y.mul_(y)).add_(z.mul_(z))


def _flat_index(idx: Tensor, num_points: int) -> Tensor:
    """Turn indices within each cloud into a list of indices into the points of all clouds."""
    offset = torch.arange(idx.shape[0], device=idx.device) * num_points
    return (idx + offset.view(-1, *[1] * (idx.dim() - 1))).view(-1)


def _refuse_non_finite(points: Tensor, name: str) -> None:
    if points.device.type != "cpu" or points.numel() == 0 or torch.isfinite(points.abs().amax()):
        return
    cloud, row, axis = (~torch.isfinite(points)).nonzero()[0].tolist()
    raise ValueError(
        f"{name}[{cloud}, {row}, {axis}] is {points[cloud, row, axis].item()}; distances to it mean nothing. "
        "Remove non-finite points when reading the cloud."
    )


def _refuse_out_of_range(idx: Tensor, num_points: int) -> None:
    if idx.device.type != "cpu" or idx.numel() == 0:
        return
    low, high = (int(bound) for bound in torch.aminmax(idx))
    if low < 0 or high >= num_points:
        raise ValueError(
            f"idx holds {low if low < 0 else high}, which is not an index into {num_points} points; "
            "indices go from 0 to the number of points - 1 within each cloud."
        )
