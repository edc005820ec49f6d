"""Things that move. Vehicles look along +z; y is up; sizes are about one unit."""

from __future__ import annotations

import numpy as np

from pcl_clora.data.shapes.draw import Draw
from pcl_clora.data.shapes.mesh import Piece, ShapeBuilder, curve, rounded_outline


def _fin(
    b: ShapeBuilder, part: str, root: float, tip: float, span: float, sweep: float, thick: float = 0.018
) -> Piece:
    """A wing along +x: chord root at x = 0 and tip at x = span, swept towards -z."""
    section = np.array([[0.5, 0.0], [0.2, 0.5], [-0.5, 0.0], [0.2, -0.5]])
    rings = np.zeros((4, 4, 3))
    for row, t in enumerate(np.linspace(0, 1, 4)):
        chord = root + (tip - root) * t
        rings[row, :, 0] = span * t
        rings[row, :, 1] = section[:, 1] * thick * (1.3 - 0.6 * t)
        rings[row, :, 2] = section[:, 0] * chord - sweep * t
    return b.loft(part, rings)


def _wheel(b: ShapeBuilder, radius: float, width: float, x: float, z: float) -> None:
    for side in (-1, 1):
        b.revolve(
            "wheel", (0.5 * radius, radius, radius, 0.5 * radius), (-0.5, -0.4, 0.4, 0.5), sides=16
        ).scale(1, width, 1).turn("z", 90).move(side * x, radius, z)


def airplane(b: ShapeBuilder, d: Draw) -> None:
    """Airliner, propeller plane or jet: fuselage, wings, tail, engines."""
    length, radius = d.uniform(1.2, 1.7), d.uniform(0.07, 0.12)
    t = np.linspace(0, 1, 13)
    nose, tail = d.uniform(0.35, 0.6), d.uniform(0.6, 0.9)
    profile = radius * np.minimum(1.0, np.minimum((t / 0.35 + 0.03) ** tail, ((1 - t) / 0.15 + 0.02) ** nose))
    body = b.revolve("fuselage", profile, (t - 0.5) * length, sides=16).turn("x", 90)
    body.vertices[:, 1] += 0.5 * radius * (-body.vertices[:, 2] / length - 0.1).clip(0)
    span, sweep = length * d.uniform(0.4, 0.6), length * d.uniform(0.0, 0.35)
    root, at = length * d.uniform(0.16, 0.32), length * d.uniform(-0.05, 0.12)
    level, dihedral = radius * d.uniform(-0.6, 0.8), d.uniform(-2, 8)
    tip = root * d.uniform(0.25, 0.8)
    b.mirrored(_fin(b, "wing", root, tip, span, sweep).turn("z", dihedral).move(0, level, at))
    fin = radius * d.uniform(2.0, 3.2)
    upright = _fin(b, "tail", root * 0.75, root * 0.4, fin, root * 0.5).turn("z", 90)
    upright.move(0, 0, -length * 0.42)
    flat = level if d.chance(0.75) else fin * 0.9
    small = span * d.uniform(0.28, 0.42)
    b.mirrored(_fin(b, "tail", root * 0.55, root * 0.3, small, sweep * 0.3).move(0, flat, -length * 0.44))
    engines, size = d.pick((0, 1, 1, 2)), radius * d.uniform(0.35, 0.55)
    for number in range(engines):
        t_at = 0.32 + 0.28 * number
        center = (span * t_at, level - size * 1.1, at - sweep * t_at + root * 0.35)
        b.mirrored(
            b.revolve("engine", (size * 0.7, size, size * 0.8), (-0.09, 0.02, 0.1), sides=12)
            .turn("x", 90)
            .move(*center)
        )
    if not engines:
        b.box("engine", (radius * 5, 0.012, 0.03)).turn("z", d.uniform(0, 90)).move(0, 0, length * 0.5)
        b.ball("engine", (radius, radius, radius * 1.4), (0, 0, length * 0.49))


def car(b: ShapeBuilder, d: Draw) -> None:
    """Body, cabin and four wheels: from a low sedan to a van or pick-up."""
    length, width = d.uniform(1.4, 1.9), d.uniform(0.6, 0.75)
    wheel, height = d.uniform(0.13, 0.19), d.uniform(0.22, 0.34)
    soft = d.uniform(0.15, 0.4)
    b.block("body", (width, height, length), (0, wheel + height / 2, 0), edge=soft)
    roof, front, back = d.uniform(0.2, 0.34), d.uniform(-0.02, 0.3), d.uniform(-0.49, -0.2)
    if d.chance(0.2):
        front, back = d.uniform(0.38, 0.46), -0.48
    top = wheel + height * 0.9
    rake_front, rake_back = d.uniform(0.03, 0.14), d.uniform(0.0, 0.1)
    side = np.array([[front, 0], [front - rake_front, roof], [back + rake_back, roof], [back, 0]]) * (
        length,
        1,
    )
    cabin = b.prism("cabin", side, 1.0, steps=4).turn("y", -90)
    inward = 1.0 - d.uniform(0.08, 0.25) * (cabin.vertices[:, 1] / roof).clip(0, 1)
    cabin.vertices[:, 0] *= inward * width * 0.94
    cabin.move(0, top, 0)
    axle = length * d.uniform(0.28, 0.34)
    for z in (-axle, axle):
        _wheel(b, wheel, 0.13, width * 0.47, z)
    if d.chance(0.25):
        b.box("body", (width * 0.9, 0.02, 0.1), (0, wheel + height + 0.1, -length * 0.47))
        b.mirrored(b.box("body", (0.03, 0.12, 0.05), (width * 0.35, wheel + height + 0.05, -length * 0.47)))


def rocket(b: ShapeBuilder, d: Draw) -> None:
    """Slim body with a pointed nose, fins and a nozzle, sometimes with boosters."""
    height, radius = d.uniform(0.9, 1.6), d.uniform(0.08, 0.18)
    b.revolve("body", (radius, radius * d.uniform(0.85, 1.15), radius), (0.1, height * 0.5, height))
    t = np.linspace(0, 1, 7)
    tip = d.uniform(0.2, 0.5)
    b.revolve("nose", radius * (1 - t ** d.uniform(1.0, 2.2)) + 0.002, height + tip * t)
    count, reach, chord = d.integer(3, 5), radius * d.uniform(1.0, 2.0), d.uniform(0.2, 0.45)
    sweep, turn = d.uniform(0.05, 0.3), d.uniform(0, 90)
    for angle in turn + np.arange(count) * 360.0 / count:
        fin = _fin(b, "fin", chord, chord * d.uniform(0.4, 0.6), reach, sweep).turn("x", -90)
        fin.move(radius * 0.9, 0.1 + chord * 0.5, 0).turn("y", angle)
    b.revolve("nozzle", (radius * 0.45, radius * 0.8), (0.1, 0.0), sides=14)
    if d.chance(0.3):
        small, tall = radius * 0.45, height * d.uniform(0.4, 0.7)
        for side in (-1, 1):
            booster = b.revolve("body", (small, small, small * 0.1), (0, tall, tall + small * 2.5), sides=12)
            booster.move(side * (radius + small), 0.05, 0).turn("y", turn + 45)


def boat(b: ShapeBuilder, d: Draw) -> None:
    """Hull with mast and sails, or with a cabin and funnel."""
    length, beam, deep = d.uniform(1.1, 1.7), d.uniform(0.3, 0.5), d.uniform(0.15, 0.3)
    t = np.linspace(0.0, 1.0, 12)
    wide = beam / 2 * np.minimum(1.0, (1.02 - t) ** d.uniform(0.45, 0.8) * 1.5) * (0.75 + 0.25 * (t > 0.05))
    sheer = deep + d.uniform(0.0, 0.15) * t**2
    keel = deep * 0.85 * t**4
    half = np.array([[1.0, 1.0], [0.9, 0.45], [0.35, 0.05], [-0.35, 0.05], [-0.9, 0.45], [-1.0, 1.0]])
    rings = np.empty((12, 6, 3))
    rings[..., 0] = wide[:, None] * half[:, 0]
    rings[..., 1] = keel[:, None] + (sheer - keel)[:, None] * half[:, 1]
    rings[..., 2] = ((t - 0.5) * length)[:, None]
    b.loft("hull", rings)
    if d.chance(0.6):
        mast, at = d.uniform(0.8, 1.5), d.uniform(0.0, 0.2) * length
        b.rod("mast", (0, 0.05, at), (0, mast + deep, at), 0.018, 0.01)
        boom = at + 0.03 - length * d.uniform(0.35, 0.5)
        bulge = d.uniform(0.0, 0.15)
        low = deep + 0.12
        b.rod("mast", (0, low, at), (0, low, boom), 0.012, sides=6)
        for tip, tack, clew in (
            ((mast + deep) * 0.97, at - 0.02, boom),
            (mast * 0.85, at + 0.03, length * 0.48),
        ):
            rows = np.linspace(0, 1, 6)[:, None]
            edge = np.array([tack, (tack + clew) / 2, clew, (tack + clew) / 2])[None]
            sheet = np.empty((6, 4, 3))
            sheet[..., 1] = low + (tip - low) * rows
            sheet[..., 2] = edge + (tack - edge) * rows
            sheet[..., 0] = bulge * np.sin(np.pi * rows) * np.array([0.2, 1.0, 0.4, 0.95])
            b.loft("sail", sheet, caps=False)
    else:
        house, tall = beam * d.uniform(0.5, 0.75), d.uniform(0.12, 0.25)
        at = d.uniform(-0.2, 0.1) * length
        for level in range(d.integer(1, 3)):
            size = 1.0 - 0.25 * level
            b.box("cabin", (house * size, tall, length * 0.32 * size), (0, deep + tall * (level + 0.5), at))
        b.rod("mast", (0, deep, at - 0.1), (0, deep + tall * d.uniform(2.2, 3.5), at - 0.1), 0.05, 0.045)


def skateboard(b: ShapeBuilder, d: Draw) -> None:
    """Deck with turned-up ends, two axles, four wheels."""
    length, width, thick = d.uniform(1.2, 1.6), d.uniform(0.28, 0.42), d.uniform(0.02, 0.045)
    kick, flat = d.uniform(0.05, 0.2), d.uniform(0.3, 0.4)
    exponent = d.uniform(2.5, 6.0)
    outline = rounded_outline(width, length, exponent, 32)
    t = np.array([-0.5, 0.5])
    deck = b.prism("deck", outline, thick)
    deck.turn("x", 90)
    z = deck.vertices[:, 2] / length
    wheel = d.uniform(0.05, 0.085)
    deck.vertices[:, 1] += 2 * wheel + 0.06 + kick * ((np.abs(z) - flat).clip(0) / (0.5 - flat)) ** 1.3
    at = length * d.uniform(0.27, 0.34)
    for z_at in 2 * t * at:
        b.box("truck", (0.08, 0.08, 0.12), (0, 2 * wheel + 0.03, z_at))
        b.rod("truck", (-width * 0.42, wheel, z_at), (width * 0.42, wheel, z_at), 0.02, sides=6)
        _wheel(b, wheel, 0.07, width * 0.42, z_at)


def bicycle(b: ShapeBuilder, d: Draw) -> None:
    """Two wheels with spokes, a diamond frame, handlebar, saddle and pedals."""
    radius, base = d.uniform(0.28, 0.36), d.uniform(0.9, 1.1)
    tube, tire = d.uniform(0.014, 0.026), d.uniform(0.015, 0.04)
    spokes = d.integer(4, 8)
    for z in (-base / 2, base / 2):
        b.torus("wheel", radius, tire, sides=28, tube_sides=8).turn("z", 90).move(0, radius + tire, z)
        for angle in np.pi * np.arange(spokes) / spokes:
            y, dz = radius * np.sin(angle), radius * np.cos(angle)
            b.rod("wheel", (0, radius + tire - y, z - dz), (0, radius + tire + y, z + dz), 0.006, sides=4)
    hub = radius + tire
    rear, front, crank = (0, hub, -base / 2), (0, hub, base / 2), (0, hub * 0.85, -base * 0.08)
    seat = (0, hub + d.uniform(0.32, 0.45), -base * d.uniform(0.15, 0.25))
    head = (0, hub + d.uniform(0.3, 0.42), base * d.uniform(0.3, 0.38))
    for start, end in (
        (rear, crank),
        (rear, seat),
        (crank, seat),
        (crank, head),
        (seat, head),
        (head, front),
    ):
        b.rod("frame", start, end, tube, sides=8)
    b.block("saddle", (0.13, 0.05, 0.26), (0, seat[1] + 0.06, seat[2]), edge=0.5)
    b.rod("saddle", seat, (0, seat[1] + 0.05, seat[2]), tube, sides=8)
    bar, up = d.uniform(0.2, 0.3), d.uniform(0.05, 0.15)
    b.rod("handlebar", head, (0, head[1] + up, head[2]), tube, sides=8)
    sweep = d.uniform(-0.15, 0.1)
    path = [
        (-bar, head[1] + up, head[2] + sweep),
        (0, head[1] + up, head[2]),
        (bar, head[1] + up, head[2] + sweep),
    ]
    b.tube("handlebar", curve(path, 7), tube * 0.9, sides=8)
    b.torus("pedal", 0.07, 0.012, tube_sides=6).turn("z", 90).move(*crank)
    for side in (-1, 1):
        b.box("pedal", (0.08, 0.02, 0.06), (side * 0.1, crank[1] + side * 0.14, crank[2]))
        b.rod("pedal", crank, (side * 0.05, crank[1] + side * 0.14, crank[2]), 0.012, sides=6)
