"""What the matrix asks of every backend: a call of a public function, and the slow answer to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pcl_clora import ops
from tests.support.ops_backends import Backend
from tests.support.ops_oracles import (
    batched,
    slow_ball,
    slow_chamfer,
    slow_fps,
    slow_groups,
    slow_knn,
    slow_three_nn,
)


class Case(NamedTuple):
    """A call and what it must return, bit for bit."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    named: dict[str, Any]
    expected: tuple[Tensor, ...] = ()


class Sizes(NamedTuple):
    """The numbers of a call; they must fit the shortest cloud."""

    samples: int
    start: int
    near: int

    @staticmethod
    def for_points(num_points: int) -> Sizes:
        """Every point of a small cloud, some of a large one."""
        return Sizes(min(num_points, 16), num_points // 2, min(num_points, 9))


def sampling(points: Tensor, queries: Tensor, sizes: Sizes, **ragged: Tensor) -> Case:
    expected = batched(slow_fps, points, num_samples=sizes.samples, start=sizes.start, **ragged)
    return Case(
        ops.farthest_point_sample, (points, sizes.samples), {"start_index": sizes.start, **ragged}, expected
    )


def sampling_by_rule_of_pointnet2(points: Tensor, queries: Tensor, sizes: Sizes, **ragged: Tensor) -> Case:
    expected = batched(slow_fps, points, num_samples=sizes.samples, skip_origin=True, **ragged)
    return Case(
        ops.farthest_point_sample, (points, sizes.samples), {"compat": "pointnet2", **ragged}, expected
    )


def nearest(points: Tensor, queries: Tensor, sizes: Sizes, **ragged: Tensor) -> Case:
    return Case(
        ops.knn,
        (points, queries, sizes.near),
        ragged,
        batched(slow_knn, points, queries, k=sizes.near, **ragged),
    )


def nearest_one(points: Tensor, queries: Tensor, sizes: Sizes, **ragged: Tensor) -> Case:
    return Case(ops.knn, (points, queries, 1), ragged, batched(slow_knn, points, queries, k=1, **ragged))


def nearest_all(points: Tensor, queries: Tensor, sizes: Sizes, **ragged: Tensor) -> Case:
    k = int(ragged["lengths"].min()) if ragged else points.shape[1]
    return Case(ops.knn, (points, queries, k), ragged, batched(slow_knn, points, queries, k=k, **ragged))


def nearest_three(points: Tensor, queries: Tensor, sizes: Sizes) -> Case:
    return Case(ops.three_nn, (points, queries), {}, batched(slow_three_nn, points, queries))


def within_radius(points: Tensor, queries: Tensor, sizes: Sizes) -> Case:
    radius = 1.0 + (points - queries[:, :1]).abs().mean().item() / 2  # on a lattice 1.0 decides for equals
    if torch.equal(points, points.round()):
        radius = 1.0
    expected = batched(slow_ball, points, queries, radius=radius, num_samples=sizes.samples)
    return Case(ops.ball_query, (points, queries, radius, sizes.samples), {}, expected)


def patches(points: Tensor, queries: Tensor, sizes: Sizes, **ragged: Tensor) -> Case:
    expected = batched(
        slow_groups,
        points,
        num_groups=sizes.samples,
        group_size=sizes.near,
        start=sizes.start,
        **ragged,
    )
    named = {"start_index": sizes.start, **ragged}
    return Case(ops.group_points, (points, sizes.samples, sizes.near), named, expected)


def both_ways(points: Tensor, queries: Tensor, sizes: Sizes) -> Case:
    return Case(ops.chamfer_distance, (points, queries), {}, batched(slow_chamfer, points, queries))


def _whole_numbers(*shape: int, like: Tensor, seed: int) -> Tensor:
    """Small whole numbers: sums and products of them are exact in any order."""
    drawn = torch.randint(-8, 9, shape, generator=torch.Generator().manual_seed(seed))
    return drawn.to(like.dtype)


def _indices(points: Tensor, *shape: int) -> Tensor:
    return torch.randint(0, points.shape[1], shape, generator=torch.Generator().manual_seed(9))


def picking(points: Tensor, queries: Tensor, sizes: Sizes) -> Case:
    batch, num_points, _ = points.shape
    features, idx = _whole_numbers(batch, num_points, 5, like=points, seed=1), _indices(points, batch, 4, 3)
    expected = torch.stack([f[i] for f, i in zip(features, idx, strict=True)])
    return Case(ops.gather_points, (features, idx), {}, (expected,))


def picking_backward(points: Tensor, queries: Tensor, sizes: Sizes) -> Case:
    batch, num_points, _ = points.shape
    grad, idx = _whole_numbers(batch, 4, 3, 5, like=points, seed=1), _indices(points, batch, 4, 3)
    one_hot = torch.nn.functional.one_hot(idx, num_points).to(points.dtype)
    expected = torch.einsum("bijn,bijc->bnc", one_hot, grad)
    return Case(torch.ops.pcl_clora.gather_points_backward, (grad, idx, num_points), {}, (expected,))


def blending(points: Tensor, queries: Tensor, sizes: Sizes) -> Case:
    batch, num_points, _ = points.shape
    features, idx = _whole_numbers(batch, num_points, 5, like=points, seed=1), _indices(points, batch, 6, 3)
    weight = _whole_numbers(batch, 6, 3, like=points, seed=2)
    one_hot = torch.nn.functional.one_hot(idx, num_points).to(points.dtype)
    expected = torch.einsum("bij,bijn,bnc->bic", weight, one_hot, features)
    return Case(ops.three_interpolate, (features, idx, weight), {}, (expected,))


def blending_backward(points: Tensor, queries: Tensor, sizes: Sizes) -> Case:
    batch, num_points, _ = points.shape
    grad, idx = _whole_numbers(batch, 6, 5, like=points, seed=1), _indices(points, batch, 6, 3)
    weight = _whole_numbers(batch, 6, 3, like=points, seed=2)
    one_hot = torch.nn.functional.one_hot(idx, num_points).to(points.dtype)
    expected = torch.einsum("bij,bijn,bic->bnc", weight, one_hot, grad)
    arguments = (grad, idx, weight, num_points)
    return Case(torch.ops.pcl_clora.three_interpolate_backward, arguments, {}, (expected,))


RAGGED = {
    case.__name__: case
    for case in (sampling, sampling_by_rule_of_pointnet2, nearest, nearest_one, nearest_all, patches)
}
CASES = RAGGED | {
    case.__name__: case
    for case in (
        nearest_three,
        within_radius,
        both_ways,
        picking,
        picking_backward,
        blending,
        blending_backward,
    )
}
SAMPLES = {"sampling", "patches"}  # by the default rule


def make_case(
    name: str, points: Tensor, queries: Tensor, sizes: Sizes | None = None, **ragged: Tensor
) -> Case:
    """Make the case of a name; by default its numbers fit all points, or the shortest cloud."""
    shortest = int(ragged["lengths"].min()) if ragged else points.shape[1]
    return CASES[name](points, queries, sizes or Sizes.for_points(shortest), **ragged)


def is_beyond(name: str, backend: Backend, dtype: torch.dtype) -> bool:
    """Tell whether a backend says openly that it cannot do a case, or not in our order of ties."""
    if dtype == torch.float64 and not backend.takes_double:
        return name not in ("both_ways", "picking_backward", "blending_backward")  # served as under "auto"
    return backend.own_ties and (name in SAMPLES or name == "sampling_by_rule_of_pointnet2")
