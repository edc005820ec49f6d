"""What all releases of ModelNet40 share."""

from __future__ import annotations

MODELNET40_CLASSES: tuple[str, ...] = tuple(
    """
    airplane bathtub bed bench bookshelf bottle bowl car chair cone cup curtain desk door dresser flower_pot
    glass_box guitar keyboard lamp laptop mantel monitor night_stand person piano plant radio range_hood sink
    sofa stairs stool table tent toilet tv_stand vase wardrobe xbox
    """.split()  # noqa: SIM905
)
"""The 40 classes in official (alphabetical) order; a label is an index into this list."""
