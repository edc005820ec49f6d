"""The formats of point files: endings, how they are read and written, and what they can hold.

One list, which all ask that take files: reading, folders of clouds, predictions, views, checks, conversions.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from pcl_clora.io import arrays, columns, e57, hdf5, kitti, las, meshes, obj, off, pcd, ply
from pcl_clora.io.errors import DataError, explained
from pcl_clora.io.fields import Array, Read

Reader: TypeAlias = "Callable[[Path, str, int | None, int | None], Read]"
Writer: TypeAlias = "Callable[[Path, Array, Mapping[str, Array], Array | None], None]"
Axis: TypeAlias = Literal["x", "y", "z", "-x", "-y", "-z"]

ANY = ("any",)  # all fields of numbers, by name
_HEAD = 1 << 12


@dataclass(frozen=True)
class Format:
    """One kind of file.

    Attributes:
        name: what people call it.
        suffixes: endings of its files, in lower case with the dot.
        read: gives points, fields and triangles; None where files are only written.
        write: takes a path, points (N, 3), fields and triangles; None where files are only read.
        fields: names that it can hold; `ANY` for all.
        faces: "yes", "no", or "only" where points without triangles cannot be kept.
        exact: whether coordinates are kept as float64; otherwise they are float32.
        parts: whether `file#part` names a part of a file.
        package: what must be installed besides this package; "" for nothing.
        up: axis that the format says points up; "" where it says nothing.
        unit: of coordinates, where the format says it.
        magic: pattern that the beginning of every such file matches; "" for none.
    """

    name: str
    suffixes: tuple[str, ...]
    read: Reader | None
    write: Writer | None = None
    fields: tuple[str, ...] = ANY
    faces: Literal["yes", "no", "only"] = "no"
    exact: bool = True
    parts: bool = False
    package: str = ""
    up: Axis | Literal[""] = ""
    unit: str = ""
    magic: bytes = b""


FORMATS: tuple[Format, ...] = (
    Format("numpy array", (".npy",), arrays.read_npy, arrays.write_npy, magic=rb"\x93NUMPY"),
    Format("numpy archive", (".npz",), arrays.read_npz, arrays.write_npz, faces="yes"),
    Format("columns of text", (".txt", ".xyz", ".asc"), columns.read_text, columns.write_text),
    Format("columns with names", (".csv",), columns.read_text, columns.write_text),
    Format(
        "columns after a count", (".pts",), columns.read_text, columns.write_text, ("intensity", "colors")
    ),
    Format("columns with normals", (".xyzn",), columns.read_text, columns.write_text, ("normals",)),
    Format("columns with colours", (".xyzrgb",), columns.read_text, columns.write_text, ("colors",)),
    Format(
        "HDF5", (".h5", ".hdf5"), hdf5.read_hdf5, hdf5.write_hdf5, faces="yes", parts=True,
        magic=rb"\x89HDF\r\n\x1a\n",
    ),
    Format(
        "Object file format", (".off",), off.read_off, off.write_off, ("colors", "normals"), "yes",
        magic=rb"(ST)?C?N?4?n?OFF[\s\d]",
    ),
    Format("Stanford ply", (".ply",), ply.read_ply, ply.write_ply, faces="yes", magic=rb"ply[ \t]*[\r\n]"),
    Format(
        "Point Cloud Library", (".pcd",), pcd.read_pcd, pcd.write_pcd, package="pypcd4",
        magic=rb"# \.PCD|(#[^\n]*\n)*VERSION \.?\d",
    ),
    Format(
        "laser scan", (".las", ".laz"), las.read_las, las.write_las, package="laspy[lazrs]", up="z",
        magic=rb"LASF",
    ),
    Format(
        "ASTM E57", (".e57",), e57.read_e57, e57.write_e57, ("colors", "intensity"), parts=True,
        package="pye57", up="z", unit="m", magic=rb"ASTM-E57",
    ),
    Format("Wavefront", (".obj",), obj.read_obj, obj.write_obj, ("colors", "normals"), "yes"),
    Format(
        "stereolithography", (".stl",), meshes.reader("stl"), meshes.write_mesh, (), "only", exact=False,
        package="trimesh", magic=rb"solid[ \r\n]",
    ),
    Format(
        "glTF", (".glb",), meshes.reader("glb"), meshes.write_mesh, ("colors",), "yes", exact=False,
        package="trimesh", up="y", unit="m", magic=rb"glTF[\1\2]\0\0\0",
    ),
    Format(
        "glTF of text", (".gltf",), meshes.reader("gltf"), meshes.write_mesh, ("colors",), "yes", exact=False,
        package="trimesh", up="y", unit="m",
    ),
    Format(
        "3D manufacturing", (".3mf",), meshes.reader("3mf"), meshes.write_mesh, (), "only", exact=False,
        package="trimesh, lxml and networkx", up="z", unit="mm",
    ),
    Format(
        "KITTI scan", (".bin",), kitti.read_kitti, kitti.write_kitti, ("intensity",), exact=False, up="z",
        unit="m",
    ),
)  # fmt: skip
"""All formats, the plainest first."""

POINT_SUFFIXES: tuple[str, ...] = tuple(suffix for one in FORMATS if one.read for suffix in one.suffixes)
"""File name endings that `read_points` knows."""

WRITE_SUFFIXES: tuple[str, ...] = tuple(suffix for one in FORMATS if one.write for suffix in one.suffixes)
"""File name endings that `write_points` knows."""

_BY_SUFFIX = {suffix: one for one in FORMATS for suffix in one.suffixes}

# Beginnings of what is no file of points, whatever it is called -> what it is, and what to do.
_OTHERS = (
    (rb"version https://git-lfs", "is a pointer of git-lfs to the file", "fetch it: git lfs pull"),
    (rb"\s*<(!doctype html|html)", "is a web page", "get the file itself; the server may want a login"),
    (rb"\x1f\x8b|BZh\d|\xfd7zXZ|\x28\xb5\x2f\xfd|7z\xbc\xaf", "is a packed file", "unpack it"),
    (rb"\x89PNG|\xff\xd8\xff|GIF8|%PDF|RIFF", "is a picture or a document", "name a file of points"),
    (rb"\x7fELF|MZ\x90", "is a program", "name a file of points"),
)


def format_of(path: str | Path) -> Format | None:
    """Find the format that the name of a file says; None for an unknown ending."""
    return _BY_SUFFIX.get(Path(path).suffix.lower())


def is_of_gltf(path: Path) -> bool:
    """Tell the numbers of a glTF beside it, which are no file of their own, from a scan that ends in .bin."""
    return path.suffix.lower() == ".bin" and path.with_suffix(".gltf").is_file()


def recognised(path: Path) -> Format | None:
    """Find the format that the first bytes of a file say; None where they say none.

    Raises:
        DataError: if they are those of something that holds no points, such as a web page or a picture.
    """
    with explained(path, "read"), path.open("rb") as file:
        head = file.read(_HEAD)
    if not head:
        raise DataError(path, "is empty, it holds no points", "get the file again")
    for pattern, what, remedy in _OTHERS:
        if re.match(pattern, head, re.IGNORECASE):
            raise DataError(path, f"{what}, whatever its name says", remedy)
    if head.startswith(b"PK\x03\x04"):
        return _BY_SUFFIX[_kind_of_zip(path)] if _kind_of_zip(path) else None
    return next((one for one in FORMATS if one.magic and re.match(one.magic, head)), None)


def _kind_of_zip(path: Path) -> str:
    """Tell a 3mf from a numpy archive by what it holds; "" for other archives and torn ones."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        return ""
    if any(name.lower().endswith(".model") for name in names):
        return ".3mf"
    return ".npz" if any(name.endswith(".npy") for name in names) else ""


def listed(suffixes: tuple[str, ...] = POINT_SUFFIXES) -> str:
    """Name all endings in a message."""
    return ", ".join(suffixes)
