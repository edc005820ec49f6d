"""Points of the surface of a mesh that was read from a file."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pcl_clora.data.shapes import Draw, Mesh
from pcl_clora.errors import UserValueError
from pcl_clora.io import PointFile


def sample_surface(content: PointFile, num_points: int, seed: int = 0) -> PointFile:
    """Draw points uniformly over the area of a mesh, with what its vertices say of them.

    A point of a triangle gets the mean of the fields of its corners, weighted by where it lies; labels, and
    all other whole numbers but colours, are those of the nearest corner. Normals have length 1; a mesh
    without gives those of its triangles.

    Args:
        content: what `read_points` gave.
        num_points: N >= 1.
        seed: the same seed gives the same points, on any machine.

    Raises:
        UserValueError: if there are no triangles, or they have no area.
    """
    if content.faces is None:
        raise UserValueError("These points have no triangles, and a surface was to be sampled.")
    if num_points < 1:
        raise UserValueError(f"num_points={num_points}; expected at least 1.")
    mesh = Mesh(content.points.astype(np.float64), content.faces, np.zeros(len(content.faces), np.int64))
    if not mesh.areas().sum() > 0:
        raise UserValueError("The triangles of this mesh have no area, so no points can be drawn from them.")
    face, weights = mesh.pick(num_points, Draw("surface", seed))
    corners = content.faces[face]  # (N, 3)
    nearest = corners[np.arange(num_points), weights.argmax(axis=1)]
    fields: dict[str, NDArray[np.generic]] = {}
    for name, values in content.fields.items():
        if values.dtype.kind == "f" or name == "colors":
            flat = values.reshape(len(values), -1).astype(np.float64)
            mean = np.einsum("nk,nkc->nc", weights, flat[corners])
            if name == "normals":
                mean /= np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-30)
            mean = np.rint(mean) if values.dtype.kind != "f" else mean
            fields[name] = mean.reshape(num_points, *values.shape[1:]).astype(values.dtype)
        else:
            fields[name] = values[nearest]
    a, b, c = mesh.vertices[corners].transpose(1, 0, 2)
    points = a * weights[:, :1] + b * weights[:, 1:2] + c * weights[:, 2:]
    if "normals" not in fields:
        normals = np.cross(b - a, c - a)
        length = np.linalg.norm(normals, axis=1, keepdims=True)
        fields["normals"] = (normals / np.where(length > 0, length, 1.0)).astype(np.float32)
    return PointFile(
        points.astype(content.points.dtype), fields, None, content.up, content.unit, content.origin
    )
