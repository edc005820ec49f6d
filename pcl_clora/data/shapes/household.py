"""Things in a house. Shapes stand on y = 0, front towards +z, and are about one unit large."""

from __future__ import annotations

import numpy as np

from pcl_clora.data.shapes.draw import Draw
from pcl_clora.data.shapes.mesh import ShapeBuilder, arc, curve, rounded_outline


def lamp(b: ShapeBuilder, d: Draw) -> None:
    """Floor or table lamp with a straight, bent or jointed pole, or hanging from a ceiling."""
    base, height = d.uniform(0.12, 0.24), d.uniform(0.4, 1.3)
    wide, narrow, tall = d.uniform(0.16, 0.34), d.uniform(0.05, 0.2), d.uniform(0.15, 0.36)
    style = d.pick(("straight", "straight", "bent", "jointed", "hanging"))
    pole = d.uniform(0.012, 0.028)
    if style == "hanging":
        b.revolve("base", (0.1, 0.1), (height + tall, height + tall + 0.04))
        b.rod("pole", (0, tall, 0), (0, height + tall, 0), pole * 0.7, sides=8)
        b.revolve("shade", (wide, narrow), (0.0, tall), sides=24, caps=False)
        return
    b.revolve("base", (base, base, base * d.uniform(0.2, 0.7)), (0.0, 0.03, d.uniform(0.04, 0.12)))
    tip = np.zeros(3)
    if style == "straight":
        b.rod("pole", (0, 0, 0), (0, height + tall * 0.4, 0), pole, sides=8)
        tip[1] = height
    elif style == "bent":
        reach = d.uniform(0.3, 0.6)
        path = [(0, 0, 0), (0, height * 0.6, 0), (0, height, reach * 0.4), (0, height * 0.98, reach)]
        b.tube("pole", curve(path, 14), pole, sides=8)
        tip[:] = (0, height * 0.98 - tall, reach)
    else:
        elbow, reach = (0, height * 0.55, -d.uniform(0.1, 0.3)), d.uniform(0.2, 0.4)
        b.rod("pole", (0, 0.03, 0), elbow, pole, sides=8)
        b.rod("pole", elbow, (0, height, reach), pole, sides=8)
        tip[:] = (0, height - tall * 0.9, reach)
    b.revolve("shade", (wide, narrow), (0.0, tall), sides=24, caps=d.chance(0.2)).move(*tip)


def monitor(b: ShapeBuilder, d: Draw) -> None:
    """Flat screen on a foot, or a deep tube."""
    width, height = d.uniform(0.8, 1.3), d.uniform(0.5, 0.75)
    lift, thick = d.uniform(0.12, 0.3), d.uniform(0.04, 0.1)
    lean = d.uniform(-3, 10)
    screen = b.box("screen", (width, height, thick), (0, height / 2, 0))
    screen.turn("x", -lean).move(0, lift, 0)
    if d.chance(0.25):
        rings = np.stack([rounded_outline(width * s, height * s, 8, 16) for s in (0.9, 0.75, 0.45)])
        depth = np.broadcast_to(np.array([-0.02, -0.25, -0.5])[:, None, None], (3, 16, 1))
        b.loft("screen", np.concatenate([rings, depth], axis=-1)).move(0, height / 2, 0).turn(
            "x", -lean
        ).move(0, lift, 0)
    b.box(
        "stand",
        (width * d.uniform(0.08, 0.2), lift + height * 0.4, 0.05),
        (0, (lift + height * 0.4) / 2, -thick),
    )
    if d.chance(0.5):
        b.box("base", (width * d.uniform(0.3, 0.5), 0.025, d.uniform(0.2, 0.3)), (0, 0.012, -0.02))
    else:
        radius = width * d.uniform(0.16, 0.26)
        b.revolve("base", (radius, radius), (0, 0.025)).scale(1, 1, 0.8)


def laptop(b: ShapeBuilder, d: Draw) -> None:
    """Keyboard half and screen half, joined by a hinge at some angle."""
    width, depth, thick = d.uniform(0.9, 1.15), d.uniform(0.6, 0.8), d.uniform(0.025, 0.06)
    b.box("keyboard", (width, thick, depth), (0, thick / 2, 0))
    if d.chance(0.5):
        b.box("keyboard", (width * 0.85, 0.012, depth * 0.45), (0, thick + 0.005, -depth * 0.15))
    lean = d.uniform(-20, 50)
    screen = b.box("screen", (width, depth * 0.97, thick * 0.6), (0, depth * 0.485, 0))
    screen.turn("x", -lean).move(0, thick, -depth / 2)
    b.rod("hinge", (-width * 0.4, thick, -depth / 2), (width * 0.4, thick, -depth / 2), thick * 0.45, sides=8)


def umbrella(b: ShapeBuilder, d: Draw) -> None:
    """Open canopy of flat gores on a shaft with a hook or knob."""
    radius, rise, height = d.uniform(0.5, 0.75), d.uniform(0.15, 0.4), d.uniform(0.8, 1.2)
    ribs = d.integer(6, 10)
    t = np.linspace(0, 1, 7)
    out, low = radius * np.sin(t * np.pi / 2) + 0.003, rise * (1 - np.cos(t * np.pi / 2))
    canopy = b.revolve("canopy", out, height - low, sides=2 * ribs, caps=False)
    rows = canopy.vertices.reshape(7, 2 * ribs, 3)
    rows[:, 1::2] *= (1 - 0.1 * t[:, None, None]) * (1.0, 0.0, 1.0) + (0.0, 1.0, 0.0)
    b.rod("shaft", (0, 0.1, 0), (0, height + 0.08, 0), d.uniform(0.012, 0.02), sides=8)
    if d.chance(0.7):
        size = d.uniform(0.05, 0.09)
        hook = np.zeros((11, 3))
        hook[:, :2] = arc(size, 0, -190, 11) + np.array([-size, 0.1])
        b.tube("handle", hook, 0.022, sides=8)
    else:
        b.rod("handle", (0, 0, 0), (0, 0.16, 0), 0.035, 0.025)


def ladder(b: ShapeBuilder, d: Draw) -> None:
    """Two rails with rungs, single or as a step ladder."""
    height, width, rungs = d.uniform(1.2, 1.9), d.uniform(0.3, 0.5), d.integer(4, 9)
    narrow, thick = d.uniform(0.6, 1.0), d.uniform(0.016, 0.032)
    steps, lean = d.chance(0.4), d.uniform(8, 22)
    legs = (1, -1) if d.chance(0.5) else (1,)
    for leg in legs:
        pieces = [b.rod("rail", (width / 2, 0, 0), (width * narrow / 2, height, 0), thick, sides=6)]
        pieces.append(b.mirrored(pieces[0]))
        for t in (np.arange(rungs) + 0.7) / (rungs + 0.2) if leg == 1 or d.chance(0.3) else (0.35,):
            half = width / 2 * (1 + (narrow - 1) * t)
            if steps and leg == 1:
                pieces.append(b.box("rung", (2 * half, 0.025, 0.1), (0, t * height, 0)))
            else:
                pieces.append(
                    b.rod("rung", (-half, t * height, 0), (half, t * height, 0), thick * 0.8, sides=6)
                )
        for piece in pieces:
            piece.move(0, -height, 0).turn("x", -leg * lean).move(0, height, 0)


def tent(b: ShapeBuilder, d: Draw) -> None:
    """Ridge tent, dome or pyramid with poles and guy lines."""
    width, length, height = d.uniform(0.9, 1.3), d.uniform(1.0, 1.6), d.uniform(0.6, 0.9)
    style = d.pick(("ridge", "dome", "pyramid"))
    if style == "ridge":
        outline = np.array([[-width / 2, 0], [0, height], [width / 2, 0]])
        sheet = np.zeros((5, 3, 3))
        sheet[..., :2] = outline
        sheet[..., 2] = np.linspace(-length / 2, length / 2, 5)[:, None]
        sheet[1:4, 1, 1] -= d.uniform(0.0, 0.08)
        b.loft("canopy", sheet, caps=False)
        b.prism("canopy", outline, 0.01).move(0, 0, -length / 2)
        for z in (-length / 2, length / 2):
            b.rod("pole", (0, 0, z), (0, height + 0.06, z), 0.018, sides=6)
    elif style == "dome":
        t = np.linspace(0, np.pi / 2, 9)
        bend = d.uniform(0.6, 1.0)
        b.revolve("canopy", np.cos(t) ** bend + 0.003, np.sin(t), sides=d.pick((6, 8, 24)), caps=False).scale(
            width / 2, height, length / 2
        )
        for turn in (40, 140):
            path = np.zeros((13, 3))
            path[:, :2] = arc(1.0, 0, 180, 13) * (width * 0.5, height * 1.02)
            b.tube("pole", path, 0.014, sides=6).turn("y", turn).scale(1, 1, length / width)
    else:
        sides = d.pick((4, 6, 8))
        b.revolve("canopy", (1.0, 0.01), (0.0, 1.0), sides=sides, caps=False).scale(
            width * 0.62, height * 1.2, length * 0.52
        ).turn("y", 45)
        b.rod("pole", (0, 0, 0), (0, height * 1.28, 0), 0.02, sides=8)
    if d.chance(0.6):
        for x, z in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
            top = (x * width * 0.3, height * 0.4, z * length * 0.4)
            b.rod("rope", top, (x * width * 0.75, 0, z * length * 0.62), 0.008, sides=4)


def glasses(b: ShapeBuilder, d: Draw) -> None:
    """Two rims with lenses, a bridge and two temples that bend behind the ears."""
    width, height, gap = d.uniform(0.3, 0.42), d.uniform(0.2, 0.34), d.uniform(0.06, 0.14)
    exponent, wire, rim = d.uniform(1.8, 4.5), d.uniform(0.008, 0.028), 24
    center = width / 2 + gap / 2
    outline = rounded_outline(width, height, exponent, rim)
    ring = np.zeros((2, rim, 3))
    inner = outline * (1 - 2 * wire / np.array([width, height]))
    profile = np.stack([np.c_[outline, np.full(rim, wire)], np.c_[outline, np.full(rim, -wire)],
                        np.c_[inner, np.full(rim, -wire)], np.c_[inner, np.full(rim, wire)]])  # fmt: skip
    b.mirrored(b.loft("rim", profile, loop=True).move(center, 0, 0))
    if d.chance(0.8):
        ring[..., :2] = inner
        ring[:, :, 2] = np.array([[-0.004], [0.004]])
        b.mirrored(b.loft("lens", ring).move(center, 0, 0))
    bridge = [(-gap / 2, 0.02, 0), (0, d.uniform(0.03, 0.08), 0.02), (gap / 2, 0.02, 0)]
    b.tube("rim", curve(bridge, 6), wire, sides=6)
    out, long, hook = center + width / 2, d.uniform(0.7, 0.95), d.uniform(0.08, 0.2)
    path = [
        (out, 0.03, 0),
        (out, 0.03, -long * 0.5),
        (out * 0.97, 0.02, -long),
        (out * 0.95, -hook, -long - 0.12),
    ]
    b.mirrored(b.tube("temple", curve(path, 11), wire * d.uniform(0.9, 1.5), sides=6))


def headphone(b: ShapeBuilder, d: Draw) -> None:
    """Band over the head with two ear cups, sometimes a microphone."""
    width, height = d.uniform(0.65, 0.85), d.uniform(0.7, 0.95)
    cup, deep = d.uniform(0.13, 0.22), d.uniform(0.07, 0.16)
    flat = d.uniform(1.0, 3.0)
    band = np.zeros((17, 3))
    band[:, :2] = arc(1.0, -12, 192, 17) * (width / 2, height / 2)
    piece = b.tube("band", band, d.uniform(0.018, 0.035), sides=8)
    piece.vertices[:, 2] *= flat
    if d.chance(0.5):
        pad = np.zeros((9, 3))
        pad[:, :2] = arc(1.0, 50, 130, 9) * (width / 2 - 0.04, height / 2 - 0.04)
        b.tube("band", pad, 0.035, sides=8).scale(1, 1, 1.6)
    low = -height * 0.12
    shell = b.revolve("cup", (cup * 0.75, cup, cup * 0.9), (0.0, deep * 0.6, deep), sides=18).turn("z", 90)
    b.mirrored(shell.move(width / 2 + deep * 0.6, low, 0).scale(1, d.uniform(1.0, 1.3), 1))
    b.mirrored(
        b.torus("pad", cup * 0.72, cup * 0.26, tube_sides=8)
        .turn("z", 90)
        .move(width / 2 - deep * 0.45, low, 0)
    )
    if d.chance(0.3):
        path = [
            (width / 2, low - cup * 0.5, 0.02),
            (width / 2, low - cup, 0.2),
            (width * 0.3, low - cup, 0.42),
        ]
        b.tube("microphone", curve(path, 7), 0.014, sides=6)
        b.ball("microphone", (0.06, 0.06, 0.08), path[-1])
