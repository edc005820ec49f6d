"""What all releases of ModelNet40 share."""

from __future__ import annotations

from pathlib import Path

from pcl_clora.io import DataError

GET_AGAIN = "get it again, see data/README.md"
MAX_ENTRY = 200  # characters of a line in a list: what names a file is shorter

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


MAX_ENTRY = 200  # characters of a line in a list: what names a file is shorter


def read_list(file: Path) -> list[str]:
    """Read a list file, one entry a line, without empty lines.

    Raises:
        DataError: if it is not text in utf-8, or an entry is too long to be the name of a file.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(file, f"is not text in utf-8 ({error})", GET_AGAIN) from error
    entries = [line.strip() for line in text.splitlines() if line.strip()]
    longest = max(entries, key=len, default="")
    if len(longest) > MAX_ENTRY:
        raise DataError(
            file,
            f"has an entry of {len(longest)} characters ({longest[:40]!r}...), expected names",
            GET_AGAIN,
        )
    return entries
