"""A map of clouds: near ones look alike; one page without network, a picture of each cloud on hover."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcl_clora.errors import MissingPackageError, UserValueError
from pcl_clora.io import write_text
from pcl_clora.io.pictures import PLAIN, draw_cloud, encode_png, part_colour, rgb
from pcl_clora.vis.html import HtmlPage, page_part, whole_page

PICTURE = 96  # pixels of a cloud's picture
LAYOUTS = ("tsne", "pca")


def lay_out(vectors: NDArray[np.float32], layout: str = "tsne", *, seed: int = 0) -> NDArray[np.float64]:
    """Put vectors onto a plane by scikit-learn.

    Args:
        vectors: (n, dim).
        layout: "tsne", which keeps neighbours together, or "pca", which keeps the largest differences.
        seed: of t-SNE.

    Returns:
        (n, 2), in [0, 100].

    Raises:
        MissingPackageError: if scikit-learn is not installed.
        ValueError: if the layout is not known, or there are fewer than three clouds.
    """
    if layout not in LAYOUTS:
        raise UserValueError(f"layout={layout!r} is not known; use {' or '.join(LAYOUTS)}.")
    if len(vectors) < 3:
        raise UserValueError(f"a map of {len(vectors)} clouds says nothing; give three or more.")
    try:
        from sklearn.decomposition import PCA
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise MissingPackageError("A map needs scikit-learn: pip install 'pcl-clora[sklearn]'.") from error
    values = np.asarray(vectors, dtype=np.float64)
    values = PCA(min(50, len(values) - 1, values.shape[1]), random_state=seed).fit_transform(values)
    if layout == "tsne":
        perplexity = min(30.0, (len(values) - 1) / 3)
        values = TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(values)
    values = np.asarray(values[:, :2], dtype=np.float64)
    low, high = values.min(axis=0), values.max(axis=0)
    spread = float((high - low).max()) or 1.0
    return np.asarray(50 + 100 * (values - (low + high) / 2) / spread)


def picture(points: NDArray[Any], *, size: int = PICTURE, up: str = "y") -> str:
    """Draw a cloud (N, 3) as a png inside an address."""
    cloud = np.asarray(points, dtype=np.float64)
    colours = np.tile(np.array(rgb(PLAIN), dtype=np.uint8), (len(cloud), 1))
    png = encode_png(draw_cloud(cloud, colours, size=size, up=up))
    return f"data:image/png;base64,{base64.b64encode(png).decode('ascii')}"


def render_map(
    path: str | Path | None,
    places: NDArray[np.float64],
    names: Sequence[str],
    *,
    groups: Sequence[str] = (),
    pictures: Sequence[str] = (),
    title: str = "Map of clouds",
    note: str = "",
) -> HtmlPage:
    """Write a page with a point for every cloud.

    Args:
        path: where to; None to make the page without writing it.
        places: (n, 2), in [0, 100], see `lay_out`.
        names: of the clouds.
        groups: what each belongs to; it decides the colour, and the legend picks one out.
        pictures: of each, see `picture`.
        title: of the page.
        note: a line below it.

    Raises:
        ValueError: if lengths differ.
    """
    count = len(names)
    if places.shape != (count, 2) or len(groups) not in (0, count) or len(pictures) not in (0, count):
        raise UserValueError(
            f"{places.shape} places, {count} names, {len(groups)} groups, "
            f"{len(pictures)} pictures; give one of each."
        )
    known = sorted(set(groups))
    points = [
        {
            "x": round(float(places[k, 0]), 3),
            "y": round(100 - float(places[k, 1]), 3),
            "name": names[k],
            "group": groups[k] if groups else "",
            "picture": pictures[k] if pictures else "",
        }
        for k in range(count)
    ]
    colours = {group: part_colour(place) for place, group in enumerate(known)}
    content = {"title": title, "note": note, "colours": colours, "points": points}
    text = whole_page(*map(page_part, ("map.html", "map.js", "map.css")), title=title, content=content)
    if path is not None:
        write_text(path, text)
    return HtmlPage(text, None if path is None else Path(path))
