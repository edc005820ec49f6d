"""Files of the Point Cloud Library (pcd), by pypcd4."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pcl_clora.io import child
from pcl_clora.io.fields import Array, Read, colors_of_bits, exact_points, flat_columns


def read_pcd(path: Path, part: str, row: int | None, max_points: int | None) -> Read:
    """Read a pcd file of text, binary or compressed, in a process of its own."""
    child.need(path, "pypcd4", "pypcd4")
    return child.parse(path, "pcd", part, max_points)


def write_pcd(path: Path, points: Array, fields: Mapping[str, Array], faces: Array | None) -> None:
    """Write binary pcd; colours as the packed "rgb", normals as normal_x, normal_y, normal_z."""
    child.need(path, "pypcd4", "pypcd4")
    import pypcd4

    left = dict(fields)
    columns = dict(zip("xyz", exact_points(points).T, strict=True))
    if "colors" in left:
        red, green, blue = colors_of_bits(left.pop("colors"), 8).astype(np.uint32).T
        columns["rgb"] = (red << 16 | green << 8 | blue).view(np.float32)
    if "normals" in left:
        normals = np.asarray(left.pop("normals"), np.float32).T
        columns.update(zip(("normal_x", "normal_y", "normal_z"), normals, strict=True))
    for name, column in flat_columns(left).items():
        column = column.astype(np.uint8) if column.dtype.kind == "b" else column
        columns["_".join(name.split())] = column
    cloud = pypcd4.PointCloud.from_points(
        [np.ascontiguousarray(column) for column in columns.values()],
        tuple(columns),
        tuple(column.dtype for column in columns.values()),
    )
    cloud.save(path, encoding=pypcd4.Encoding.BINARY)
