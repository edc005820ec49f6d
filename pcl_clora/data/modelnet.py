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

OFFICIAL_SIZES: dict[str, dict[str, int]] = {
    "modelnet40_hdf5": {"train": 9840, "test": 2468},
    "modelnet40_txt": {"train": 9843, "test": 2468},
}
"""Number of shapes of the official releases; the hdf5 files lack three shapes of the training split."""
