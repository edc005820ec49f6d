"""Files in and out: point clouds of many formats, and files that cannot hurt."""

from pcl_clora.io.arrays_pickle import load_pickled_arrays
from pcl_clora.io.errors import DataError
from pcl_clora.io.points import POINT_SUFFIXES, PointFile, read_points, write_points
from pcl_clora.io.safe import (
    atomic_write,
    finite,
    load_tensors,
    save_tensors,
    sha256_file,
    write_json,
    write_text,
)

__all__ = [
    "POINT_SUFFIXES",
    "DataError",
    "PointFile",
    "atomic_write",
    "finite",
    "load_pickled_arrays",
    "load_tensors",
    "read_points",
    "save_tensors",
    "sha256_file",
    "write_json",
    "write_points",
    "write_text",
]
