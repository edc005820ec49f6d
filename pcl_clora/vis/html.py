"""One self-contained page with clouds: no network, no library; it opens on a double click."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from pcl_clora.errors import UserValueError
from pcl_clora.io import write_text
from pcl_clora.io.pictures import PLAIN, TILT, TURN, VIRIDIS, rgb
from pcl_clora.io.text import visible
from pcl_clora.vis.panel import LabelLayer, Panel, ScalarLayer, check_panels

QUANTISE_ABOVE = 200_000  # points; larger clouds get positions of 16 bits unless told otherwise
FRAME_HEIGHT = 560  # pixels of a page inside a notebook
_ESCAPES = {
    ord("<"): "\\u003c",
    ord(">"): "\\u003e",
    ord("&"): "\\u0026",
    0x2028: "\\u2028",
    0x2029: "\\u2029",
}


@dataclass(frozen=True)
class HtmlPage:
    """A page, and where it was written to. In a notebook it shows inline.

    Attributes:
        text: the page.
        path: its file; None if it was not written.
    """

    text: str = field(repr=False)
    path: Path | None = None

    def __fspath__(self) -> str:
        """Be usable wherever a path is."""
        if self.path is None:
            raise UserValueError("This page was not written to a file; call render_html with a path.")
        return str(self.path)

    def _repr_html_(self) -> str:
        """Show the page inside a notebook, in a frame of its own."""
        return (
            f'<iframe srcdoc="{html.escape(self.text, quote=True)}" sandbox="allow-scripts allow-downloads" '
            f'style="width:100%;height:{FRAME_HEIGHT}px;border:0"></iframe>'
        )


@dataclass(frozen=True)
class Item:
    """One entry of a gallery.

    Attributes:
        title: its name.
        panels: what a click opens.
        thumbnail: png bytes.
        score: the number that the gallery is sorted by, in [0, 1]; None where it is not known.
        group: a name to filter by, such as the category.
    """

    title: str
    panels: tuple[Panel, ...]
    thumbnail: bytes = b""
    score: float | None = None
    group: str = ""


def render_html(
    path: str | Path | None,
    panels: Sequence[Panel],
    *,
    title: str = "Point clouds",
    up: str = "y",
    quantise: bool | None = None,
) -> HtmlPage:
    """Write a page that shows panels side by side, with linked cameras.

    Args:
        path: where to; None to make the page without writing it, for a notebook.
        panels: what to show; arrays that several of them share are stored once.
        title: of the page.
        up: the axis that points up, "y" or "z".
        quantise: store positions in 16 bits an axis instead of 32; the page names the step. None for clouds
            of more than 200,000 points.

    Returns:
        The page; also a path, where it was written.

    Raises:
        ValueError: if there are no panels, or up is neither y nor z.
    """
    return _write(path, [Item(title, check_panels(panels))], title, up, quantise, gallery=False)


def render_gallery(
    path: str | Path | None,
    items: Sequence[Item],
    *,
    title: str = "Gallery",
    up: str = "y",
    quantise: bool | None = True,
    score_name: str = "IoU",
) -> HtmlPage:
    """Write a page of thumbnails, worst score first; a click opens the panels.

    Args:
        path: as in `render_html`, as all the others.
        items: what to show.
        title: of the page.
        up: the axis that points up.
        quantise: 16 bits for positions by default, because a gallery holds many clouds.
        score_name: what the scores are, beside which they stand in percent.
    """
    if not items:
        raise UserValueError("There is nothing to show: give at least one Item.")
    known = [item for item in items if item.score is not None]
    order = sorted(known, key=lambda item: item.score or 0.0)
    order += [item for item in items if item.score is None]
    return _write(path, order, title, up, quantise, gallery=True, score_name=score_name)


def _write(
    path: str | Path | None,
    items: Sequence[Item],
    title: str,
    up: str,
    quantise: bool | None,
    *,
    gallery: bool,
    score_name: str = "",
) -> HtmlPage:
    if up not in ("y", "z"):
        raise UserValueError(f"up={up!r}; use 'y' or 'z'.")
    store, title = _Store(), visible(title)
    content = {
        "title": title,
        "up": up,
        "gallery": gallery,
        "scoreName": score_name,
        "turn": TURN,
        "tilt": TILT,
        "plain": rgb(PLAIN),
        "scale": VIRIDIS,
        "items": [_item(item, store, quantise) for item in items],
    }
    names = ("page.html", "viewer.js", "viewer.css")
    more = {"images": "data: blob:", "BUFFERS": "\n".join(store.tags())}
    text = whole_page(*map(page_part, names), title=title, content=content, **more)
    if path is not None:
        write_text(path, text)
    return HtmlPage(text, None if path is None else Path(path))


def whole_page(
    body: str, script: str, style: str, *, title: str, content: Any, images: str = "data:", **more: str
) -> str:
    """Make a page that loads nothing: head, body, one script and one style that its policy names.

    Args:
        body: template from "<body>" on, with places "@@NAME@@" for SCRIPT, DATA and those of `more`.
        script: of the page.
        style: of the page.
        title: shown by the browser.
        content: what the script finds as DATA, in json types.
        images: where the policy lets pictures come from.
        more: texts by the names of their places.
    """
    filled = {
        "TITLE": html.escape(title),
        "IMAGES": images,
        "SCRIPT_HASH": policy_hash(script),
        "STYLE_HASH": policy_hash(style),
        "STYLE": style,
        "SCRIPT": script,
        "DATA": safe_json(content),
        **more,
    }
    pieces = (page_part("head.html") + body).split("@@")
    return "".join(filled[piece] if number % 2 else piece for number, piece in enumerate(pieces))


def safe_json(content: Any) -> str:
    """Write json that no text inside it can break out of, whatever element it stands in."""
    return json.dumps(content, allow_nan=False, separators=(",", ":")).translate(_ESCAPES)


@cache
def page_part(name: str) -> str:
    """Read a part of the pages."""
    return (files("pcl_clora.vis") / "page" / name).read_text(encoding="utf-8")


def policy_hash(text: str) -> str:
    """Name a script or a style in the content security policy of its page."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


class _Store:
    """Arrays of a page; equal ones are stored once."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._known: dict[bytes, int] = {}
        self._seen: dict[tuple[int, bool], tuple[np.ndarray, dict[str, Any]]] = {}

    def add(self, array: np.ndarray) -> int:
        """Store an array and return its number."""
        content = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
        key = hashlib.blake2b(content.data, digest_size=16).digest() + array.dtype.str.encode()
        if key not in self._known:
            self._known[key] = len(self._texts)
            self._texts.append(base64.b64encode(content.data).decode("ascii"))
        return self._known[key]

    def points(self, points: np.ndarray, quantise: bool | None) -> dict[str, Any]:
        """Store points, moved to the middle of their box and scaled to reach at most 1."""
        small = len(points) > QUANTISE_ABOVE if quantise is None else quantise
        if (id(points), small) in self._seen:
            return self._seen[id(points), small][1]
        low, high = points.min(axis=0).astype(np.float64), points.max(axis=0).astype(np.float64)
        spread = np.where(high > low, high - low, 1.0)
        if small:
            low32, scale32 = low.astype(np.float32), (65535.0 / spread).astype(np.float32)
            exact = points if np.abs(low).max() > 100 * spread.max() else None
            moved = (points - low) if exact is not None else points.astype(np.float32, copy=False) - low32
            stored = np.clip(moved * scale32 + np.float32(0.5), 0, 65535).astype(np.uint16)
        else:
            stored = (points - low).astype(np.float32)
        entry = {
            "buffer": self.add(stored),
            "type": "u16" if small else "f32",
            "count": len(points),
            "low": low.tolist(),
            "scale": (spread / 65535.0 if small else np.ones(3)).tolist(),
            "size": np.where(high > low, high - low, 0.0).tolist(),
        }
        self._seen[id(points), small] = (points, entry)
        return entry

    def tags(self) -> list[str]:
        """Write the arrays as elements of the page."""
        return [
            f'<script type="text/plain" id="buffer{number}">{text}</script>'
            for number, text in enumerate(self._texts)
        ]


def _item(item: Item, store: _Store, quantise: bool | None) -> dict[str, Any]:
    thumbnail = base64.b64encode(item.thumbnail).decode("ascii")
    return {
        "title": visible(item.title),
        "group": visible(item.group),
        "score": item.score,
        "thumbnail": f"data:image/png;base64,{thumbnail}" if thumbnail else "",
        "panels": [_panel(panel, store, quantise) for panel in item.panels],
    }


def _panel(panel: Panel, store: _Store, quantise: bool | None) -> Mapping[str, Any]:
    shown = panel.shown()
    centers = None
    if panel.centers is not None:
        centers = {"buffer": store.add(panel.centers.astype(np.float32)), "count": len(panel.centers)}
    return {
        "title": visible(panel.title),
        "note": panel.note,
        "points": store.points(panel.points, quantise),
        "centers": centers,
        "shown": 0 if shown is None else panel.layers.index(shown),
        "layers": [_layer(layer, store) for layer in panel.layers],
    }


def _layer(layer: LabelLayer | ScalarLayer, store: _Store) -> dict[str, Any]:
    if isinstance(layer, LabelLayer):
        return {
            "kind": "labels",
            "name": visible(layer.name),
            "buffer": store.add(layer.index),
            "type": "u8" if layer.index.dtype == np.uint8 else "u16",
            "labels": layer.labels,
            "names": [visible(name) for name in layer.names],
            "colours": layer.colours,
            "ious": layer.ious,
            "counts": layer.counts,
        }
    steps = (layer.share() * np.float32(65535) + np.float32(0.5)).astype(np.uint16)
    return {
        "kind": "scalars",
        "name": visible(layer.name),
        "buffer": store.add(steps),
        "type": "u16",
        "low": layer.low,
        "high": layer.high,
    }
