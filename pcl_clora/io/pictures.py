"""Points as pictures without a display: colours that colour-blind people tell apart, a raster, a png file."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence

import numpy as np

from pcl_clora.errors import UserValueError

PART_COLOURS = (
    "#e69f00", "#56b4e9", "#009e73", "#cc79a7", "#f0e442", "#0072b2", "#d55e00", "#4d4d4d",
    "#332288", "#44aa99", "#999933", "#cc6677", "#882255", "#88ccee", "#117733", "#ddcc77", "#aa4499",
)  # fmt: skip
"""Colours of parts: seven of Okabe and Ito (2008) and a grey, then Paul Tol's muted set."""

VIRIDIS = (
    (68, 1, 84), (72, 24, 106), (71, 45, 123), (66, 64, 134), (59, 82, 139), (51, 99, 141), (44, 114, 142),
    (38, 130, 142), (33, 145, 140), (31, 160, 136), (40, 174, 128), (63, 188, 115), (94, 201, 98),
    (132, 212, 75), (173, 220, 48), (216, 226, 25), (253, 231, 37),
)  # fmt: skip
PLAIN = "#6f93b8"  # colour of points without labels or numbers
TURN, TILT = 0.6, 0.35  # radians; where a picture is seen from
_AMBIENT = 0.62  # brightness of what looks away


def part_colour(index: int) -> str:
    """Return the colour of the index-th part as "#rrggbb"; colours come again after 17 parts."""
    return PART_COLOURS[index % len(PART_COLOURS)]


def rgb(colour: str) -> tuple[int, int, int]:
    """Turn "#rrggbb" into three numbers 0..255.

    Raises:
        ValueError: if it is not such a text.
    """
    try:
        if len(colour) != 7 or colour[0] != "#":
            raise ValueError
        value = int(colour[1:], 16)
    except ValueError:
        raise UserValueError(
            f"{colour!r} is not a colour; write it as '#rrggbb', for example '#e69f00'."
        ) from None
    return value >> 16, value >> 8 & 255, value & 255


def scalar_colours(values: np.ndarray) -> np.ndarray:
    """Colour numbers from dark violet (0) to yellow (1): (N,) -> (N, 3), uint8.

    Source: the colour map viridis (van der Walt and Smith, 2015, CC0), from 17 of its colours.
    """
    anchors = np.array(VIRIDIS, dtype=np.float64)
    place = np.clip(np.asarray(values, dtype=np.float64), 0.0, 1.0) * (len(anchors) - 1)
    columns = [np.interp(place, np.arange(len(anchors)), column) for column in anchors.T]
    return np.asarray(np.stack(columns, axis=-1).round(), dtype=np.uint8)


def up_is_y(points: np.ndarray, up: str) -> np.ndarray:
    """Turn clouds whose third axis points up so that the second one does.

    Raises:
        ValueError: if up is neither "y" nor "z".
    """
    if up == "y":
        return points
    if up != "z":
        raise UserValueError(f"up={up!r}; use 'y' or 'z'.")
    return np.stack([points[:, 0], points[:, 2], -points[:, 1]], axis=1)


def view_axes() -> tuple[np.ndarray, np.ndarray]:
    """Return what points to the right in a picture, and what points towards the eye: (3,), of length 1."""
    across = np.array([np.cos(TURN), 0.0, -np.sin(TURN)])
    towards = np.array([np.sin(TURN) * np.cos(TILT), np.sin(TILT), np.cos(TURN) * np.cos(TILT)])
    return across, towards


def draw_cloud(
    points: np.ndarray,
    colours: np.ndarray,
    *,
    size: int = 256,
    radius: float | None = None,
    background: Sequence[int] = (255, 255, 255),
    up: str = "y",
    frame: np.ndarray | None = None,
) -> np.ndarray:
    """Draw points as small shaded balls, seen from the front, the right and above; near ones hide far ones.

    Args:
        points: (N, 3), any unit; centred and scaled to fill the picture.
        colours: (N, 3), uint8.
        size: pixels of the picture's sides.
        radius: of a ball, in pixels; None for one that lets 2,048 points look like a surface.
        background: colour behind the points.
        up: which axis points up, "y" or "z".
        frame: (M, 3), the points that fill the picture, where several pictures are to show one place and
            scale; None for `points`.

    Returns:
        (size, size, 3), uint8.
    """
    xyz = up_is_y(np.asarray(points, dtype=np.float64), up)
    around = xyz if frame is None else up_is_y(np.asarray(frame, dtype=np.float64), up)
    middle = (around.min(axis=0) + around.max(axis=0)) / 2
    reach = np.sqrt(((around - middle) ** 2).sum(axis=1).max()) or 1.0
    xyz = xyz - middle
    ball = float(np.clip(0.75 * size / np.sqrt(len(xyz)), 0.8, 0.04 * size)) if radius is None else radius
    across, towards = view_axes()
    scale = (size / 2 - ball - 1) / reach
    order = np.argsort(xyz @ towards, kind="stable")  # of equal pixels the last one, the nearest, stays
    xyz, colours = xyz[order], np.asarray(colours)[order]
    column = size / 2 + scale * (xyz @ across)
    row = size / 2 - scale * (xyz @ np.cross(towards, across))
    depth = scale * (xyz @ towards)
    picture = np.empty((size * size, 3), np.uint8)
    picture[:] = np.asarray(background, np.uint8)
    nearest = np.full(size * size, -np.inf)
    steps = range(-int(np.ceil(ball)), int(np.ceil(ball)) + 1)
    for down in steps:
        for right in steps:
            distance2 = (down**2 + right**2) / ball**2
            if distance2 > 1 and (down, right) != (0, 0):
                continue
            bulge = np.sqrt(max(1 - distance2, 0.0))
            x = np.clip(np.rint(column + right), 0, size - 1).astype(np.int64)
            y = np.clip(np.rint(row + down), 0, size - 1).astype(np.int64)
            _put(
                picture,
                nearest,
                y * size + x,
                depth + ball * bulge,
                colours,
                _light(down, right, bulge, ball),
            )
    return picture.reshape(size, size, 3)


def _light(down: int, right: int, bulge: float, ball: float) -> float:
    """Brightness of a place on a ball, lit from the upper left in front."""
    facing = (-0.35 * right / ball - 0.45 * down / ball + 0.82 * bulge) / 1.0
    return min(1.0, _AMBIENT + (1.05 - _AMBIENT) * max(facing, 0.0))


def _put(
    picture: np.ndarray,
    nearest: np.ndarray,
    pixel: np.ndarray,
    depth: np.ndarray,
    colours: np.ndarray,
    light: float,
) -> None:
    """Write one pixel of every ball where nothing nearer stands; balls come from far to near."""
    seen = depth > nearest[pixel]
    pixel, depth, colours = pixel[seen], depth[seen], colours[seen]
    nearest[pixel] = depth
    picture[pixel] = (colours * light).astype(np.uint8)


def encode_png(pixels: np.ndarray) -> bytes:
    """Turn a picture (H, W, 3), uint8, into the bytes of a png file.

    Source: Portable Network Graphics specification, W3C, third edition, sections 5 and 11.
    """
    height, width, _ = pixels.shape
    rows = np.ascontiguousarray(pixels, dtype=np.uint8).reshape(height, 3 * width)
    before = np.zeros_like(rows)
    before[1:] = rows[:-1]
    filtered = np.concatenate([np.full((height, 1), 2, np.uint8), rows - before], axis=1)  # filter 2: "up"

    def chunk(kind: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            chunk(b"IDAT", zlib.compress(filtered.tobytes(), 6)),
            chunk(b"IEND", b""),
        ]
    )
