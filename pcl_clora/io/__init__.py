"""Files in and out: point clouds of many formats, and files that cannot hurt."""

from pcl_clora.io.arrays import read_arrays
from pcl_clora.io.arrays_pickle import load_pickled_arrays
from pcl_clora.io.errors import (
    DataError,
    FileAccessError,
    as_data_error,
    check_is_file,
    explained,
    no_folder,
)
from pcl_clora.io.formats import FORMATS, POINT_SUFFIXES, WRITE_SUFFIXES, format_of
from pcl_clora.io.points import PointFile, read_points, write_points
from pcl_clora.io.safe import (
    atomic_write,
    finite,
    load_tensors,
    parse_json,
    read_json,
    refuse_overwriting_inputs,
    save_tensors,
    sha256_file,
    write_json,
    write_text,
)

__all__ = [
    "FORMATS",
    "POINT_SUFFIXES",
    "WRITE_SUFFIXES",
    "DataError",
    "FileAccessError",
    "PointFile",
    "as_data_error",
    "atomic_write",
    "check_is_file",
    "explained",
    "finite",
    "format_of",
    "load_pickled_arrays",
    "load_tensors",
    "no_folder",
    "parse_json",
    "read_arrays",
    "read_json",
    "read_points",
    "refuse_overwriting_inputs",
    "save_tensors",
    "sha256_file",
    "write_json",
    "write_points",
    "write_text",
]
