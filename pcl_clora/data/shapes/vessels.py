"""Vessels and what stands in them. Shapes stand on y = 0 and are about one unit large."""

from __future__ import annotations

import numpy as np

from pcl_clora.data.shapes.draw import Draw
from pcl_clora.data.shapes.mesh import ShapeBuilder, curve


def _wall(b: ShapeBuilder, part: str, profile: np.ndarray, thick: float, sides: int = 24) -> None:
    """An open vessel: the outer profile (P, 2) of radius and height, a rim, and the same profile inside."""
    inner = profile[::-1] - (thick, 0.0)
    inner[-1, 1] += thick
    radii, heights = np.concatenate([profile, inner.clip(0.0)]).T
    b.revolve(part, radii, heights, sides=sides)


def bottle(b: ShapeBuilder, d: Draw) -> None:
    """Body, shoulder, long neck and cap; round, or flattened and square."""
    radius, height = d.uniform(0.12, 0.22), d.uniform(0.45, 0.7)
    neck, length, slope = radius * d.uniform(0.25, 0.5), d.uniform(0.08, 0.35), d.uniform(0.03, 0.2)
    belly = d.uniform(-0.15, 0.1)
    t = np.linspace(0, 1, 7)
    body = np.column_stack([radius * (1 + belly * np.sin(np.pi * t)), height * t])
    shoulder = neck + (radius - neck) * (1 + np.cos(np.pi * t[1:])) / 2
    top = height + slope
    pieces = [
        b.revolve("body", np.append(body[:, 0], shoulder), np.append(body[:, 1], height + slope * t[1:])),
        b.revolve("neck", (neck, neck), (top, top + length), sides=16),
    ]
    if d.chance(0.7):
        wide = neck * d.uniform(1.05, 1.4)
        pieces.append(b.revolve("cap", (wide, wide), (top + length, top + length + d.uniform(0.04, 0.12))))
    if d.chance(0.25):
        for piece in pieces:
            piece.scale(1.0, 1.0, 0.6)


def vase(b: ShapeBuilder, d: Draw) -> None:
    """Open turned body with a free profile, sometimes with two handles."""
    height = d.uniform(0.7, 1.1)
    foot, belly, neck, lip = (
        d.uniform(0.1, 0.22),
        d.uniform(0.22, 0.42),
        d.uniform(0.07, 0.2),
        d.uniform(0.1, 0.3),
    )
    at = d.uniform(0.3, 0.6)
    profile = curve(
        [(foot, 0.0), (belly, at * height), (neck, d.uniform(0.75, 0.88) * height), (lip, height)], 18
    )
    profile[:, 0] = profile[:, 0].clip(0.04)
    _wall(b, "body", profile, 0.02)
    if d.chance(0.5):
        b.revolve("foot", (foot * 1.25, foot * 1.25), (-0.03, 0.03))
    if d.chance(0.3):
        low, high = at * height, height * 0.88
        out = belly + d.uniform(0.08, 0.2)
        path = curve(
            [
                (belly * 0.95, low, 0),
                (out, (low + high) / 2, 0),
                (neck * 1.5, high, 0),
                (neck, high * 0.97, 0),
            ],
            9,
        )
        b.mirrored(b.tube("handle", path, d.uniform(0.018, 0.03), sides=8))


def bowl(b: ShapeBuilder, d: Draw) -> None:
    """Wide open hemisphere or cone on a small foot."""
    radius, height, bend = d.uniform(0.4, 0.6), d.uniform(0.2, 0.5), d.uniform(0.35, 1.0)
    t = np.linspace(0.12, 1.0, 12)
    _wall(b, "body", np.column_stack([radius * t**bend, height * (t - 0.12) / 0.88]), d.uniform(0.015, 0.04))
    foot, tall = radius * d.uniform(0.3, 0.5), d.uniform(0.03, 0.08)
    b.revolve("foot", (foot, foot * 0.9), (-tall, 0.03))


def mug(b: ShapeBuilder, d: Draw) -> None:
    """Open cylinder with one handle at the side."""
    radius, height = d.uniform(0.26, 0.36), d.uniform(0.5, 0.85)
    lean, belly = d.uniform(-0.12, 0.2), d.uniform(-0.08, 0.12)
    t = np.linspace(0, 1, 8)
    profile = np.column_stack([radius * (1 + lean * t + belly * np.sin(np.pi * t)), height * t])
    _wall(b, "body", profile, d.uniform(0.015, 0.04))
    low, high, out = (
        height * d.uniform(0.12, 0.3),
        height * d.uniform(0.7, 0.9),
        radius * d.uniform(1.6, 1.95),
    )
    path = [
        (radius * 0.97, low, 0),
        (out, low + 0.08, 0),
        (out, high - 0.05, 0),
        (radius * (1 + lean) * 0.97, high, 0),
    ]
    b.tube("handle", curve(path, 12), d.uniform(0.03, 0.055), sides=8).turn("y", d.uniform(-40, 40))


def cup(b: ShapeBuilder, d: Draw) -> None:
    """Stemmed glass or goblet: bowl, stem, base."""
    radius, tall, stem = d.uniform(0.16, 0.3), d.uniform(0.25, 0.5), d.uniform(0.12, 0.45)
    mouth, thin = radius * d.uniform(0.6, 1.3), d.uniform(0.012, 0.04)
    points = [
        (thin, stem),
        (radius * 0.85, stem + tall * 0.28),
        (radius, stem + tall * 0.5),
        (mouth, stem + tall),
    ]
    _wall(b, "bowl", curve(points, 14), 0.012)
    b.revolve("stem", (thin * 1.5, thin, thin, thin * 1.5), (0.0, stem * 0.3, stem * 0.8, stem), sides=12)
    base = radius * d.uniform(0.7, 1.1)
    b.revolve("base", (base, base, thin), (-0.02, 0.0, 0.05))


def teapot(b: ShapeBuilder, d: Draw) -> None:
    """Round body with spout, handle and lid."""
    radius, height = d.uniform(0.32, 0.42), d.uniform(0.4, 0.7)
    t = np.linspace(0.0, 1.0, 10)
    b.revolve("body", radius * (0.55 + 0.5 * np.sin(np.pi * (0.1 + 0.8 * t))), height * t, sides=24)
    reach, lip = radius + d.uniform(0.22, 0.4), height * d.uniform(0.85, 1.15)
    spout = curve([(radius * 0.85, height * 0.3, 0), (radius * 1.25, height * 0.5, 0), (reach, lip, 0)], 9)
    b.tube("spout", spout, np.linspace(0.1, 0.04, 9), sides=10)
    thick = d.uniform(0.025, 0.045)
    if d.chance(0.7):
        out = radius + d.uniform(0.2, 0.32)
        path = [(-radius * 0.9, height * 0.2, 0), (-out, height * 0.35, 0), (-out, height * 0.8, 0)]
        b.tube("handle", curve([*path, (-radius * 0.8, height * 0.85, 0)], 11), thick, sides=8)
    else:
        top = height + d.uniform(0.25, 0.4)
        path = [(-radius * 0.75, height * 0.9, 0), (-radius * 0.7, top, 0), (radius * 0.7, top, 0)]
        b.tube("handle", curve([*path, (radius * 0.75, height * 0.9, 0)], 11), thick, sides=8)
    lid = radius * d.uniform(0.55, 0.7)
    b.revolve("lid", (lid, lid * 0.8, lid * 0.3), (height * 0.98, height + 0.06, height + 0.11))
    b.ball("lid", (0.1, 0.1, 0.1), (0, height + 0.14, 0))


def plant(b: ShapeBuilder, d: Draw) -> None:
    """Pot with stems that carry leaves."""
    radius, height = d.uniform(0.14, 0.26), d.uniform(0.2, 0.38)
    rim = radius * d.uniform(1.0, 1.4)
    _wall(b, "pot", np.array([[radius, 0.0], [rim, height], [rim * 1.06, height + 0.03]]), 0.03)
    long, broad = d.uniform(0.2, 0.5), d.uniform(0.05, 0.16)
    stems, droop = d.integer(3, 7), d.uniform(0.1, 0.7)
    for stem in range(stems):
        angle = stem * 2.4 + d.uniform(-0.4, 0.4)
        tall, lean = d.uniform(0.25, 0.8), d.uniform(0.02, 0.3)
        out = np.array([np.cos(angle), 0.0, np.sin(angle)])
        root, tip = np.array([0, height - 0.02, 0]), out * lean + (0, height + tall, 0)
        b.tube("stem", curve([root, (root + tip) / 2 - out * lean * 0.2, tip], 5), 0.014, sides=6)
        for leaf in range(d.integer(1, 3)):
            turn = angle + leaf * 2.2
            side = np.array([np.cos(turn), 0.0, np.sin(turn)])
            across = np.array([-side[2], 0.0, side[0]])
            base = tip - (tip - root) * 0.28 * leaf
            t = np.linspace(0, 1, 7)[:, None]
            spine = base + side * long * t + np.array([0, 0.5 * long, 0]) * t * (1 - droop * 2 * t)
            width = broad * np.sin(np.pi * t.clip(0.05, 0.97)) ** 0.7
            rings = np.stack(
                [spine - across * width, spine + across * width, spine + np.array([0, 0.01, 0])], axis=1
            )
            b.loft("leaf", rings, caps=False)
