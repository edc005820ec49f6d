"""Measures of one cloud that make it doubtful: fast, since every cloud that is predicted has them taken."""

from __future__ import annotations

import numpy as np
from torch import Tensor

CLOSE = 1e-3  # of the radius: points as near to one another are one point to a model
SLICES = 256  # of the longest side: each is thicker than a ball of that radius, 2 x 1e-3 x 3**0.5 of the side


def radius_and_offset(points: Tensor) -> tuple[float, float]:
    """Measure one cloud (N, 3), as `measure` does."""
    columns = np.ascontiguousarray(points.numpy().T, dtype=np.float64)
    mean = columns.mean(axis=1)
    columns -= mean[:, None]
    columns *= columns
    return float(columns.sum(axis=0).max() ** 0.5), float((mean @ mean) ** 0.5)


def crowded_share(points: Tensor) -> float:
    """Say what share of a cloud (N, 3) lies within a thousandth of its radius of its median; 1 for one point.

    A share below a half may be said to be 0: then no slice of the longest side that is as thick as such a
    ball, and so no ball, holds half of the points.
    """
    columns = np.ascontiguousarray(points.numpy().T)
    low = columns.min(axis=1)
    sides = columns.max(axis=1) - low
    axis = int(sides.argmax())
    if not sides[axis] > 0:
        return 1.0
    slices = ((columns[axis] - low[axis]) * (SLICES / sides[axis])).astype(np.int64)
    counts = np.bincount(slices, minlength=SLICES + 1)
    if 2 * (counts[1:] + counts[:-1]).max() < columns.shape[1]:
        return 0.0
    distance = (points.double() - points.double().median(dim=0).values).norm(dim=-1)
    return float((distance <= CLOSE * distance.max()).double().mean())


def has_distinct(points: Tensor, count: float) -> bool:
    """Tell whether the points of a cloud (N, 3) have at least so many different values along one axis."""
    for column in np.ascontiguousarray(points.numpy().T):
        ordered = np.sort(column + np.float32(0))  # -0.0 becomes 0.0
        if int((ordered[1:] > ordered[:-1]).sum()) + 1 >= count:
            return True
    return False


def count_distinct(points: Tensor) -> int:
    """Count the different points of a cloud (N, 3), float32."""
    rows = np.ascontiguousarray(points.numpy() + np.float32(0))  # -0.0 becomes 0.0
    return len(np.unique(rows.view(np.dtype((np.void, 12)))))


def is_line(points: Tensor) -> bool:
    """Tell whether points (N, 3) lie within a thousandth of their extent of one line."""
    columns = np.ascontiguousarray(points.numpy().T, dtype=np.float64)
    columns -= columns.mean(axis=1)[:, None]
    squares = np.linalg.eigvalsh(columns @ columns.T)  # of the singular values, ascending
    return bool(squares[1] <= CLOSE**2 * squares[2])
