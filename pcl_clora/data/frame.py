"""Which axis points up and what a coordinate measures: turning clouds, and units."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from pcl_clora.config import ConfigError
from pcl_clora.errors import UserValueError, warn_once
from pcl_clora.io.formats import Axis

# (column, sign) of x, y and z after a turn that brings the axis up; all are rotations.
TURNS: dict[str, tuple[tuple[int, int], ...]] = {
    "y": ((0, 1), (1, 1), (2, 1)),
    "-y": ((0, 1), (1, -1), (2, -1)),
    "z": ((0, 1), (2, 1), (1, -1)),
    "-z": ((0, 1), (2, -1), (1, 1)),
    "x": ((1, -1), (0, 1), (2, 1)),
    "-x": ((1, 1), (0, -1), (2, 1)),
}

UNITS = {
    "um": 1e-6, "mm": 1e-3, "cm": 1e-2, "dm": 0.1, "m": 1.0, "km": 1e3, "in": 0.0254, "ft": 0.3048,
    "us-ft": 1200 / 3937,
}  # fmt: skip
"""Metres that a unit has; "us-ft" is the foot of American surveys."""

_FLAT = 3.0  # times that a cloud is wider than it is high before it is taken to lie


def turn(vectors: NDArray[Any], before: Axis, after: Axis) -> NDArray[Any]:
    """Turn vectors (N, 3) so that another axis points up; no bit changes but signs.

    Args:
        vectors: points, or normals.
        before: axis that points up in them.
        after: axis that points up then.
    """
    if before == after:
        return vectors
    to_y = np.stack([vectors[:, column] * sign for column, sign in TURNS[before]], axis=1)
    turned = np.empty_like(to_y)
    for place, (column, sign) in enumerate(TURNS[after]):
        turned[:, column] = to_y[:, place] * sign
    return turned


def scale_between(before: str, after: str) -> float:
    """Compute what coordinates in one unit are multiplied by for another.

    Raises:
        UserValueError: listing the units, where one is not known.
    """
    for unit in (before, after):
        if unit not in UNITS:
            raise UserValueError(f"unit {unit!r} is not known; use one of {', '.join(UNITS)}.")
    return UNITS[before] / UNITS[after]


def guess_up(points: NDArray[Any]) -> Axis | None:
    """Guess which axis points up: y or z, along which a scan of the ground is by far the flattest.

    Returns:
        The axis, or None where no shape says it, as of single objects.
    """
    size = np.ptp(points.astype(np.float64), axis=0)
    found: Axis
    for found, place in (("y", 1), ("z", 2)):
        others = np.delete(size, place)
        if size[place] > 0 and others.min() > _FLAT * size[place]:
            return found
    return None


def warn_of_up(path: str | Path, says: str, taken: str, remedy: str) -> None:
    """Say once, for a kind of file, that its format says another axis points up than the one that is taken.

    Args:
        path: of the file.
        says: axis that points up by the format; "" where it says nothing.
        taken: axis that is taken to point up.
        remedy: the setting that turns such files, without its value.
    """
    if says and says != taken:
        suffix = Path(str(path).partition("#")[0]).suffix.lower()
        warn_once(
            f"{path}: {says} points up in {suffix} files, and {taken} is taken to; "
            f"{remedy}{says} turns them.",
            kind=f"up of {suffix} as {taken}",
        )


def parse_axis(text: str) -> Axis | None:
    """Read the name of an axis; None of an empty one.

    Raises:
        ConfigError: if it is no axis.
    """
    for axis in get_args(Axis):
        if text == axis:
            known: Axis = axis
            return known
    if text:
        raise ConfigError(f"up={text!r} is no axis; use one of {', '.join(get_args(Axis))}.")
    return None
