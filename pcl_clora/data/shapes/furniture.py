"""Furniture. Every function builds one shape standing on y = 0, front towards +z, about one unit large."""

from __future__ import annotations

import numpy as np

from pcl_clora.data.shapes.draw import Draw
from pcl_clora.data.shapes.mesh import ShapeBuilder, arc, curve


def _legs(b: ShapeBuilder, d: Draw, width: float, depth: float, top: float) -> None:
    """Four legs under a rectangle, of one random style."""
    thick, style = d.uniform(0.018, 0.05), d.pick(("rod", "box", "taper"))
    splay = d.uniform(0.0, 0.12) if d.chance(0.5) else 0.0
    x, z = width / 2 - thick, depth / 2 - thick
    for sx, sz in ((-1, -1), (-1, 1), (1, -1), (1, 1)):
        foot, head = (sx * (x + splay), 0.0, sz * (z + splay)), (sx * x, top, sz * z)
        if style == "box" and not splay:
            b.box("leg", (2 * thick, top, 2 * thick), (sx * x, top / 2, sz * z))
        else:
            b.rod("leg", foot, head, thick * (0.55 if style == "taper" else 1.0), thick)


def _pedestal(b: ShapeBuilder, d: Draw, radius: float, top: float) -> None:
    """One column on a disc or on a star of feet."""
    column = d.uniform(0.025, 0.06)
    b.rod("leg", (0, 0.03, 0), (0, top, 0), column, column * d.uniform(0.7, 1.2), sides=14)
    if d.chance(0.5):
        b.revolve("leg", (radius, radius * 0.9, column), (0.0, 0.03, 0.07))
        return
    feet, turn = d.integer(3, 5), d.uniform(0, 360)
    for angle in np.radians(turn + np.arange(feet) * 360.0 / feet):
        tip = (radius * np.cos(angle), 0.02, radius * np.sin(angle))
        b.rod("leg", tip, (0, 0.1, 0), 0.02, 0.03)


def _seat(b: ShapeBuilder, d: Draw, width: float, depth: float, top: float) -> float:
    """A plate, cushion or disc; returns its thickness."""
    thick, style = d.uniform(0.03, 0.1), d.pick(("box", "block", "round"))
    if style == "round":
        b.revolve("seat", (0.46, 0.5, 0.5, 0.46), (-0.5, -0.2, 0.2, 0.5)).scale(width, thick, depth).move(
            0, top - thick / 2, 0
        )
    elif style == "block":
        b.block("seat", (width, thick * 1.4, depth), (0, top - thick / 2, 0), edge=0.4)
    else:
        b.box("seat", (width, thick, depth), (0, top - thick / 2, 0))
    return thick


def chair(b: ShapeBuilder, d: Draw) -> None:
    """Seat, back, legs of several kinds, sometimes arms."""
    width, depth, top = d.uniform(0.4, 0.55), d.uniform(0.4, 0.55), d.uniform(0.38, 0.55)
    thick = _seat(b, d, width, depth, top)
    under = top - thick * 0.7
    if d.chance(0.75):
        _legs(b, d, width * 0.92, depth * 0.92, under)
    else:
        _pedestal(b, d, width * 0.55, under)
    _chair_back(b, d, width, depth, top)
    if d.chance(0.35):
        arm, reach = top + d.uniform(0.15, 0.26), depth * d.uniform(0.75, 0.95)
        rest = b.box("arm", (0.05, 0.035, reach), (width / 2, arm, depth / 2 - reach / 2 - 0.02))
        post = b.rod("arm", (width / 2, top - 0.02, depth * 0.32), (width / 2, arm, depth * 0.32), 0.02)
        b.mirrored(rest)
        b.mirrored(post)


def _chair_back(b: ShapeBuilder, d: Draw, width: float, depth: float, top: float) -> None:
    height, lean, z = d.uniform(0.35, 0.65), d.uniform(0.0, 18.0), -depth / 2 + 0.03
    thick, style = d.uniform(0.025, 0.06), d.pick(("panel", "cushion", "slats", "ladder", "curved"))
    pieces = []
    if style == "panel":
        pieces.append(b.box("back", (width * 0.95, height, thick), (0, height / 2, 0)))
    elif style == "cushion":
        pieces.append(b.block("back", (width * 0.95, height, thick * 2), (0, height / 2, 0), edge=0.4))
    elif style == "curved":
        bow = np.column_stack([np.linspace(-0.5, 0.5, 9) * width, np.zeros(9), np.zeros(9)])
        bow[:, 2] = d.uniform(0.2, 0.6) * (bow[:, 0] / width) ** 2
        cross = np.array([[0.0, 0, thick], [0, height, thick], [0, height, 0], [0, 0, 0]])
        pieces.append(b.loft("back", bow[:, None] + cross))
    else:
        for side in (-1, 1):
            x = side * (width / 2 - 0.03)
            pieces.append(b.rod("back", (x, 0, 0), (x, height, 0), 0.022))
        pieces.append(b.box("back", (width * 0.95, 0.07, 0.03), (0, height - 0.035, 0)))
        count = d.integer(3, 6)
        if style == "slats":
            for x in np.linspace(-0.36, 0.36, count) * width:
                pieces.append(b.box("back", (0.028, height, 0.02), (x, height / 2, 0)))
        else:
            for y in np.linspace(0.2, 0.75, count - 1) * height:
                pieces.append(b.box("back", (width * 0.9, 0.045, 0.02), (0, y, 0)))
    for piece in pieces:
        piece.turn("x", -lean).move(0, top - 0.02, z)


def stool(b: ShapeBuilder, d: Draw) -> None:
    """Seat without back on legs with a ring or rungs, or on a column."""
    width, top = d.uniform(0.3, 0.42), d.uniform(0.35, 0.85)
    depth = width * d.uniform(0.85, 1.15)
    thick = _seat(b, d, width, depth, top)
    if d.chance(0.3):
        _pedestal(b, d, width * 0.6, top - thick * 0.7)
        return
    legs, radius, splay = d.integer(3, 4), d.uniform(0.016, 0.03), d.uniform(0.0, 0.12)
    turn, rung = d.uniform(0, 360), d.uniform(0.2, 0.45) * top
    angles = np.radians(turn + np.arange(legs) * 360.0 / legs)
    spread = width * 0.38
    for angle in angles:
        direction = np.array([np.cos(angle), 0.0, np.sin(angle)])
        b.rod("leg", direction * (spread + splay), direction * spread + (0, top - thick * 0.7, 0), radius)
    at = spread + splay * (1 - rung / top)
    if d.chance(0.6):
        b.torus("rung", at, radius * 0.7, tube_sides=6).move(0, rung, 0)
    else:
        ends = [np.array([at * np.cos(angle), rung, at * np.sin(angle)]) for angle in angles]
        for start, end in zip(ends, ends[1:] + ends[:1], strict=True):
            b.rod("rung", start, end, radius * 0.7, sides=6)


def table(b: ShapeBuilder, d: Draw) -> None:
    """Rectangular or round top on legs, panels or a column, sometimes with a lower shelf."""
    round_top = d.chance(0.35)
    width, top, thick = d.uniform(0.8, 1.4), d.uniform(0.4, 0.8), d.uniform(0.025, 0.08)
    depth = width * (d.uniform(0.85, 1.0) if round_top else d.uniform(0.4, 1.0))
    under = top - thick
    if round_top:
        b.revolve("top", (0.5, 0.5), (-0.5, 0.5), sides=28).scale(width, thick, depth).move(
            0, top - thick / 2, 0
        )
    else:
        b.box("top", (width, thick, depth), (0, top - thick / 2, 0))
    style = d.pick(("column", "legs") if round_top else ("legs", "legs", "panels", "column"))
    inner = 0.68 if round_top else 0.94
    if style == "legs":
        _legs(b, d, width * inner, depth * inner, under)
        if d.chance(0.35) and not round_top:
            b.box("shelf", (width * 0.86, 0.025, depth * 0.86), (0, top * d.uniform(0.2, 0.4), 0))
    elif style == "panels":
        b.mirrored(b.box("leg", (0.05, under, depth * 0.9), (width * 0.44, under / 2, 0)))
        if d.chance(0.6):
            b.box("shelf", (width * 0.88, 0.14, 0.03), (0, under - 0.1, 0))
    else:
        _pedestal(b, d, min(width, depth) * 0.42, under)


def desk(b: ShapeBuilder, d: Draw) -> None:
    """Wide top, a chest of drawers on one or both sides, sometimes a shelf on top."""
    width, depth, top, thick = d.uniform(1.0, 1.5), d.uniform(0.5, 0.7), d.uniform(0.65, 0.8), 0.035
    b.box("top", (width, thick, depth), (0, top - thick / 2, 0))
    chest, side = width * d.uniform(0.22, 0.33), d.pick((-1, 1))
    both = d.chance(0.4)
    for x in (-1, 1):
        if x != side and not both:
            b.box("leg", (0.04, top - thick, depth * 0.92), (x * (width / 2 - 0.03), (top - thick) / 2, 0))
            continue
        center = x * (width / 2 - chest / 2 - 0.01)
        b.box("drawer", (chest, top - thick - 0.04, depth * 0.9), (center, (top - thick) / 2 + 0.02, 0))
        drawers = d.integer(2, 4)
        for y in (np.arange(drawers) + 0.5) / drawers * (top - 0.1) + 0.05:
            b.box("handle", (chest * 0.45, 0.022, 0.04), (center, y, depth * 0.46))
    if d.chance(0.6):
        b.box("leg", (width * 0.9, top * d.uniform(0.4, 0.8), 0.025), (0, top * 0.55, -depth * 0.42))
    if d.chance(0.3):
        height = d.uniform(0.2, 0.4)
        b.box("shelf", (width, 0.03, depth * 0.35), (0, top + height, -depth * 0.3))
        b.mirrored(
            b.box("shelf", (0.03, height, depth * 0.35), (width * 0.48, top + height / 2, -depth * 0.3))
        )


def bench(b: ShapeBuilder, d: Draw) -> None:
    """Long seat of planks or one plate, with or without a back."""
    width, depth, top = d.uniform(1.1, 1.7), d.uniform(0.32, 0.48), d.uniform(0.38, 0.48)
    planks = d.integer(1, 4)
    size = depth / planks
    for z in (np.arange(planks) + 0.5) * size - depth / 2:
        b.box("seat", (width, 0.045, size * 0.82), (0, top, z))
    if d.chance(0.5):
        b.mirrored(b.box("leg", (0.07, top, depth * 0.9), (width * 0.4, top / 2, 0)))
    else:
        _legs(b, d, width * 0.9, depth * 0.9, top)
    if d.chance(0.65):
        height, lean = d.uniform(0.3, 0.45), d.uniform(0, 15)
        count = d.integer(1, 3)
        for y in (np.arange(count) + 0.6) / count * height:
            b.box("back", (width, height / count * 0.75, 0.03), (0, y, 0)).turn("x", -lean).move(
                0, top, -depth / 2
            )
        post = b.box("back", (0.05, height, 0.05), (width * 0.4, height / 2, -0.03))
        b.mirrored(post.turn("x", -lean).move(0, top, -depth / 2))
        if d.chance(0.5):
            rest = b.box("arm", (0.06, 0.04, depth), (width * 0.48, top + 0.2, 0))
            post = b.box("arm", (0.05, 0.2, 0.05), (width * 0.48, top + 0.1, depth * 0.42))
            b.mirrored(rest)
            b.mirrored(post)


def sofa(b: ShapeBuilder, d: Draw) -> None:
    """Deep upholstered seat with cushions, back and thick arms, sometimes with a corner part."""
    width, depth, top = d.uniform(1.2, 2.2), d.uniform(0.7, 0.95), d.uniform(0.36, 0.46)
    arm, arm_top, back = d.uniform(0.1, 0.24), top + d.uniform(0.1, 0.25), top + d.uniform(0.3, 0.5)
    soft = d.uniform(0.15, 0.5)
    lift = d.uniform(0.04, 0.14) if d.chance(0.6) else 0.0
    b.box("seat", (width, top * 0.6 - lift, depth), (0, (top * 0.6 + lift) / 2, 0))
    seats = d.integer(1, 4)
    inner = width - 2 * arm
    for x in (np.arange(seats) + 0.5) * inner / seats - inner / 2:
        b.block("seat", (inner / seats, top * 0.4, depth * 0.85), (x, top * 0.8, depth * 0.07), edge=soft)
        if d.chance(0.7):
            b.block("back", (inner / seats, back - top, 0.2), (x, (back + top) / 2, -depth * 0.28), edge=soft)
    b.block("back", (width, back - lift, 0.22), (0, (back + lift) / 2, -depth / 2 + 0.08), edge=soft * 0.6)
    b.mirrored(
        b.block(
            "arm", (arm, arm_top - lift, depth), (width / 2 - arm / 2, (arm_top + lift) / 2, 0), edge=soft
        )
    )
    if lift:
        for x in (-0.44, 0.44):
            for z in (-0.4, 0.4):
                b.rod("leg", (x * width, 0, z * depth), (x * width, lift + 0.02, z * depth), 0.025, 0.035)
    if d.chance(0.2):
        side = d.pick((-1, 1))
        b.block(
            "seat", (inner / 2, top, depth), (side * inner / 4, top / 2 + lift / 2, depth * 0.9), edge=0.2
        )


def bed(b: ShapeBuilder, d: Draw) -> None:
    """Frame, mattress, head board, pillows; sometimes a foot board, posts or a blanket."""
    width, length, top = d.uniform(0.9, 1.8), d.uniform(1.9, 2.2), d.uniform(0.3, 0.55)
    b.box("frame", (width, top * 0.35, length), (0, top * 0.45, 0))
    b.block("mattress", (width * 0.97, top * 0.5, length * 0.97), (0, top * 0.82, 0), edge=0.15)
    board, thick = top + d.uniform(0.25, 0.7), d.uniform(0.04, 0.1)
    if d.chance(0.3):
        outline = np.concatenate(
            [[[width / 2, 0]], arc(1, 0, 180, 14) * (width / 2, 0.25) + (0, board - 0.25)]
        )
        outline = np.concatenate([outline, [[-width / 2, 0]]])
        b.prism("headboard", outline, thick).move(0, 0, -length / 2)
    else:
        b.box("headboard", (width * 1.04, board, thick), (0, board / 2, -length / 2))
    if d.chance(0.45):
        foot = top * d.uniform(0.9, 1.5)
        b.box("headboard", (width * 1.04, foot, thick), (0, foot / 2, length / 2))
    pillows = 1 if width < 1.2 else 2
    for x in (np.arange(pillows) + 0.5) * width / pillows - width / 2:
        b.block(
            "pillow", (width / pillows * 0.75, 0.14, 0.38), (x, top * 1.07 + 0.05, -length * 0.38), edge=0.6
        )
    tall = d.uniform(1.2, 1.9) if d.chance(0.15) else top * 0.4
    for x in (-0.48, 0.48):
        for z in (-0.48, 0.48):
            b.rod("frame", (x * width, 0, z * length), (x * width, tall, z * length), 0.035)


def bookshelf(b: ShapeBuilder, d: Draw) -> None:
    """Open shelves between two sides, some with books."""
    width, height, depth = d.uniform(0.6, 1.4), d.uniform(0.9, 2.0), d.uniform(0.25, 0.4)
    board, shelves = d.uniform(0.02, 0.045), d.integer(3, 6)
    b.mirrored(b.box("side", (board, height, depth), (width / 2, height / 2, 0)))
    if d.chance(0.6):
        b.box("side", (width, height, 0.015), (0, height / 2, -depth / 2))
    if d.chance(0.25):
        b.box("side", (board, height, depth), (d.uniform(-0.15, 0.15) * width, height / 2, 0))
    levels = np.linspace(board, height - board / 2, shelves + 1)
    for y in levels:
        b.box("shelf", (width, board, depth), (0, y, 0))
    gap = levels[1] - levels[0] - board
    for y in levels[:-1]:
        if not d.chance(0.6):
            continue
        x, end = -width * d.uniform(0.2, 0.46), width * d.uniform(-0.1, 0.46)
        for _ in range(8):
            thick, tall = d.uniform(0.025, 0.07), gap * d.uniform(0.55, 0.92)
            if x + thick > end:
                break
            b.box("book", (thick, tall, depth * 0.7), (x + thick / 2, y + board / 2 + tall / 2, 0))
            x += thick * 1.08


def cabinet(b: ShapeBuilder, d: Draw) -> None:
    """Closed body with doors or drawers, handles and low legs or a plinth."""
    width, height, depth = d.uniform(0.6, 1.3), d.uniform(0.6, 1.8), d.uniform(0.35, 0.6)
    lift = d.uniform(0.05, 0.18)
    b.box("body", (width, height, depth), (0, lift + height / 2, 0))
    if d.chance(0.5):
        b.box("body", (width * 1.08, 0.04, depth * 1.08), (0, lift + height, 0))
    if d.chance(0.6):
        _legs(b, d, width * 0.95, depth * 0.95, lift)
    else:
        b.box("leg", (width * 0.92, lift, depth * 0.92), (0, lift / 2, 0))
    front, columns, rows = depth / 2 + 0.012, d.integer(1, 3), d.integer(1, 4)
    bars = d.chance(0.5)
    wide, tall = width / columns, height / rows
    for x in (np.arange(columns) + 0.5) * wide - width / 2:
        for y in (np.arange(rows) + 0.5) * tall + lift:
            b.box("door", (wide * 0.9, tall * 0.9, 0.025), (x, y, front))
            if bars:
                b.rod("handle", (x - 0.06, y, front + 0.04), (x + 0.06, y, front + 0.04), 0.014, sides=8)
            else:
                b.ball("handle", (0.05, 0.05, 0.05), (x + wide * 0.3, y, front + 0.03))


def stairs(b: ShapeBuilder, d: Draw) -> None:
    """A flight of steps, massive or with stringers, sometimes with rails."""
    steps, rise, run, width = d.integer(4, 9), d.uniform(0.14, 0.2), d.uniform(0.2, 0.3), d.uniform(0.6, 1.1)
    solid = d.chance(0.5)
    for step in range(steps):
        y = rise * (step + 1)
        if solid:
            b.box("step", (width, y, run), (0, y / 2, -run * step))
        else:
            b.box("step", (width, 0.04, run * 1.1), (0, y, -run * step))
    length, height = run * (steps - 1), rise * (steps - 1)
    if not solid:
        path = np.array([[width / 2, rise * 0.6, run * 0.3], [width / 2, rise + height, -length]])
        b.mirrored(b.rod("rail", path[0], path[1], 0.04))
    if d.chance(0.6):
        up = d.uniform(0.6, 0.8)
        rail = b.rod("rail", (width * 0.47, rise + up, 0), (width * 0.47, rise + height + up, -length), 0.025)
        b.mirrored(rail)
        for step in range(0, steps, 2):
            y, z = rise * (step + 1), -run * step
            b.mirrored(b.rod("rail", (width * 0.47, y, z), (width * 0.47, y + up, z), 0.015, sides=6))


def piano(b: ShapeBuilder, d: Draw) -> None:
    """A grand with an open or closed lid, or an upright."""
    width = d.uniform(1.3, 1.5)
    if d.chance(0.5):
        depth, top = d.uniform(1.3, 2.0), d.uniform(0.7, 0.8)
        outline = curve(
            [(-0.5, 0.0), (0.5, 0.0), (0.5, 0.3), (0.22, 0.62), (0.05, 0.95), (-0.3, 1.0), (-0.5, 0.85)], 24
        ) * (width, depth)
        outline = np.concatenate([outline, [[-width / 2, depth * 0.4]]])
        b.prism("body", outline, 0.25).turn("x", -90).move(0, top, 0)
        if d.chance(0.6):
            lid = b.prism("lid", outline, 0.02).turn("x", -90).move(width / 2, 0, 0)
            lid.turn("z", d.uniform(25, 45)).move(-width / 2, top + 0.15, 0)
        for x, z in ((-0.42, -0.1), (0.42, -0.1), (-0.2, -0.85)):
            b.rod("leg", (x * width, 0, z * depth), (x * width, top, z * depth), 0.04, 0.06)
        keys = (0, top - 0.03, 0.1)
    else:
        depth, height, top = d.uniform(0.35, 0.5), d.uniform(1.0, 1.3), d.uniform(0.6, 0.7)
        b.box("body", (width, height, depth), (0, height / 2, -depth / 2))
        b.box("lid", (width * 1.04, 0.04, depth * 1.05), (0, height, -depth / 2))
        b.mirrored(b.box("leg", (0.07, top, 0.08), (width * 0.45, top / 2, 0.2)))
        keys = (0, top + 0.02, 0.12)
    b.box("keyboard", (width, 0.09, 0.26), keys)
