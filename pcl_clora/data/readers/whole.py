"""Read one cloud whole, as the file of any data set holds it: what a sample names by its path."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcl_clora.io import POINT_SUFFIXES, DataError, hdf5, load_pickled_arrays, read_points
from pcl_clora.io.fields import point_key
from pcl_clora.io.raw_object import is_raw_object, read_raw_object

WHOLE_SUFFIXES: tuple[str, ...] = (*POINT_SUFFIXES, ".dat", ".pkl")
"""File name endings that `read_whole` knows."""


@dataclass(frozen=True)
class WholeCloud:
    """One cloud with all that its file says of it.

    Attributes:
        points: (N, 3), float64, as they are stored; or the vertices of a mesh.
        faces: (F, 3), int64, triangles of a mesh, or None.
        inside: (N,), bool, points that are not background, or None.
        up: axis that points up by the format of the file; "" where it says nothing.
    """

    points: NDArray[Any]
    faces: NDArray[np.int64] | None = None
    inside: NDArray[np.bool_] | None = None
    up: str = ""


def read_whole(path: str | Path) -> WholeCloud:
    """Read one cloud.

    Args:
        path: a file of points or a mesh, see `read_points`; `file.h5#7`; a raw object of ScanObjectNN (.bin,
            told by its size from a scan of KITTI); a cloud in a pickle of published code: `file.dat#7`,
            `file.pkl#test/7`.

    Raises:
        DataError: if there is no such cloud, or it is torn, of an unknown kind or not finite.
    """
    file, _, row = str(path).rpartition("#")
    suffix = Path(file or path).suffix.lower()
    if suffix in (".dat", ".pkl"):
        return WholeCloud(_of_pickle(Path(file or path), row))
    if suffix == ".bin" and is_raw_object(path):
        raw = read_raw_object(path)
        return WholeCloud(raw.points, inside=raw.mask)
    content = read_points(path, dtype="float64")
    return WholeCloud(content.points, content.faces, up=content.up)


def count_clouds(path: str | Path) -> int | None:
    """Count the clouds of an h5 file or of one data set in it, `file.h5#group/data`, that holds several.

    Returns:
        Their number; None where the file holds a single cloud, is of another kind, or one of it is named.

    Raises:
        DataError: if the file is damaged, or does not say which data set is meant.
    """
    file, _, part = str(path).partition("#")
    if Path(file).suffix.lower() not in (".h5", ".hdf5") or not Path(file).is_file():
        return None
    if part.rpartition("#")[2].isdecimal():
        return None
    with hdf5.open_hdf5(Path(file)) as content:
        group = hdf5.find(Path(file), content, part)
        if group is None:
            return None
        if hasattr(group, "keys"):
            names = [name for name in group if hdf5.find_array(Path(file), group, name) is not None]
            group = hdf5.find_array(Path(file), group, point_key(Path(file), names)) if names else None
        return len(group) if group is not None and group.ndim == 3 else None


def _of_pickle(file: Path, row: str) -> NDArray[Any]:
    """Read one cloud of a pickle: a list of clouds and one of labels, or splits of (points, label, ...)."""
    content: Any = load_pickled_arrays(file)
    split, _, number = row.rpartition("/")
    if isinstance(content, Mapping):
        clouds = [item[0] for item in content.get(split) or () if isinstance(item, list | tuple) and item]
    else:
        clouds = list(content[0]) if isinstance(content, list | tuple) and len(content) == 2 else []
    if not number.isdigit() or int(number) >= len(clouds):
        known = (
            f"{file.name}#0 to #{len(clouds) - 1}"
            if not isinstance(content, Mapping)
            else ", ".join(f"{file.name}#{name}/0" for name in content)
        )
        raise DataError(file, f"has no cloud {row or '(none is named)'}", f"name one as {known}")
    cloud = np.asarray(clouds[int(number)])
    if cloud.ndim != 2 or cloud.shape[1] < 3 or cloud.dtype.kind != "f":
        raise DataError(
            file, f"its cloud {row} is {cloud.dtype} {cloud.shape}, expected (N, 3)", "convert it"
        )
    if not np.isfinite(cloud[:, :3]).all():
        raise DataError(file, f"its cloud {row} has values that are not finite", "get the file again")
    return cloud[:, :3]
