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
    d = points - query
    return (d[:, 0] * d[:, 0] + d[:, 1] * d[:, 1]) + d[:, 2] * d[:, 2]


def slow_fps(points: np.ndarray, num_samples: int, start: int = 0, skip_origin: bool = False) -> np.ndarray:
    """One cloud, one point at a time."""
    nearest = np.full(len(points), 1e10 if skip_origin else np.inf, dtype=points.dtype)
    candidates = np.arange(len(points))
    if skip_origin:
        candidates = candidates[dist2(points, np.zeros(3, points.dtype)).astype(np.float64) > 1e-3]
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


def batched(function, *clouds: Tensor, **arguments):
    """Apply a slow answer to every cloud of a batch and stack what it returns."""
    answers = [function(*(c.numpy() for c in one), **arguments) for one in zip(*clouds, strict=True)]
    if isinstance(answers[0], tuple):
        return tuple(torch.from_numpy(np.stack(part)) for part in zip(*answers, strict=True))
    return torch.from_numpy(np.stack(answers))
