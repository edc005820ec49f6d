"""Triangle meshes built of a few primitives, each triangle with a part label, and area-uniform sampling.

Every primitive is a loft: rings of points joined by quads. Because shapes are meshes until the very end, they
can be bent, twisted and stretched and the samples are still uniform over the area of the result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from pcl_clora.data.shapes.draw import Draw

Vector = Sequence[float] | np.ndarray


@dataclass(frozen=True)
class Mesh:
    """Triangles with part labels.

    Attributes:
        vertices: (V, 3), float64, any unit, y up.
        faces: (F, 3), int64, indices into vertices; triangles without area are allowed.
        part: (F,), int64, part of every triangle.
    """

    vertices: np.ndarray
    faces: np.ndarray
    part: np.ndarray

    def areas(self) -> np.ndarray:
        """Compute the area of every triangle, (F,), float64."""
        return _areas(self.vertices[self.faces])

    def sample(self, num_points: int, draw: Draw) -> tuple[np.ndarray, np.ndarray]:
        """Draw points uniformly over the surface, independent of one another.

        Args:
            num_points: N.
            draw: where random numbers come from.

        Returns:
            Points (N, 3), float64, and the part of each, (N,), int64.
        """
        face, weights = self.pick(num_points, draw)
        a, b, c = self.vertices[self.faces[face]].transpose(1, 0, 2)
        return a * weights[:, :1] + b * weights[:, 1:2] + c * weights[:, 2:], self.part[face]

    def pick(self, num_points: int, draw: Draw) -> tuple[np.ndarray, np.ndarray]:
        """Draw places of the surface, as `sample` does.

        Returns:
            The triangle of each, (N,), int64, and the weights of its corners, (N, 3), float64, of sum 1.
        """
        reach = np.cumsum(self.areas())
        where, first, second = draw.array(3, num_points)
        face = np.searchsorted(reach, where * reach[-1], side="right")
        face = np.minimum(face, len(reach) - 1)
        first = np.sqrt(first)
        return face, np.stack([1.0 - first, first * (1.0 - second), first * second], axis=1)


def _areas(corners: np.ndarray) -> np.ndarray:
    a, b = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
    ax, ay, az, bx, by, bz = a[:, 0], a[:, 1], a[:, 2], b[:, 0], b[:, 1], b[:, 2]
    cross = (ay * bz - az * by) ** 2 + (az * bx - ax * bz) ** 2 + (ax * by - ay * bx) ** 2
    areas: np.ndarray = 0.5 * np.sqrt(cross)
    return areas


class Piece:
    """One primitive of a shape; its methods change it and return it, so that calls can be chained."""

    __slots__ = ("faces", "part", "vertices")

    def __init__(self, vertices: np.ndarray, faces: np.ndarray, part: int) -> None:
        self.vertices = vertices
        self.faces = faces
        self.part = part

    def scale(self, x: float, y: float, z: float) -> Piece:
        """Stretch along the axes about the origin."""
        self.vertices *= (x, y, z)
        return self

    def move(self, x: float, y: float, z: float) -> Piece:
        """Shift."""
        self.vertices += (x, y, z)
        return self

    def turn(self, axis: str, degrees: float) -> Piece:
        """Turn about the axis x, y or z through the origin, counter-clockwise seen from its tip."""
        first, second = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
        cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        a, b = self.vertices[:, first].copy(), self.vertices[:, second].copy()
        self.vertices[:, first] = cos * a - sin * b
        self.vertices[:, second] = sin * a + cos * b
        return self


class ShapeBuilder:
    """Collects the primitives of one shape.

    Args:
        parts: names of the parts, in label order.
    """

    def __init__(self, parts: Sequence[str]) -> None:
        self._parts = {name: label for label, name in enumerate(parts)}
        self._pieces: list[Piece] = []

    def mesh(self) -> Mesh:
        """Join all primitives into one mesh."""
        starts = np.cumsum([0] + [len(piece.vertices) for piece in self._pieces[:-1]])
        return Mesh(
            np.concatenate([piece.vertices for piece in self._pieces]),
            np.concatenate([piece.faces + start for piece, start in zip(self._pieces, starts, strict=True)]),
            np.repeat([piece.part for piece in self._pieces], [len(piece.faces) for piece in self._pieces]),
        )

    def loft(self, part: str, rings: np.ndarray, *, caps: bool = True, loop: bool = False) -> Piece:
        """Join rings of points.

        Args:
            part: name of the part.
            rings: (P, S, 3), P rings of S points; each ring is closed.
            caps: close the ends with fans around the middle of the first and last ring.
            loop: join the last ring to the first, instead of caps.
        """
        if caps and not loop:
            ends = rings[[0, -1]].mean(axis=1)[:, None] + np.zeros((1, rings.shape[1], 1))
            rings = np.concatenate([ends[:1], rings, ends[1:]])
        faces = _grid_faces(rings.shape[0], rings.shape[1], loop)
        return self._add(part, rings.reshape(-1, 3), faces)

    def box(self, part: str, size: Vector, center: Vector = (0.0, 0.0, 0.0)) -> Piece:
        """Add a box of size (x, y, z)."""
        vertices, faces = _unit_box()
        return self._add(part, vertices * size + center, faces)

    def block(self, part: str, size: Vector, center: Vector = (0.0, 0.0, 0.0), edge: float = 0.3) -> Piece:
        """Add a rounded box or cushion: edge 0 is a box, 1 an ellipsoid."""
        vertices, faces = _unit_block(round(max(edge, 0.05), 1))
        return self._add(part, vertices * size + center, faces)

    def ball(self, part: str, size: Vector, center: Vector = (0.0, 0.0, 0.0)) -> Piece:
        """Add an ellipsoid of full size (x, y, z)."""
        vertices, faces = _unit_ball()
        return self._add(part, vertices * size + center, faces)

    def rod(
        self,
        part: str,
        start: Vector,
        end: Vector,
        radius: float,
        end_radius: float | None = None,
        sides: int = 10,
    ) -> Piece:
        """Add a cylinder, cone or frustum between two points."""
        a, b = np.asarray(start, dtype=np.float64), np.asarray(end, dtype=np.float64)
        radii = np.array([radius, radius if end_radius is None else end_radius])
        return self.tube(part, np.stack([a, b]), radii, sides=sides)

    def revolve(
        self,
        part: str,
        radii: Vector,
        heights: Vector,
        *,
        sides: int = 20,
        caps: bool = True,
        loop: bool = False,
    ) -> Piece:
        """Turn a profile about the y axis.

        Args:
            part: name of the part.
            radii: (P,), distances from the axis.
            heights: (P,), y of the same points.
            sides: S, points around.
            caps: close the first and last ring.
            loop: the profile is closed (a torus).
        """
        ring = _circle(sides)
        radius = np.asarray(radii, dtype=np.float64)[:, None]
        height = np.broadcast_to(np.asarray(heights, dtype=np.float64)[:, None], (len(radius), sides))
        rings = np.stack([radius * ring[:, 0], height, radius * ring[:, 1]], axis=-1)
        return self.loft(part, rings, caps=caps, loop=loop)

    def torus(self, part: str, radius: float, tube: float, sides: int = 20, tube_sides: int = 10) -> Piece:
        """Add a ring about the y axis."""
        circle = _circle(tube_sides)
        return self.revolve(part, radius + tube * circle[:, 0], tube * circle[:, 1], sides=sides, loop=True)

    def tube(self, part: str, path: np.ndarray, radius: float | np.ndarray, *, sides: int = 10) -> Piece:
        """Sweep a circle along a curve.

        Args:
            part: name of the part.
            path: (P, 3), points of the curve, no two neighbours equal.
            radius: one radius, or (P,).
            sides: S, points around.
        """
        along = np.empty_like(path)
        along[0], along[-1] = path[1] - path[0], path[-1] - path[-2]
        along[1:-1] = path[2:] - path[:-2]
        along /= _lengths(along)[:, None]
        # One fixed direction, far from every tangent, keeps the rings from twisting against each other.
        helper = np.zeros(3)
        helper[np.abs(along).max(axis=0).argmin()] = 1.0
        side = _cross(along, helper)
        side /= _lengths(side)[:, None]
        up = _cross(along, side)
        ring = _circle(sides)
        radii = np.broadcast_to(np.asarray(radius, dtype=np.float64), (len(path),))[:, None, None]
        offsets = side[:, None] * ring[:, :1] + up[:, None] * ring[:, 1:]
        return self.loft(part, path[:, None] + radii * offsets)

    def prism(self, part: str, outline: np.ndarray, depth: float, *, steps: int = 2) -> Piece:
        """Extrude an outline in the x-y plane along z, centred at z = 0.

        Args:
            part: name of the part.
            outline: (S, 2), star-shaped about its mean, so that the caps do not overlap.
            depth: thickness.
            steps: rings along z.
        """
        rings = np.empty((steps, len(outline), 3))
        rings[..., :2] = outline
        rings[..., 2] = np.linspace(-depth / 2, depth / 2, steps)[:, None]
        return self.loft(part, rings)

    def mirrored(self, piece: Piece, axis: int = 0) -> Piece:
        """Add a copy of a primitive, mirrored at the plane through the origin across an axis."""
        twin = self.copied(piece)
        twin.vertices[:, axis] *= -1.0
        return twin

    def copied(self, piece: Piece) -> Piece:
        """Add a copy of a primitive, at the same place."""
        twin = Piece(piece.vertices.copy(), piece.faces, piece.part)
        self._pieces.append(twin)
        return twin

    def _add(self, part: str, vertices: np.ndarray, faces: np.ndarray) -> Piece:
        piece = Piece(vertices, faces, self._parts[part])
        self._pieces.append(piece)
        return piece


def arc(radius: float, start: float, end: float, steps: int) -> np.ndarray:
    """List points of a circular arc in a plane, (steps, 2); angles in degrees from the first axis."""
    angle = np.radians(np.linspace(start, end, steps))
    return radius * np.stack([np.cos(angle), np.sin(angle)], axis=1)


def curve(points: Sequence[Vector], steps: int) -> np.ndarray:
    """Lay a smooth curve through points (Catmull-Rom), (steps, D)."""
    knots = np.asarray(points, dtype=np.float64)
    padded = np.concatenate([2 * knots[:1] - knots[1:2], knots, 2 * knots[-1:] - knots[-2:-1]])
    at = np.linspace(0.0, len(knots) - 1.0, steps)
    low = np.minimum(at.astype(np.int64), len(knots) - 2)
    t = (at - low)[:, None]
    a, b, c, d = (padded[low + offset] for offset in range(4))
    cubic = (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3
    smooth: np.ndarray = 0.5 * (2 * b + (c - a) * t + cubic)
    return smooth


def rounded_outline(width: float, height: float, exponent: float, steps: int = 20) -> np.ndarray:
    """List points of a superellipse, (steps, 2): exponent 2 is an ellipse, more is nearer a rectangle."""
    circle = _circle(steps)
    outline: np.ndarray = np.sign(circle) * np.abs(circle) ** (2.0 / exponent) * (width / 2, height / 2)
    return outline


def _lengths(vectors: np.ndarray) -> np.ndarray:
    """Compute the lengths of (P, 3); a sum along the short axis is several times slower."""
    x, y, z = vectors.T
    lengths: np.ndarray = np.sqrt(x * x + y * y + z * z)
    return lengths


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Compute cross products of (P, 3) with (3,) or (P, 3); np.cross is several times slower here."""
    product: np.ndarray = a[..., [1, 2, 0]] * b[..., [2, 0, 1]] - a[..., [2, 0, 1]] * b[..., [1, 2, 0]]
    return product


@lru_cache(maxsize=64)
def _circle(sides: int) -> np.ndarray:
    angle = np.arange(sides) * (2.0 * np.pi / sides)
    return _frozen(np.stack([np.cos(angle), np.sin(angle)], axis=1))


@lru_cache(maxsize=512)
def _grid_faces(rows: int, columns: int, loop: bool) -> np.ndarray:
    row = np.arange(rows if loop else rows - 1)[:, None]
    column = np.arange(columns)[None, :]
    next_row, next_column = (row + 1) % rows, (column + 1) % columns
    a, b = row * columns + column, row * columns + next_column
    c, d = next_row * columns + next_column, next_row * columns + column
    triangles = np.stack([np.stack([a, b, c], axis=-1), np.stack([a, c, d], axis=-1)])
    return _frozen(triangles.reshape(-1, 3))


@lru_cache(maxsize=1)
def _unit_box() -> tuple[np.ndarray, np.ndarray]:
    corners = np.array([[-1, -1], [0, -1], [1, -1], [1, 0], [1, 1], [0, 1], [-1, 1], [-1, 0]]) * 0.5
    rings = np.empty((5, 8, 3))
    rings[..., 0] = corners[:, 0] * np.array([0.0, 1, 1, 1, 0])[:, None]
    rings[..., 1] = np.array([-0.5, -0.5, 0.0, 0.5, 0.5])[:, None]
    rings[..., 2] = corners[:, 1] * np.array([0.0, 1, 1, 1, 0])[:, None]
    return _frozen(rings.reshape(-1, 3)), _grid_faces(5, 8, False)


@lru_cache(maxsize=32)
def _unit_block(edge: float) -> tuple[np.ndarray, np.ndarray]:
    angle = np.linspace(-np.pi / 2, np.pi / 2, 9)
    outline = np.sign(_circle(16)) * np.abs(_circle(16)) ** edge
    width, height = np.cos(angle).clip(0.0) ** edge, np.sign(np.sin(angle)) * np.abs(np.sin(angle)) ** edge
    rings = np.empty((9, 16, 3))
    rings[..., 0] = outline[:, 0] * width[:, None]
    rings[..., 1] = height[:, None]
    rings[..., 2] = outline[:, 1] * width[:, None]
    return _frozen(0.5 * rings.reshape(-1, 3)), _grid_faces(9, 16, False)


@lru_cache(maxsize=1)
def _unit_ball() -> tuple[np.ndarray, np.ndarray]:
    angle = np.linspace(-np.pi / 2, np.pi / 2, 9)
    ring = _circle(16)
    rings = np.empty((9, 16, 3))
    rings[..., 0] = ring[:, 0] * np.cos(angle)[:, None]
    rings[..., 1] = np.sin(angle)[:, None]
    rings[..., 2] = ring[:, 1] * np.cos(angle)[:, None]
    return _frozen(0.5 * rings.reshape(-1, 3)), _grid_faces(9, 16, False)


def _frozen(array: np.ndarray) -> np.ndarray:
    array.setflags(write=False)
    return array
