"""Files of a labelled folder, with their splits and categories, by names only."""

from __future__ import annotations

from pathlib import Path

from pcl_clora.data.part_names import PartNames
from pcl_clora.data.readers.folder_index import SPLIT_NAMES, FolderIndex, point_files_below, split_of
from pcl_clora.io import DataError, no_folder
from pcl_clora.io.text import line_of

PART_FILES = ("parts.yaml", "parts.yml")


def part_file(root: str | Path, given: str = "") -> Path:
    """Name the yaml of part names: the given one, else that in the folder."""
    if given:
        return Path(given)
    places = [Path(root) / name for name in PART_FILES]
    return next((place for place in places if place.is_file()), places[0])


def index_labelled(root: str | Path, names: PartNames) -> FolderIndex:
    """Find the files of a folder of labelled files; nothing is opened.

    Folders named train, test or val, directly in the folder, are splits. With categories in the yaml, files
    lie in folders of their names, at any depth.

    Args:
        root: the folder.
        names: of the parts, with the categories.

    Returns:
        Files by split; labels are categories. The layout is "class" where no folder says the split.

    Raises:
        DataError: if the folder is missing or has no point files, some lie beside the splits, or a file is in
            no folder of a category.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(root, f"{no_folder(root)}, expected labelled point files", "set data.root to it")
    splits: dict[str, list[Path]] = {}
    for file in point_files_below(root):
        first = file.relative_to(root).parts[0] if file.parent != root else ""
        splits.setdefault(split_of(Path(first)) if first else "", []).append(file)
    if not splits:
        raise DataError(root, "holds no point files", "set data.root to the folder of the labelled files")
    if "" in splits and len(splits) > 1:
        raise DataError(
            splits[""][0],
            "lies beside the folders of splits",
            "move it into one of them, or out of data.root",
        )
    categories = names.taxonomy.categories
    files: dict[str, list[tuple[Path, int]]] = {}
    for split, found in splits.items():
        for file in found:
            above = [part for part in file.relative_to(root).parts[:-1] if part in categories]
            if names.sorted and len(above) != 1:
                raise DataError(
                    file,
                    f"lies in {len(above)} folders of categories, which are {line_of(categories)}",
                    "sort the files into one folder a category",
                )
            category = categories.index(above[0]) if names.sorted else 0
            files.setdefault(split or "all", []).append((file, category))
    ordered = {split: sorted(files[split]) for split in ("all", *SPLIT_NAMES) if split in files}
    return FolderIndex("class" if "all" in files else "split/class", categories, ordered)
