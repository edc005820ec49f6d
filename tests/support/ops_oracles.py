"""Clouds that are hard on geometry, and slow numpy answers that share no code with the package."""

import numpy as np
import torch
from torch import Tensor

OFFSET = 1_000_000.0
KINDS = (
    "random",
    "clustered",
    "duplicates",
    "lattice",
    "collinear",
    "all_equal",
    "near_origin",
    "far_away",
    "symmetric",
)


def make_cloud(kind: str, batch: int, num_points: int, seed: int = 0, dtype=torch.float32) -> Tensor:
    """(batch, num_points, 3) points of a kind; the seed decides everything."""
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    points = rng.uniform(-1, 1, (batch, num_points, 3))
    if kind == "clustered":
        points = rng.integers(-2, 3, (batch, num_points, 1)) + 1e-3 * points
    elif kind == "duplicates":
        points = points[:, rng.integers(0, max(1, num_points // 3), num_points)]
    elif kind == "lattice":
        points = rng.integers(0, 4, (batch, num_points, 3)).astype(float)
    elif kind == "collinear":
        points = points[..., :1] * np.array([1.0, -2.0, 0.5])
    elif kind == "all_equal":
        points = np.broadcast_to(points[:, :1], points.shape)
    elif kind == "near_origin":
        points = points * np.where(rng.uniform(size=(batch, num_points, 1)) < 0.5, 0.01, 1.0)
    elif kind == "far_away":
        points = points + OFFSET
    elif kind == "symmetric":  # one triple in any order with any signs: only rounding tells distances apart
        points = rng.permuted(np.broadcast_to(points[:, :1], points.shape), axis=2)
        points = points * rng.choice([-1.0, 1.0], points.shape)
    return torch.from_numpy(np.array(points)).to(dtype)


def dist2(points: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Squared distances, (N, 3) and (3,) -> (N,), in the promised order of operations."""
    with np.errstate(over="ignore"):  # an infinite distance is an answer
        d = points - query
        return (d[:, 0] * d[:, 0] + d[:, 1] * d[:, 1]) + d[:, 2] * d[:, 2]


def slow_fps(
    points: np.ndarray,
    num_samples: int,
    start: int = 0,
    skip_origin: bool = False,
    order: np.ndarray | None = None,
) -> np.ndarray:
    """One cloud, one point at a time; of equals the first of `order` wins, by default the lowest index."""
    nearest = np.full(len(points), 1e10 if skip_origin else np.inf, dtype=points.dtype)
    candidates = np.arange(len(points)) if order is None else order
    if skip_origin:
        norm2 = dist2(points, np.zeros(3, points.dtype)).astype(np.float64)
        candidates = candidates[norm2[candidates] > 1e-3]
    chosen = [start]
    while len(chosen) < num_samples:
        nearest = np.minimum(nearest, dist2(points, points[chosen[-1]]))
        chosen.append(int(candidates[np.argmax(nearest[candidates])]) if len(candidates) else 0)
    return np.array(chosen)


def slow_knn(points: np.ndarray, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """One cloud, one query at a time, by a stable sort of all distances."""
    rows = [dist2(points, query) for query in queries]
    orders = [np.argsort(row, kind="stable")[:k] for row in rows]
    return np.array([row[order] for row, order in zip(rows, orders, strict=True)]), np.array(orders)


def slow_three_nn(points: np.ndarray, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Three neighbours, padded with infinite distance and index 0."""
    found, idx = slow_knn(points, queries, 3)
    missing = ((0, 0), (0, 3 - idx.shape[1]))
    return np.pad(found, missing, constant_values=np.inf), np.pad(idx, missing)


def slow_ball(points: np.ndarray, queries: np.ndarray, radius: float, num_samples: int) -> np.ndarray:
    """The first points within a radius, padded with the first of them, zeros if there is none."""
    bound = points.dtype.type(radius) * points.dtype.type(radius)
    rows = np.zeros((len(queries), num_samples), np.int64)
    for row, query in zip(rows, queries, strict=True):
        inside = np.flatnonzero(dist2(points, query) < bound)[:num_samples]
        row[:] = inside[0] if len(inside) else 0
        row[: len(inside)] = inside
    return rows


def slow_groups(
    points: np.ndarray, num_groups: int, group_size: int, start: int = 0, skip_origin: bool = False
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centre, neighbourhood relative to it, and indices of every patch of one cloud."""
    in_order = num_groups == len(points)
    chosen = np.arange(num_groups) if in_order else slow_fps(points, num_groups, start, skip_origin)
    idx = slow_knn(points, points[chosen], group_size)[1]
    return points[chosen], points[idx] - points[chosen][:, None], idx


def slow_chamfer(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, ...]:
    """Distances and indices of the nearest neighbour, both ways."""

    def nearest(points: np.ndarray, queries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows = [dist2(points, query) for query in queries]
        return np.array([row.min() for row in rows]), np.array([row.argmin() for row in rows])

    (dist_a, idx_a), (dist_b, idx_b) = nearest(b, a), nearest(a, b)
    return dist_a, dist_b, idx_a, idx_b


def batched(function, *clouds: Tensor, lengths: Tensor | None = None, **arguments) -> tuple[Tensor, ...]:
    """Apply a slow answer to every cloud of a batch, cut to its length, and stack what it returns."""
    ends = [clouds[0].shape[1]] * len(clouds[0]) if lengths is None else lengths.tolist()
    answers = []
    for end, first, *others in zip(ends, *clouds, strict=True):
        answer = function(first[:end].numpy(), *(c.numpy() for c in others), **arguments)
        answers.append(answer if isinstance(answer, tuple) else (answer,))
    return tuple(torch.from_numpy(np.stack(part)) for part in zip(*answers, strict=True))
