"""Airborne and terrestrial laser scans: las, laz and copc, by laspy and lazrs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pcl_clora.errors import UserValueError
from pcl_clora.io import child
from pcl_clora.io.fields import Array, Read, colors_of_bits, flat_columns, is_whole

_STEPS = 2.0**30  # of a coordinate, from the lowest to the highest; the format has 32 bits


def read_las(path: Path, part: str, row: int | None, max_points: int | None) -> Read:
    """Read a las, laz or copc file in a process of its own; its classification becomes "labels"."""
    child.need(path, "laspy", "laspy[lazrs]")
    child.need(path, "lazrs", "laspy[lazrs]")
    return child.parse(path, "las", part, max_points)


def write_las(path: Path, points: Array, fields: Mapping[str, Array], faces: Array | None) -> None:
    """Write las 1.4, packed where the name ends in .laz.

    Coordinates are kept to a 2^30th of the cloud's size. Colours get 16 bits, labels from 0 to 255 are the
    classification, whole intensities up to 65535 the intensity; all others are further dimensions.
    """
    child.need(path, "laspy", "laspy[lazrs]")
    import laspy

    points = np.asarray(points, np.float64)
    header = laspy.LasHeader(version="1.4", point_format=7 if "colors" in fields else 6)
    low, size = points.min(axis=0), float(np.ptp(points, axis=0).max())
    step = 10.0 ** np.floor(np.log10(size)) if size > 0 else 0.0
    header.offsets = np.floor(low / step) * step if step else low
    size = float((points - header.offsets).max())
    header.scales = np.full(3, 10.0 ** np.ceil(np.log10(size / _STEPS)) if size > 0 else 1e-3)
    left = dict(fields)
    plain: dict[str, Array] = {}
    if "colors" in left:
        plain.update(zip(("red", "green", "blue"), colors_of_bits(left.pop("colors"), 16).T, strict=True))
    known = {name.lower() for name in header.point_format.dimension_names} | {"x", "y", "z"}
    for name, most, called in (("labels", 255, "classification"), ("intensity", 65535, "intensity")):
        if name in left and is_whole(left[name]) and left[name].min() >= 0 and left[name].max() <= most:
            plain[called] = left.pop(name)
    further = flat_columns(left)
    for name, column in further.items():
        if name.lower() in known:
            in_range = is_whole(column) and np.array_equal(column, column.astype(np.int64))
            if name in header.point_format.dimension_names and in_range and name not in plain:
                plain[name] = column
                continue
            name = f"{name}_"
        if not name.isascii() or len(name) > 32 or column.dtype.kind not in "biuf":
            raise UserValueError(f"field {name!r} ({column.dtype}) cannot be kept in las; use .npz.")
        column = column.astype(np.uint8) if column.dtype.kind == "b" else column
        column = column.astype(np.float32) if column.dtype == np.float16 else column
        header.add_extra_dim(laspy.ExtraBytesParams(name=name, type=column.dtype))
        plain[name] = column
    cloud = laspy.LasData(header)
    cloud.x, cloud.y, cloud.z = points.T
    for name, column in plain.items():
        cloud[name] = column
    cloud.write(str(path), do_compress=path.suffix.lower() == ".laz")
