"""The schemas of the ops, and what PyTorch must know of them: shapes, gradients and cost.

An op is a schema in the namespace `pcl_clora`. Its meaning is the plain-torch kernel in `reference.py`,
which is registered for every device at once. A native build adds kernels for a dispatch key (CPU, CUDA) to
the same schema; it replaces nothing here. Indices are int64, distances are squared, layouts are
points-last-but-one: (B, N, C).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.library import Library, register_autograd, register_fake
from torch.utils.flop_counter import register_flop_formula

from pcl_clora.ops import _values, reference

NAMESPACE = "pcl_clora"

SCHEMAS = {
    "farthest_point_sample": "(Tensor points, SymInt num_samples, SymInt start_index=0,"
    " bool skip_origin=False, Tensor? lengths=None) -> Tensor",
    "knn": "(Tensor points, Tensor queries, SymInt k, Tensor? lengths=None) -> (Tensor dist2, Tensor idx)",
    "ball_query": "(Tensor points, Tensor queries, float radius, SymInt num_samples) -> Tensor",
    "gather_points": "(Tensor points, Tensor idx) -> Tensor",
    "gather_points_backward": "(Tensor grad, Tensor idx, SymInt num_points) -> Tensor",
    "group_points": "(Tensor points, SymInt num_groups, SymInt group_size, SymInt start_index=0,"
    " bool skip_origin=False, Tensor? lengths=None)"
    " -> (Tensor center, Tensor neighborhood, Tensor idx, Tensor center_idx)",
    "three_interpolate": "(Tensor features, Tensor idx, Tensor weight) -> Tensor",
    "three_interpolate_backward": "(Tensor grad, Tensor idx, Tensor weight, SymInt num_points) -> Tensor",
    "chamfer_distance": "(Tensor a, Tensor b) -> (Tensor dist_a, Tensor dist_b, Tensor idx_a, Tensor idx_b)",
}

_library = Library(NAMESPACE, "DEF")  # type: ignore[no-untyped-call]  # must live as long as the ops
for _name, _schema in SCHEMAS.items():
    _library.define(_name + _schema, tags=(torch.Tag.pt2_compliant_tag,))  # type: ignore[no-untyped-call]
    _library.impl(_name, getattr(reference, _name), "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]

_ops = torch.ops.pcl_clora


def call(name: str, *arguments: Any) -> Any:
    """Check what no kernel checks on this device, and call an op."""
    if _values.are_checked_here(arguments[0]):
        _values.CHECKS[name](*arguments)
    return _run(name, *arguments)


def _run(name: str, *arguments: Any) -> Any:
    """Call an op; what a kernel finds wrong with the values arrives as ValueError, from a gradient too."""
    try:
        return getattr(_ops, name)(*arguments)
    except (RuntimeError, ValueError) as error:  # ValueError: kernels built before they threw runtime_error
        raise _values.translated(error) from None


# Fake kernels: the shape and dtype of the results, without data.


def _fake_farthest_point_sample(
    points: Tensor,
    num_samples: int,
    start_index: int = 0,
    skip_origin: bool = False,
    lengths: Tensor | None = None,
) -> Tensor:
    return points.new_empty((points.shape[0], num_samples), dtype=torch.int64)


def _fake_knn(
    points: Tensor, queries: Tensor, k: int, lengths: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    shape = (points.shape[0], queries.shape[1], k)
    return points.new_empty(shape), points.new_empty(shape, dtype=torch.int64)


def _fake_ball_query(points: Tensor, queries: Tensor, radius: float, num_samples: int) -> Tensor:
    return points.new_empty((points.shape[0], queries.shape[1], num_samples), dtype=torch.int64)


def _fake_gather_points(points: Tensor, idx: Tensor) -> Tensor:
    return points.new_empty((*idx.shape, points.shape[2]))


def _fake_gather_points_backward(grad: Tensor, idx: Tensor, num_points: int) -> Tensor:
    return grad.new_empty((grad.shape[0], num_points, grad.shape[-1]))


def _fake_group_points(
    points: Tensor,
    num_groups: int,
    group_size: int,
    start_index: int = 0,
    skip_origin: bool = False,
    lengths: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch = points.shape[0]
    return (
        points.new_empty((batch, num_groups, 3)),
        points.new_empty((batch, num_groups, group_size, 3)),
        points.new_empty((batch, num_groups, group_size), dtype=torch.int64),
        points.new_empty((batch, num_groups), dtype=torch.int64),
    )


def _fake_three_interpolate(features: Tensor, idx: Tensor, weight: Tensor) -> Tensor:
    return features.new_empty((idx.shape[0], idx.shape[1], features.shape[2]))


def _fake_three_interpolate_backward(grad: Tensor, idx: Tensor, weight: Tensor, num_points: int) -> Tensor:
    return grad.new_empty((grad.shape[0], num_points, grad.shape[2]))


def _fake_chamfer_distance(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        a.new_empty(a.shape[:2]),
        b.new_empty(b.shape[:2]),
        a.new_empty(a.shape[:2], dtype=torch.int64),
        b.new_empty(b.shape[:2], dtype=torch.int64),
    )


for _name in SCHEMAS:
    register_fake(f"{NAMESPACE}::{_name}", globals()[f"_fake_{_name}"], lib=_library)


# Gradients. They are made of the ops above, so that they differentiate again and a native kernel serves them.


def _no_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """Keep nothing: indices have no gradient, but the kernel must run below autograd."""


def _no_gradient(ctx: Any, _: Any) -> tuple[None, ...]:
    return (None,) * len(ctx.needs_input_grad)


def _gather_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    points, idx = inputs
    ctx.num_points = points.shape[1]
    ctx.save_for_backward(idx)


def _gather_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
    (idx,) = ctx.saved_tensors
    return _run("gather_points_backward", grad, idx, ctx.num_points), None


def _gather_backward_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])


def _gather_backward_backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    (idx,) = ctx.saved_tensors
    return _run("gather_points", grad, idx), None, None


def _knn_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    points, queries = inputs[:2]
    ctx.save_for_backward(points, queries, output[1])


def _knn_backward(ctx: Any, grad_dist2: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    points, queries, idx = ctx.saved_tensors
    pull = 2 * grad_dist2.unsqueeze(-1) * (queries.unsqueeze(2) - _run("gather_points", points, idx))
    grad_points = grad_queries = None
    if ctx.needs_input_grad[0]:
        grad_points = _run("gather_points_backward", -pull, idx, points.shape[1])
    if ctx.needs_input_grad[1]:
        grad_queries = pull.sum(2)
    return grad_points, grad_queries, None, None


def _group_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.num_points = inputs[0].shape[1]
    ctx.save_for_backward(output[2], output[3])


def _group_backward(
    ctx: Any, grad_center: Tensor, grad_neighborhood: Tensor, *_: Any
) -> tuple[Tensor | None, ...]:
    idx, center_idx = ctx.saved_tensors
    of_center = grad_center - grad_neighborhood.sum(2)
    grad = _run("gather_points_backward", grad_neighborhood, idx, ctx.num_points)
    grad = grad + _run("gather_points_backward", of_center, center_idx, ctx.num_points)
    return grad, None, None, None, None, None


def _weight_gradient(grad: Tensor, features: Tensor, idx: Tensor) -> Tensor:
    parts = [(_run("gather_points", features, corner) * grad).sum(-1) for corner in idx.unbind(2)]
    return torch.stack(parts, 2)


def _interpolate_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    features, idx, weight = inputs
    ctx.num_points = features.shape[1]
    ctx.save_for_backward(features if ctx.needs_input_grad[2] else None, idx, weight)


def _interpolate_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
    features, idx, weight = ctx.saved_tensors
    grad_features = grad_weight = None
    if ctx.needs_input_grad[0]:
        grad_features = _run("three_interpolate_backward", grad, idx, weight, ctx.num_points)
    if ctx.needs_input_grad[2]:
        grad_weight = _weight_gradient(grad, features, idx)
    return grad_features, None, grad_weight


def _interpolate_backward_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    grad, idx, weight, _ = inputs
    ctx.save_for_backward(grad, idx, weight)


def _interpolate_backward_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, Tensor | None, None]:
    grad_output, idx, weight = ctx.saved_tensors
    grad_grad = grad_weight = None
    if ctx.needs_input_grad[0]:
        grad_grad = _run("three_interpolate", grad, idx, weight)
    if ctx.needs_input_grad[2]:
        grad_weight = _weight_gradient(grad_output, grad, idx)
    return grad_grad, None, grad_weight, None


def _chamfer_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs, output[2], output[3])


def _chamfer_backward(ctx: Any, grad_dist_a: Tensor, grad_dist_b: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    a, b, idx_a, idx_b = ctx.saved_tensors
    return chamfer_gradient(a, b, idx_a, idx_b, grad_dist_a, grad_dist_b)


def chamfer_gradient(
    a: Tensor, b: Tensor, idx_a: Tensor, idx_b: Tensor, grad_dist_a: Tensor, grad_dist_b: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the gradients of a and b from those of their squared distances."""
    pull_a = 2 * grad_dist_a.unsqueeze(-1) * (a - _run("gather_points", b, idx_a))
    pull_b = 2 * grad_dist_b.unsqueeze(-1) * (b - _run("gather_points", a, idx_b))
    grad_a = pull_a - _run("gather_points_backward", pull_b, idx_b, a.shape[1])
    grad_b = pull_b - _run("gather_points_backward", pull_a, idx_a, b.shape[1])
    return grad_a, grad_b


for _name, _backward, _setup in (
    ("farthest_point_sample", _no_gradient, _no_setup),
    ("gather_points", _gather_backward, _gather_setup),
    ("gather_points_backward", _gather_backward_backward, _gather_backward_setup),
    ("knn", _knn_backward, _knn_setup),
    ("ball_query", _no_gradient, _no_setup),
    ("group_points", _group_backward, _group_setup),
    ("three_interpolate", _interpolate_backward, _interpolate_setup),
    ("three_interpolate_backward", _interpolate_backward_backward, _interpolate_backward_setup),
    ("chamfer_distance", _chamfer_backward, _chamfer_setup),
):
    register_autograd(f"{NAMESPACE}::{_name}", _backward, setup_context=_setup, lib=_library)


# Cost: every subtraction, addition and multiplication of coordinates or features is one FLOP; comparing and
# copying are free. A squared distance takes 8 (3 subtractions, 3 squares, 2 additions). What depends on the
# data counts in full: clouds with lengths as if they had N points, ball_query as if it saw every point.

_Shape = tuple[int, ...]
DIST2_FLOPS = 8


@register_flop_formula(_ops.farthest_point_sample)
def _flops_farthest_point_sample(points: _Shape, num_samples: int, *_: Any, **__: Any) -> int:
    return points[0] * points[1] * (num_samples - 1) * DIST2_FLOPS


@register_flop_formula((_ops.knn, _ops.ball_query))
def _flops_all_distances(points: _Shape, queries: _Shape, *_: Any, **__: Any) -> int:
    return points[0] * points[1] * queries[1] * DIST2_FLOPS


@register_flop_formula(_ops.group_points)
def _flops_group_points(points: _Shape, num_groups: int, group_size: int, *_: Any, **__: Any) -> int:
    batch, num_points, _channels = points
    sampling = 0 if num_groups == num_points else num_points * (num_groups - 1) * DIST2_FLOPS
    searching = num_points * num_groups * DIST2_FLOPS
    return batch * (sampling + searching + 3 * num_groups * group_size)


@register_flop_formula(_ops.three_interpolate)
def _flops_three_interpolate(features: _Shape, idx: _Shape, *_: Any, **__: Any) -> int:
    return idx[0] * idx[1] * features[2] * 5


@register_flop_formula(_ops.three_interpolate_backward)
def _flops_three_interpolate_backward(grad: _Shape, *_: Any, **__: Any) -> int:
    return grad[0] * grad[1] * grad[2] * 6


@register_flop_formula(_ops.gather_points_backward)
def _flops_gather_points_backward(grad: _Shape, *_: Any, **__: Any) -> int:
    size = 1
    for extent in grad:
        size *= extent
    return size


@register_flop_formula(_ops.chamfer_distance)
def _flops_chamfer_distance(a: _Shape, b: _Shape, *_: Any, **__: Any) -> int:
    return a[0] * a[1] * b[1] * DIST2_FLOPS
