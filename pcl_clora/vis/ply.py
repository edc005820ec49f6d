"""Coloured ply files, which other programs open."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pcl_clora.errors import UserValueError
from pcl_clora.io import write_points
from pcl_clora.vis.panel import LabelLayer, Panel


def write_ply(path: str | Path, panel: Panel) -> Path:
    """Write the points of a panel with the colours it shows first, and all its labels and scalars.

    Args:
        path: where to, ending in ".ply".
        panel: what to write. Its labels keep their numbers; their names do not fit into the format.

    Returns:
        The path.

    Raises:
        ValueError: if the path does not end in ".ply".
    """
    path = Path(path)
    if path.suffix.lower() != ".ply":
        raise UserValueError(f"{path} does not end in .ply; name the file so.")
    fields: dict[str, np.ndarray] = {"colors": panel.rgb()}
    for layer in panel.layers:
        name = "".join(mark if mark.isascii() and mark.isalnum() else "_" for mark in layer.name)
        if isinstance(layer, LabelLayer):
            fields[name] = np.array(layer.labels, dtype=np.int64)[layer.index]
        else:
            fields[name] = layer.values
    write_points(path, panel.points, fields)
    return path
