"""Random 3D programs: primitives composed with deformation, symmetry, repetition and cuts; no two alike.

A program adds one to six components. Each is a primitive that is bent, twisted or tapered, turned, put at the
surface of what is there already, and then repeated along a line or a circle, or mirrored. Cuts remove what
lies in a half-space or a ball.

Source: the idea that such shapes suffice for pre-training is that of Learning 3D Representations from
Procedural 3D Programs (Point-MAE-Zero, 2024); primitives, operations and their frequencies are our choice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from pcl_clora.data.shapes.draw import Draw
from pcl_clora.data.shapes.mesh import Mesh, Piece, ShapeBuilder, curve, rounded_outline

PART = "surface"
MAX_COMPONENTS = 6
_TRIAL_POINTS = 512  # points that say how much of a surface a cut would leave
Cut = Callable[[np.ndarray], np.ndarray]  # (N, 3) points -> (N,) whether they are cut away


def build_program(draw: Draw) -> tuple[Mesh, tuple[Cut, ...]]:
    """Run one random program.

    Args:
        draw: where random numbers come from.

    Returns:
        The mesh, before cutting, and the cuts.
    """
    builder = ShapeBuilder((PART,))
    pieces: list[Piece] = []
    for number in range(draw.integer(1, MAX_COMPONENTS)):
        piece = draw.pick(_PRIMITIVES)(builder, draw)
        _size(piece, draw, 1.0 if number == 0 else draw.uniform(0.25, 0.8))
        _bend(piece, draw)
        _turn(piece, draw)
        if pieces:
            anchor = draw.pick(pieces).vertices
            piece.move(*anchor[draw.integer(0, len(anchor) - 1)])
        pieces.append(piece)
        pieces += _repeat(builder, piece, draw)
    mesh = builder.mesh()
    return mesh, tuple(_cut(mesh.vertices, draw) for _ in range(draw.pick((0, 0, 0, 1, 1, 2))))


def sample_program(mesh: Mesh, cuts: Sequence[Cut], num_points: int, draw: Draw) -> np.ndarray:
    """Draw points uniformly over what the cuts leave of the surface.

    Returns:
        (num_points, 3), float64. A cut that would leave less than a quarter of the surface is not made.
    """
    tried, _ = mesh.sample(_TRIAL_POINTS, draw)
    made: list[Cut] = []
    for cut in cuts:
        left = tried[~cut(tried)]
        if 4 * len(left) >= _TRIAL_POINTS:
            tried = left
            made.append(cut)
    if not made:
        return mesh.sample(num_points, draw)[0]
    kept: list[np.ndarray] = []
    while sum(map(len, kept)) < num_points:
        points, _ = mesh.sample(2 * num_points, draw)
        for cut in made:
            points = points[~cut(points)]
        kept.append(points)
    return np.concatenate(kept)[:num_points]


def _ball(builder: ShapeBuilder, draw: Draw) -> Piece:
    return builder.ball(PART, (1.0, 1.0, 1.0))


def _box(builder: ShapeBuilder, draw: Draw) -> Piece:
    return builder.box(PART, (1.0, 1.0, 1.0))


def _block(builder: ShapeBuilder, draw: Draw) -> Piece:
    return builder.block(PART, (1.0, 1.0, 1.0), edge=draw.uniform(0.1, 0.9))


def _torus(builder: ShapeBuilder, draw: Draw) -> Piece:
    return builder.torus(PART, 0.4, draw.uniform(0.04, 0.16))


def _turned(builder: ShapeBuilder, draw: Draw) -> Piece:
    """Turn a random smooth profile: bottles, bowls, cones, discs."""
    knots = [(draw.uniform(0.03, 0.5), height) for height in np.linspace(-0.5, 0.5, draw.integer(2, 5))]
    profile = curve(knots, 12)
    caps = draw.chance(0.7)
    return builder.revolve(PART, profile[:, 0].clip(0.02), profile[:, 1], caps=caps)


def _tube(builder: ShapeBuilder, draw: Draw) -> Piece:
    """Sweep a circle along a random smooth curve."""
    knots = 0.5 * (2 * draw.array(draw.integer(2, 4), 3) - 1)
    knots[:, 1] = np.linspace(-0.5, 0.5, len(knots))
    radius = np.linspace(draw.uniform(0.02, 0.12), draw.uniform(0.02, 0.12), 14)
    return builder.tube(PART, curve(list(knots), 14), radius)


def _plate(builder: ShapeBuilder, draw: Draw) -> Piece:
    """Extrude a rounded or a star-shaped outline."""
    if draw.chance(0.5):
        outline = rounded_outline(1.0, 1.0, draw.uniform(0.8, 6.0))
    else:
        waves, steps = draw.integer(2, 7), 40
        angle = np.linspace(0.0, 2 * np.pi, steps, endpoint=False)
        radius = 0.4 * (1 + draw.uniform(0.05, 0.35) * np.cos(waves * angle))
        outline = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return builder.prism(PART, outline, draw.uniform(0.05, 0.6), steps=5)


def _loft(builder: ShapeBuilder, draw: Draw) -> Piece:
    """Join outlines that change from one end to the other, along a bent axis."""
    rings = np.empty((7, 20, 3))
    ends = [rounded_outline(draw.uniform(0.2, 1), draw.uniform(0.2, 1), draw.uniform(1, 6)) for _ in range(2)]
    for number, share in enumerate(np.linspace(0.0, 1.0, 7)):
        rings[number, :, ::2] = (1 - share) * ends[0] + share * ends[1]
        rings[number, :, 1] = share - 0.5
    return builder.loft(PART, rings, caps=draw.chance(0.8))


_PRIMITIVES = (_ball, _box, _box, _block, _torus, _turned, _turned, _tube, _plate, _loft)


def _size(piece: Piece, draw: Draw, largest: float) -> None:
    """Stretch by independent factors, so that plates, rods and blocks come up alike."""
    factors = [largest * math.exp(draw.uniform(math.log(0.12), 0.0)) for _ in range(3)]
    piece.scale(*factors)


def _bend(piece: Piece, draw: Draw) -> None:
    """Taper, twist and bend along a random axis."""
    vertices, axis = piece.vertices, draw.integer(0, 2)
    first, second = (axis + 1) % 3, (axis + 2) % 3
    half = np.abs(vertices[:, axis]).max() + 1e-9
    along = vertices[:, axis] / half
    if draw.chance(0.35):
        vertices[:, [first, second]] *= (1.0 + draw.uniform(-0.6, 0.6) * along)[:, None]
    if draw.chance(0.25):
        angle = draw.uniform(-1.2, 1.2) * along
        a, b = vertices[:, first].copy(), vertices[:, second].copy()
        vertices[:, first] = np.cos(angle) * a - np.sin(angle) * b
        vertices[:, second] = np.sin(angle) * a + np.cos(angle) * b
    if draw.chance(0.3):
        vertices[:, first] += draw.uniform(-0.6, 0.6) * half * along**2


def _turn(piece: Piece, draw: Draw) -> None:
    """Keep upright, turn by right angles, or turn anyhow: most man-made things have parallel axes."""
    kind = draw.uniform()
    if kind < 0.4:
        piece.turn(draw.pick(("x", "y", "z")), draw.pick((0.0, 90.0)))
    elif kind < 0.7:
        piece.turn("y", draw.uniform(0, 360))
    else:
        for axis in ("x", "y", "z"):
            piece.turn(axis, draw.uniform(0, 360))


def _repeat(builder: ShapeBuilder, piece: Piece, draw: Draw) -> list[Piece]:
    """Mirror a piece, or repeat it along a line or around the vertical axis."""
    kind = draw.uniform()
    if kind < 0.25:
        return [builder.mirrored(piece, draw.pick((0, 2)))]
    if kind < 0.4:
        return [builder.mirrored(each, 2) for each in (piece, builder.mirrored(piece, 0))]
    if kind < 0.55:
        count = draw.integer(3, 8)
        return [builder.copied(piece).turn("y", 360.0 * number / count) for number in range(1, count)]
    if kind < 0.7:
        step = [draw.uniform(-0.5, 0.5) for _ in range(3)]
        step[draw.integer(0, 2)] = 0.0
        count = draw.integer(2, 5)
        return [
            builder.copied(piece).move(*(number * distance for distance in step))
            for number in range(1, count)
        ]
    return []


def _cut(vertices: np.ndarray, draw: Draw) -> Cut:
    """Draw a half-space or a ball that touches the shape."""
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    if draw.chance(0.6):
        direction = draw.normal(3)
        direction /= np.sqrt((direction * direction).sum()) + 1e-12
        reach = vertices @ direction
        level = reach.min() + draw.uniform(0.6, 0.9) * (reach.max() - reach.min())
        return lambda points: points @ direction > level
    middle = low + draw.array(3) * (high - low)
    radius = draw.uniform(0.15, 0.35) * float((high - low).max())
    return lambda points: ((points - middle) ** 2).sum(axis=1) < radius * radius
