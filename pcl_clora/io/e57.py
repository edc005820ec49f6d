"""Scans of terrestrial scanners in the format e57, by pye57."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pcl_clora.io import child
from pcl_clora.io.fields import Array, Read, colors_of_bits, needs_float64


def read_e57(path: Path, part: str, row: int | None, max_points: int | None) -> Read:
    """Read all scans in the frame that they share, or one (`file.e57#0`), in a process of its own."""
    child.need(path, "pye57", "pye57")
    return child.parse(path, "e57", part if row is None else str(row), max_points)


def write_e57(path: Path, points: Array, fields: Mapping[str, Array], faces: Array | None) -> None:
    """Write one scan: float32, about a whole-numbered middle in the pose where that moves points."""
    child.need(path, "pye57", "pye57")
    import pye57

    points = np.asarray(points, np.float64)
    middle = np.zeros(3)
    if needs_float64(points):
        middle = np.round((points.min(axis=0) + points.max(axis=0)) / 2)
    data = {f"cartesian{axis}": column for axis, column in zip("XYZ", (points - middle).T, strict=True)}
    if "intensity" in fields:
        data["intensity"] = np.asarray(fields["intensity"], np.float32)
    if "colors" in fields:
        colors = colors_of_bits(fields["colors"], 8)
        data.update(zip(("colorRed", "colorGreen", "colorBlue"), colors.T, strict=True))
    data = {name: np.ascontiguousarray(column) for name, column in data.items()}
    with pye57.E57(str(path), mode="w") as file:
        file.write_scan_raw(data, name="points", rotation=np.array([1.0, 0, 0, 0]), translation=middle)
