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

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from pcl_clora.ops import _values

ORIGIN_DIST2 = 1e-3  # pointnet2_ops never picks a point this close (squared) to the origin
POINTNET2_START = 1e10  # nor does it know a distance above this

_CPU_PIECE = 1 << 17  # numbers in one piece: half a MiB in float32, a few of which fit an L2 cache
_DEVICE_PIECE = 1 << 25  # an accelerator wants few, large launches
_INDEX_BITS = (1 << 32) - 1


def farthest_point_sample(
    points: Tensor,
    num_samples: int,
    start_index: int = 0,
    skip_origin: bool = False,
    lengths: Tensor | None = None,
) -> Tensor:
    """Choose points far apart; see `pcl_clora.ops.farthest_point_sample`."""
    if points.device.type == "cpu":
        _values.check_farthest_point_sample(points, num_samples, start_index, skip_origin, lengths)
    points = _values.existing(points, lengths)
    return _farthest_point_sample(_planes(points), num_samples, start_index, skip_origin, lengths)


def _farthest_point_sample(
    planes: Tensor, num_samples: int, start_index: int, skip_origin: bool, lengths: Tensor | None = None
) -> Tensor:
    _, batch, num_points = planes.shape
    if batch == 0:
        return torch.empty((0, num_samples), dtype=torch.int64, device=planes.device)
    nearest = planes.new_full((batch, num_points), POINTNET2_START if skip_origin else torch.inf)
    if skip_origin:  # a distance of -1 loses every comparison and survives every minimum
        x, y, z = planes.unbind(0)
        nearest.masked_fill_(((x * x + y * y) + z * z).double() <= ORIGIN_DIST2, -1.0)
    if lengths is not None:
        nearest.masked_fill_(_values.behind(lengths, num_points), -torch.inf)
    # torch finds maxima quickly, but not where they are: look for the block first, then within it. The lowest
    # block that holds the maximum holds its lowest index, and torch.max promises the first of equals.
    height = 32 if num_points >= 1024 else 1
    planes, nearest = _as_columns(planes, height, torch.inf), _as_columns(nearest, height, -torch.inf)
    width = planes.shape[-1]
    flat = planes.flatten(2)
    delta = torch.empty_like(planes)
    dx, dy, dz = delta.unbind(0)
    last = planes.new_empty((3, batch, 1))
    block_max, block_nearest = planes.new_empty((batch, width)), planes.new_empty((batch, height, 1))
    largest = planes.new_empty((batch, 1))
    block, row = (torch.empty_like(largest, dtype=torch.int64) for _ in range(2))
    whole_block, column = block.unsqueeze(1).expand(batch, height, 1), block_nearest.squeeze(2)
    place = torch.empty((num_samples, batch, 1), dtype=torch.int64, device=planes.device)
    place[0] = start_index % height * width + start_index // height
    of_axes = place.unsqueeze(1).expand(num_samples, 3, batch, 1)
    for before, now in zip(of_axes[:-1].unbind(0), place[1:].unbind(0), strict=True):
        torch.gather(flat, 2, before, out=last)
        torch.sub(planes, last.unsqueeze(3), out=delta)
        delta.mul_(delta)
        dx.add_(dy).add_(dz)
        torch.minimum(nearest, dx, out=nearest)
        torch.amax(nearest, 1, out=block_max)
        torch.max(block_max, 1, keepdim=True, out=(largest, block))
        torch.gather(nearest, 2, whole_block, out=block_nearest)
        torch.max(column, 1, keepdim=True, out=(largest, row))
        torch.add(block, row, alpha=width, out=now)
    place = place.squeeze(2).t().contiguous()
    return place % width * height + place // width


def knn(points: Tensor, queries: Tensor, k: int, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Find the k nearest points of every query; see `pcl_clora.ops.knn`."""
    if points.device.type == "cpu" and not torch.compiler.is_compiling():  # a graph holds no such check
        _values.check_knn(points, queries, k, lengths)
    points = _values.existing(points, lengths)
    return _knn(_planes(points), _planes(queries), k, lengths)


def _knn(points: Tensor, queries: Tensor, k: int, lengths: Tensor | None = None) -> tuple[Tensor, Tensor]:
    _, batch, num_points = points.shape
    if lengths is not None:  # infinitely far, and behind every point of the cloud that is as far
        points = points.masked_fill(_values.behind(lengths, num_points), torch.inf)
    shape = (batch, queries.shape[2], k)
    dist2 = points.new_empty(shape)
    idx = torch.empty(shape, dtype=torch.int64, device=points.device)
    height = 1
    if points.dtype == torch.float32:
        balanced = math.sqrt(num_points / (2 * max(k, 1)))  # both searches cost the same
        height = 1 << int(math.log2(max(1.0, balanced)))
        points = _as_columns(points, height, torch.inf).flatten(2)
    for clouds, rows in _pieces(points, queries):
        piece = _pairwise_dist2(points[:, clouds], queries[:, clouds, rows])
        smallest = _smallest(piece, k, height) if piece.dtype == torch.float32 else _sorted(piece, k)
        dist2[clouds, rows], idx[clouds, rows] = smallest
    return dist2, idx.clamp_(max=num_points - 1)  # behind NaN there is only the filling of the last block


def _sorted(dist2: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k smallest of the last axis in ascending order, equal ones by index."""
    values, idx = torch.sort(dist2, stable=True)
    return values[..., :k], idx[..., :k]


def _smallest(dist2: Tensor, k: int, height: int) -> tuple[Tensor, Tensor]:
    """Do what `_sorted` does, faster, for float32 in the layout of `_as_columns`.

    torch.topk leaves the order of equal values open. The bits of a float >= 0 order as an integer does, so
    (bits, index) packed into one int64 has no equals, and is quicker to compare than a float.

    The k nearest lie in the k blocks whose nearest points come first: were one of them in another block, each
    of those k blocks would hold a point that comes before it.
    """
    blocks = dist2.view(*dist2.shape[:-1], height, -1)
    step = torch.arange(height, device=dist2.device).unsqueeze(1)
    block = torch.arange(blocks.shape[-1], device=dist2.device)
    if height > 1:
        best = torch.topk(_pack(blocks.amin(-2), block), k, largest=False, sorted=False).values
        block = best.bitwise_and_(_INDEX_BITS).unsqueeze(-2)
        blocks = blocks.gather(-1, block.expand(*blocks.shape[:-1], k))
    keys = _pack(blocks, block * height + step).flatten(-2)
    keys = torch.topk(keys, k, largest=False, sorted=True).values
    return (keys >> 32).to(torch.int32).view(torch.float32), keys.bitwise_and_(_INDEX_BITS)


def _pack(dist2: Tensor, idx: Tensor) -> Tensor:
    return dist2.view(torch.int32).to(torch.int64).bitwise_left_shift_(32).bitwise_or_(idx)


def ball_query(points: Tensor, queries: Tensor, radius: float, num_samples: int) -> Tensor:
    """Find the first points within a radius of every query; see `pcl_clora.ops.ball_query`."""
    if points.device.type == "cpu":
        _values.check_ball_query(points, queries, radius, num_samples)
    batch, num_points, _ = points.shape
    idx = torch.zeros((batch, queries.shape[1], num_samples), dtype=torch.int64, device=points.device)
    radius2 = torch.tensor(radius, dtype=points.dtype).square().item()
    number = torch.arange(num_points, dtype=torch.int32, device=points.device)
    planes, of_queries = _planes(points), _planes(queries)
    for clouds, rows in _pieces(planes, of_queries):
        inside = _pairwise_dist2(planes[:, clouds], of_queries[:, clouds, rows]) < radius2
        candidates = torch.where(inside, number, num_points)
        first = candidates.topk(min(num_samples, num_points), largest=False, sorted=True).values
        hit = first < num_points
        nothing = ~hit[..., :1]
        padded = torch.where(hit, first, first[..., :1]).masked_fill_(nothing, 0)
        idx[clouds, rows] = padded[..., :1].to(torch.int64)
        idx[clouds, rows, : padded.shape[-1]] = padded.to(torch.int64)
    return idx


def gather_points(points: Tensor, idx: Tensor) -> Tensor:
    """Pick points by index; see `pcl_clora.ops.gather_points`."""
    if points.device.type == "cpu":
        _values.check_gather_points(points, idx)
    return _gather_points(points, idx)


def _gather_points(points: Tensor, idx: Tensor) -> Tensor:
    batch, num_points, channels = points.shape
    flat = _flat_index(idx, num_points)
    return points.reshape(batch * num_points, channels).index_select(0, flat).view(*idx.shape, channels)


def gather_points_backward(grad: Tensor, idx: Tensor, num_points: int) -> Tensor:
    """Add what was picked back to where it came from: the transpose of `gather_points`."""
    if grad.device.type == "cpu":
        _values.check_gather_points_backward(grad, idx, num_points)
    batch, channels = grad.shape[0], grad.shape[-1]
    total = grad.new_zeros((batch * num_points, channels))
    total.index_add_(0, _flat_index(idx, num_points), grad.reshape(idx.numel(), channels))
    return total.view(batch, num_points, channels)


def group_points(
    points: Tensor,
    num_groups: int,
    group_size: int,
    start_index: int = 0,
    skip_origin: bool = False,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Cut clouds into patches; see `pcl_clora.ops.group_points`. Also returns the indices of the centres."""
    if points.device.type == "cpu":
        _values.check_group_points(points, num_groups, group_size, start_index, skip_origin, lengths)
    points = _values.existing(points, lengths)
    batch, num_points, _ = points.shape
    planes = _planes(points)
    in_order = torch.arange(num_groups, device=points.device).repeat(batch, 1)
    if num_groups == num_points:
        center_idx = in_order
    else:
        center_idx = _farthest_point_sample(planes, num_groups, start_index, skip_origin, lengths)
        if lengths is not None:
            center_idx = torch.where((lengths == num_groups).unsqueeze(1), in_order, center_idx)
    center = _gather_points(points, center_idx)
    _, idx = _knn(planes, _planes(center), group_size, lengths)
    neighborhood = _gather_points(points, idx).sub_(center.unsqueeze(2))
    return center, neighborhood, idx, center_idx


def three_interpolate(features: Tensor, idx: Tensor, weight: Tensor) -> Tensor:
    """Blend three features per point; see `pcl_clora.ops.three_interpolate`."""
    if features.device.type == "cpu":
        _values.check_three_interpolate(features, idx, weight)
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
    if grad.device.type == "cpu":
        _values.check_three_interpolate_backward(grad, idx, weight, num_points)
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
    if a.device.type == "cpu":
        _values.check_chamfer_distance(a, b)
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


def _as_columns(values: Tensor, height: int, fill: float) -> Tensor:
    """(..., N) -> (..., height, width): every `height` neighbours become a column, `fill` completes the last.

    A column is a block of neighbours, and torch reduces all columns at once along its fast axis.
    """
    width = -(-values.shape[-1] // height)
    padded = F.pad(values, (0, width * height - values.shape[-1]), value=fill)
    return padded.reshape(*values.shape[:-1], width, height).transpose(-1, -2).contiguous()


def _pieces(points: Tensor, queries: Tensor) -> Iterator[tuple[slice, slice]]:
    """Cut the (B, M, N) distances into pieces of bounded size: whole clouds, or rows of one cloud."""
    _, batch, num_points = points.shape
    num_queries = queries.shape[2]
    budget = _budget(points)
    if num_queries == 0 or num_points == 0:
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
    """(C, B, N) and (C, B, M) -> (B, M, N), in the order of operations that every backend keeps."""
    dist2 = (queries[0].unsqueeze(2) - points[0].unsqueeze(1)).square_()
    for query, point in zip(queries[1:], points[1:], strict=True):
        dist2.add_((query.unsqueeze(2) - point.unsqueeze(1)).square_())
    return dist2


def _flat_index(idx: Tensor, num_points: int) -> Tensor:
    """Turn indices within each cloud into a list of indices into the points of all clouds."""
    offset = torch.arange(idx.shape[0], device=idx.device) * num_points
    return (idx + offset.view(-1, *[1] * (idx.dim() - 1))).reshape(-1)
