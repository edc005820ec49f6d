"""Meshes and scenes of other programs: stl, glb, gltf and 3mf, by trimesh."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pcl_clora.errors import UserValueError
from pcl_clora.io import child
from pcl_clora.io.fields import Array, Read, colors_of_bits


def reader(kind: str) -> Callable[[Path, str, int | None, int | None], Read]:
    """Make the reader of "stl", "glb", "gltf" or "3mf".

    It reads all bodies of a file where its scene puts them, in a process of its own: vertices, triangles, and
    of a vertex its colour, its normal and what a glb calls its attributes. Textures are not read.
    """

    def read(path: Path, part: str, row: int | None, max_points: int | None) -> Read:
        child.need(path, "trimesh", "trimesh")
        if kind == "3mf":
            child.need(path, "lxml", "lxml")
            child.need(path, "networkx", "networkx")
        return child.parse(path, "mesh", kind, max_points)

    return read


def write_mesh(path: Path, points: Array, fields: Mapping[str, Array], faces: Array | None) -> None:
    """Write stl or 3mf, which hold triangles only, or glb or gltf, each as one file, with colours."""
    child.need(path, "trimesh", "trimesh")
    import trimesh

    kind = path.suffix.lower().lstrip(".")
    points = np.asarray(points)
    if faces is None and kind in ("stl", "3mf"):
        raise UserValueError(f"{path}: .{kind} holds triangles, and these points have none; use .ply.")
    colors = colors_of_bits(fields["colors"], 8) if "colors" in fields else None
    body: Any
    if faces is None:
        body = trimesh.PointCloud(points, colors=colors)
    else:
        body = trimesh.Trimesh(points, faces, vertex_colors=colors, process=False)
    scene = trimesh.Scene([body])
    if kind == "gltf":
        from trimesh.exchange.gltf import export_gltf

        path.write_bytes(export_gltf(scene, embed_buffers=True)["model.gltf"])
    else:
        content = (scene if kind in ("glb", "3mf") else body).export(file_type=kind)
        path.write_bytes(content)
