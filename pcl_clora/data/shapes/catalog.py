"""The classes of the generator: name, parts and the function that builds one shape."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pcl_clora.data.shapes import furniture, household, tools, vehicles, vessels
from pcl_clora.data.shapes.draw import Draw
from pcl_clora.data.shapes.mesh import ShapeBuilder


@dataclass(frozen=True)
class ShapeClass:
    """One class of shapes.

    Attributes:
        name: name of the class.
        parts: names of its parts, in label order.
        build: adds the primitives of one shape to a builder.
    """

    name: str
    parts: tuple[str, ...]
    build: Callable[[ShapeBuilder, Draw], None]


def _class(build: Callable[[ShapeBuilder, Draw], None], *parts: str) -> ShapeClass:
    return ShapeClass(build.__name__, parts, build)


CATALOG: dict[str, ShapeClass] = {
    entry.name: entry
    for entry in (
        _class(vehicles.airplane, "fuselage", "wing", "tail", "engine"),
        _class(furniture.bed, "frame", "mattress", "headboard", "pillow"),
        _class(furniture.bench, "seat", "leg", "back", "arm"),
        _class(vehicles.bicycle, "wheel", "frame", "saddle", "handlebar", "pedal"),
        _class(vehicles.boat, "hull", "mast", "sail", "cabin"),
        _class(furniture.bookshelf, "side", "shelf", "book"),
        _class(vessels.bottle, "body", "neck", "cap"),
        _class(vessels.bowl, "body", "foot"),
        _class(furniture.cabinet, "body", "door", "handle", "leg"),
        _class(vehicles.car, "body", "cabin", "wheel"),
        _class(furniture.chair, "seat", "back", "leg", "arm"),
        _class(tools.cone, "cone", "base", "ring"),
        _class(vessels.cup, "bowl", "stem", "base"),
        _class(furniture.desk, "top", "drawer", "leg", "handle", "shelf"),
        _class(household.glasses, "rim", "lens", "temple"),
        _class(tools.guitar, "body", "neck", "head", "bridge"),
        _class(tools.hammer, "handle", "head", "claw"),
        _class(household.headphone, "band", "cup", "pad", "microphone"),
        _class(tools.key, "bow", "shaft", "tooth"),
        _class(tools.knife, "blade", "guard", "handle"),
        _class(household.ladder, "rail", "rung"),
        _class(household.lamp, "base", "pole", "shade"),
        _class(household.laptop, "keyboard", "screen", "hinge"),
        _class(household.monitor, "screen", "stand", "base"),
        _class(vessels.mug, "body", "handle"),
        _class(furniture.piano, "body", "lid", "leg", "keyboard"),
        _class(vessels.plant, "pot", "stem", "leaf"),
        _class(vehicles.rocket, "body", "nose", "fin", "nozzle"),
        _class(tools.scissors, "blade", "handle", "screw"),
        _class(tools.screwdriver, "handle", "shaft", "tip"),
        _class(vehicles.skateboard, "deck", "truck", "wheel"),
        _class(furniture.sofa, "seat", "back", "arm", "leg"),
        _class(tools.spoon, "bowl", "handle"),
        _class(furniture.stairs, "step", "rail"),
        _class(furniture.stool, "seat", "leg", "rung"),
        _class(furniture.table, "top", "leg", "shelf"),
        _class(vessels.teapot, "body", "spout", "handle", "lid"),
        _class(household.tent, "canopy", "pole", "rope"),
        _class(household.umbrella, "canopy", "shaft", "handle"),
        _class(vessels.vase, "body", "foot", "handle"),
    )
}
"""All classes by name, in alphabetical order."""
