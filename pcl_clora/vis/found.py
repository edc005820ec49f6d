"""The page of a search: the cloud that was asked for, and the nearest ones from the first."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pcl_clora.predict import ShapeIndex
from pcl_clora.vis.html import HtmlPage, render_gallery
from pcl_clora.vis.segmentation import Answer


def render_found(
    path: str | Path | None,
    query: str,
    points: np.ndarray,
    index: ShapeIndex,
    found: Sequence[tuple[int, float]],
) -> HtmlPage:
    """Write the page of a search.

    Args:
        path: where to; None to make the page without writing it.
        query: what was asked for.
        points: (N, 3), its points.
        index: where it was looked for.
        found: (place, distance) of the nearest clouds.
    """
    items = [replace(Answer(Path(query).name, points).item(), title=f"asked: {query}")]
    for rank, (place, distance) in enumerate(found, 1):
        file = index.files[place]
        answer = Answer(
            Path(file).name, index.points[place].astype(np.float32), said=f"distance {distance:.4f}"
        )
        items.append(replace(answer.item(), title=f"{rank}. {file}, distance {distance:.3f}"))
    return render_gallery(path, items, title=f"Nearest to {Path(query).name}")
