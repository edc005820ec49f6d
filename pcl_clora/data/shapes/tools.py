"""Tools and instruments: long things that lie along y, about one unit large."""

from __future__ import annotations

import numpy as np

from pcl_clora.data.shapes.draw import Draw
from pcl_clora.data.shapes.mesh import ShapeBuilder, arc, curve, rounded_outline


def hammer(b: ShapeBuilder, d: Draw) -> None:
    """Handle with a head: claw hammer, mallet or sledge."""
    length, radius = d.uniform(0.7, 1.1), d.uniform(0.025, 0.045)
    b.revolve(
        "handle", (radius * 1.1, radius * d.uniform(1.0, 1.4), radius * 0.7, radius * 0.8),
        (0, length * 0.25, length * 0.6, length), sides=12,
    )  # fmt: skip
    style, size, half = d.pick(("claw", "mallet", "sledge")), d.uniform(0.05, 0.08), d.uniform(0.12, 0.2)
    y = length + size * 0.2
    if style == "mallet":
        size *= d.uniform(1.2, 2.0)
        b.revolve("head", (size, size * 0.9, size), (-half, 0, half), sides=16).turn("z", 90).move(0, y, 0)
    elif style == "sledge":
        b.box("head", (half * 2, size * 2, size * 2), (0, y, 0))
    else:
        b.revolve(
            "head", (size, size, size * 0.6, size * 0.6), (half, half * 0.7, half * 0.6, 0), sides=14
        ).turn("z", -90).move(0, y, 0)
        b.box("head", (size * 1.8, size * 1.6, size * 1.6), (0, y, 0))
        curl = d.uniform(0.06, 0.14)
        path = curve([(-size, y, 0), (-half * 0.8, y, 0), (-half * 1.4, y - curl, 0)], 7)
        for side in (-1, 1):
            claw = path.copy()
            claw[:, 2] = side * np.linspace(0.3, 0.7, 7) * size
            b.tube("claw", claw, np.linspace(size * 0.5, size * 0.12, 7), sides=6)


def knife(b: ShapeBuilder, d: Draw) -> None:
    """Blade with one straight and one curved side, guard and handle."""
    blade, wide, grip = d.uniform(0.5, 0.95), d.uniform(0.08, 0.2), d.uniform(0.3, 0.45)
    belly = d.uniform(0.4, 0.95)
    edge = curve([(-0.5, 0.0), (-0.5, 0.5 * belly), (-0.2, 0.85), (0.5, 1.0)], 14)
    if d.chance(0.25):
        edge = np.array([[-0.5, 0.0], [-0.55, 0.4], [-0.6, 0.97], [0.5, 1.0]])
    outline = np.concatenate([edge, [[0.5, 0.5], [0.5, 0.0]]]) * (wide, blade)
    piece = b.prism("blade", outline, 1.0)
    sharp = 0.004 + 0.014 * (piece.vertices[:, 0] / wide + 0.5).clip(0, 1)
    piece.vertices[:, 2] *= 2 * sharp
    if d.chance(0.4):
        b.box("guard", (wide * d.uniform(1.3, 2.2), 0.03, 0.07), (0, 0, 0))
    thick = d.uniform(0.035, 0.06)
    bow = d.uniform(-0.05, 0.08)
    path = curve([(0, 0, 0), (bow * 0.3, -grip * 0.5, 0), (bow, -grip, 0)], 7)
    b.tube("handle", path, thick * np.array([0.8, 0.9, 1, 0.95, 0.9, 1.0, 0.9]), sides=10).scale(1, 1, 0.6)


def key(b: ShapeBuilder, d: Draw) -> None:
    """Bow with a hole, shaft, and teeth at the end."""
    length, radius, size = d.uniform(0.6, 0.9), d.uniform(0.025, 0.045), d.uniform(0.12, 0.2)
    style = d.pick(("ring", "plate", "clover"))
    if style == "ring":
        b.torus("bow", size, d.uniform(0.03, 0.05), tube_sides=8).turn("x", 90).scale(
            d.uniform(1.0, 1.5), 1, 0.8
        ).move(0, size, 0)
    elif style == "clover":
        for angle in (-20, 90, 200):
            x, y = arc(size * 0.7, angle, angle, 1)[0]
            b.torus("bow", size * 0.5, 0.032, sides=16, tube_sides=8).turn("x", 90).move(x, y + size, 0)
    else:
        outer = rounded_outline(2.2 * size, 2 * size, d.uniform(2.0, 5.0), 24)
        hole = rounded_outline(size * 0.7, size * 0.7, 2.0, 24)
        z = np.full((24, 1), 0.025)
        rings = np.stack([np.c_[outer, z], np.c_[outer, -z], np.c_[hole, -z], np.c_[hole, z]])
        b.loft("bow", rings, loop=True).move(0, size, 0)
    b.rod("shaft", (0, 0.02, 0), (0, -length, 0), radius, sides=10)
    b.torus("shaft", radius * 1.3, radius * 0.5, sides=12, tube_sides=6).move(0, -0.06, 0)
    teeth = d.integer(2, 5)
    tall = d.uniform(0.22, 0.4) * length / teeth
    for tooth in range(teeth):
        reach = d.uniform(0.07, 0.2)
        b.box("tooth", (reach, tall * 0.72, radius), (reach / 2, -length + tall * (tooth + 0.5), 0))


def spoon(b: ShapeBuilder, d: Draw) -> None:
    """Shallow bowl on a curved handle."""
    length, wide, deep = d.uniform(0.6, 0.9), d.uniform(0.2, 0.32), d.uniform(0.05, 0.12)
    long = wide * d.uniform(1.2, 1.7)
    t = np.linspace(0.04, 1.0, 8)
    outer = b.revolve("bowl", t, t**2, sides=20, caps=False)
    outer.scale(wide / 2, deep, long / 2).turn("x", 90)
    inner = b.revolve("bowl", t, t**2, sides=20, caps=False)
    inner.scale(wide * 0.47, deep * 0.9, long * 0.47).turn("x", 90).move(0, 0, -deep * 0.1)
    for piece in (outer, inner):
        piece.move(0, long / 2, deep)
    bow, end = d.uniform(0.0, 0.12), d.uniform(0.02, 0.05)
    path = curve([(0, 0.03, 0), (0, -length * 0.25, bow), (0, -length, bow * 0.3)], 9)
    b.tube("handle", path, np.linspace(0.018, end, 9), sides=8).scale(1.3, 1, 0.7)


def guitar(b: ShapeBuilder, d: Draw) -> None:
    """Acoustic or electric: waisted body, neck, head with pegs."""
    electric = d.chance(0.4)
    tall, deep = d.uniform(0.5, 0.62), 0.05 if electric else d.uniform(0.1, 0.16)
    lower, upper, waist = d.uniform(0.2, 0.26), d.uniform(0.14, 0.2), d.uniform(0.1, 0.15)
    right = [(0.02, -0.5), (lower * 0.8, -0.44), (lower, -0.22), (waist, 0.08), (upper, 0.3), (0.06, 0.42)]
    if electric:
        right = [*right[:-1], (upper * 0.75, 0.5), (0.06, 0.33)]
    half = curve([(x, y * tall) for x, y in right], 16)
    left = half[::-1] * (-1, 1)
    if electric:
        left = left * (1.0, d.uniform(0.85, 1.1))
    b.prism("body", np.concatenate([half, left]), deep)
    long, wide = d.uniform(0.5, 0.7), d.uniform(0.03, 0.045)
    top = 0.4 * tall + long
    b.box("neck", (2 * wide, long + 0.2, 0.03), (0, 0.4 * tall + long / 2 - 0.1, deep / 2))
    b.box("head", (wide * 3.2, 0.17, 0.025), (0, 0.085, 0)).turn("x", -10).move(0, top, deep / 2)
    for y in (0.03, 0.085, 0.14):
        b.mirrored(
            b.rod("head", (wide * 1.4, top + y, deep / 2), (wide * 2.4, top + y, deep / 2), 0.011, sides=6)
        )
    b.box("bridge", (0.16, 0.035, 0.03), (0, -tall * 0.25, deep / 2 + 0.01))
    if not electric:
        b.torus("bridge", 0.055, 0.008, tube_sides=6).turn("x", 90).move(0, tall * 0.08, deep / 2)


def cone(b: ShapeBuilder, d: Draw) -> None:
    """Traffic cone: a hollow cone on a plate, sometimes with a ring."""
    height, radius, tip = d.uniform(0.7, 1.2), d.uniform(0.2, 0.4), d.uniform(0.0, 0.07)
    b.revolve("cone", (radius, tip + 0.005), (0.02, height), sides=24)
    size = radius * d.uniform(2.2, 2.8)
    if d.chance(0.6):
        b.box("base", (size, 0.04, size), (0, 0.02, 0))
    else:
        b.revolve("base", (size / 2, size / 2), (0.0, 0.04), sides=24)
    if d.chance(0.5):
        low, high = d.uniform(0.35, 0.45), d.uniform(0.55, 0.7)
        at = radius + (tip - radius) * np.array([low, high]) + 0.012
        b.revolve("ring", at, np.array([low, high]) * height, sides=24, caps=False)


def screwdriver(b: ShapeBuilder, d: Draw) -> None:
    """Ribbed handle, thin shaft, flat tip."""
    grip, radius, length = d.uniform(0.3, 0.45), d.uniform(0.06, 0.1), d.uniform(0.3, 0.75)
    t = np.linspace(0, 1, 8)
    profile = radius * np.array([0.7, 0.95, 1.0, 0.95, 1.0, 0.9, 0.65, 0.7])
    handle = b.revolve("handle", profile, grip * t, sides=d.pick((6, 8, 16)))
    handle.move(0, -grip, 0)
    thin = radius * d.uniform(0.2, 0.35)
    b.rod("shaft", (0, 0, 0), (0, length, 0), thin, sides=10)
    wide = thin * d.uniform(1.0, 1.7)
    rings = np.stack([
        np.c_[rounded_outline(2 * thin, 2 * thin, 2, 12), np.full(12, 0.0)],
        np.c_[rounded_outline(2 * wide, thin, 4, 12), np.full(12, 0.05)],
        np.c_[rounded_outline(2 * wide, thin * 0.3, 4, 12), np.full(12, 0.12)],
    ])  # fmt: skip
    b.loft("tip", rings).turn("x", -90).move(0, length, 0)


def scissors(b: ShapeBuilder, d: Draw) -> None:
    """Two crossing blades, each with a finger ring."""
    blade, wide, opening = d.uniform(0.5, 0.7), d.uniform(0.05, 0.09), d.uniform(6, 28)
    grip, ring = d.uniform(0.2, 0.35), d.uniform(0.08, 0.13)
    for side in (-1, 1):
        outline = np.array([[-0.5, -0.2], [0.5, -0.2], [0.5, 0.4], [0.1, 1.0], [-0.5, 0.75]]) * (wide, blade)
        pieces = [b.prism("blade", outline * (side, 1), 0.02).move(0, 0, side * 0.012)]
        end = np.array([side * ring * 0.9, -grip, 0.0])
        pieces.append(b.rod("handle", (0, -0.05, side * 0.01), end, 0.03, 0.025, sides=8))
        loop = b.torus("handle", ring, 0.028, tube_sides=8).turn("x", 90).scale(1, d.uniform(1.1, 1.5), 1)
        pieces.append(loop.move(end[0] + side * ring * 0.25, end[1] - ring, 0))
        for piece in pieces:
            piece.turn("z", side * opening)
    b.rod("screw", (0, 0, -0.035), (0, 0, 0.035), 0.028)
