"""Raw objects of ScanObjectNN: bare float32 numbers, first how many points there are, then 11 of each."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pcl_clora.io.errors import DataError, explained
from pcl_clora.io.fields import Array

COLUMNS = 11  # floats a point: x y z, normal, r g b, instance label, semantic label
NOT_OBJECTS = (0, 1, 2)  # semantic labels: none, wall, floor
GET_AGAIN = "get it again, see data/README.md"


@dataclass(frozen=True)
class RawObject:
    """What a raw file holds.

    Attributes:
        points: (N, 3), float32, metres.
        mask: (N,), bool, True for points of the object: those of the most frequent semantic label that is not
            0 (none), 1 (wall) or 2 (floor), as the official tools decide.
        table: (N, 11), float32, all numbers of the points.
    """

    points: NDArray[np.float32]
    mask: NDArray[np.bool_]
    table: NDArray[np.float32]

    @property
    def fields(self) -> dict[str, Array]:
        """What it says of its points besides: normals, colours, the number of the instance, the label."""
        found: dict[str, Array] = {"normals": self.table[:, 3:6], "colors": self.table[:, 6:9]}
        if np.isfinite(self.table[:, 9:]).all():
            found.update(instance=self.table[:, 9], label=self.table[:, 10])
        return found


def is_raw_object(file: str | Path) -> bool:
    """Tell a raw object from other files of bare numbers: its first one and its size say how many points."""
    try:
        with Path(file).open("rb") as opened:
            first = np.frombuffer(opened.read(4), np.float32)
            size = os.fstat(opened.fileno()).st_size
    except (OSError, ValueError):  # of fewer than 4 bytes
        return False
    return bool(first.size) and _fits(first[0], size)


def _fits(count: np.float32, size: int) -> bool:
    return bool(count >= 1 and count == np.floor(count) and size == 4 * (1 + COLUMNS * int(count)))


def read_raw_object(file: str | Path) -> RawObject:
    """Read one `.bin` file: float32, the number of points, then 11 numbers a point.

    Raises:
        DataError: if it is missing, has another size than its first number says, or values are not finite.

    Source: readme of the official release; the rule for the background is that of its tools.
    """
    file = Path(file)
    with explained(file, "read"):
        raw = np.fromfile(file, dtype=np.float32)
        size = file.stat().st_size
    count = raw[0] if raw.size else np.float32(-1)
    if not np.isfinite(count) or not _fits(count, size):
        raise DataError(
            file,
            f"has {size} bytes and says {count:g} points, expected 4 x (1 + 11 x points) bytes: a "
            "count, then x y z nx ny nz r g b instance semantic for each point; it is truncated or has other "
            "columns",
            GET_AGAIN,
        )
    table = raw[1:].reshape(int(count), COLUMNS)
    if not np.isfinite(table[:, :3]).all():
        raise DataError(file, "has coordinates that are not finite", GET_AGAIN)
    semantic = table[:, -1]
    labels, counts = np.unique(semantic[~np.isin(semantic, NOT_OBJECTS)], return_counts=True)
    mask = semantic == labels[counts.argmax()] if labels.size else np.zeros(len(table), dtype=bool)
    return RawObject(np.ascontiguousarray(table[:, :3]), mask, table)
