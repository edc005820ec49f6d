"""Read the text layout of ShapeNetPart: folders of text files, and lists of the splits.

A line of a file is `x y z nx ny nz label`, or `x y z label`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np

from pcl_clora.data.part_taxonomy import (
    SHAPENETPART,
    PartTaxonomy,
    read_json,
    read_taxonomy,
)
from pcl_clora.data.readers.files import raise_all
from pcl_clora.data.readers.modelnet import GET_AGAIN, MAX_ENTRY, read_list
from pcl_clora.data.readers.shapenetpart import (
    PART_SPLITS,
    PartCloud,
    PartConfig,
    PartShapes,
    check_labels,
    wanted_splits,
)
from pcl_clora.io import DataError, no_folder, read_points
from pcl_clora.io.text import line_of

CATEGORY_LIST = "synsetoffset2category.txt"
NUM_COLUMNS = (4, 7)  # of a file; the normals of the official ones are not used


class ShapeNetPartTxtConfig(PartConfig):
    """ShapeNetPart as `shapenetcore_partanno_segmentation_benchmark_v0_normal`, and all data in its layout.

    Every file is read when the data set is opened.
    """

    cloud_naming: ClassVar[Literal["stem", "file"]] = "stem"

    name: Literal["shapenetpart_txt"] = "shapenetpart_txt"


@dataclass(frozen=True)
class PartEntry:
    """One line of a split list.

    Attributes:
        file: the text file.
        category: number in the taxonomy.
        name: folder and file name, which are the same on every machine.
    """

    file: Path
    category: int
    name: str


def read_categories(root: str | Path) -> dict[str, str]:
    """Read `synsetoffset2category.txt`: folder -> category name, in the order of the file.

    Raises:
        DataError: if the folder or the file is missing, or a line has not two words.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(root, no_folder(root), "set data.root to it, see data/README.md")
    file = root / CATEGORY_LIST
    if not file.is_file():
        raise DataError(
            file, "the file is missing, expected one line 'category folder' a category", GET_AGAIN
        )
    found: dict[str, str] = {}
    for line in read_list(file):
        words = line.split()
        if len(words) != 2:
            raise DataError(file, f"has the line {line!r}, expected 'category folder'", GET_AGAIN)
        found[words[1]] = words[0]
    return found


def taxonomy_of_folder(root: str | Path, given: str = "") -> PartTaxonomy:
    """Find categories and parts of a folder in the text layout.

    Args:
        root: the folder.
        given: a taxonomy file; empty for `seg_classes.json` of the folder, else the table of ShapeNetPart.

    Raises:
        DataError: if there is none that has all categories of the folder.
    """
    root = Path(root)
    categories = read_categories(root)
    if given:
        taxonomy, source = read_taxonomy(given), given
    elif (root / "seg_classes.json").is_file():
        taxonomy, source = read_taxonomy(root / "seg_classes.json"), "seg_classes.json"
    else:
        taxonomy, source = SHAPENETPART, "ShapeNetPart"
    unknown = [name for name in categories.values() if name not in taxonomy.categories]
    if unknown:
        raise DataError(
            root / CATEGORY_LIST,
            f"names categories that the taxonomy ({source}) does not have: {line_of(unknown)}",
            "set data.taxonomy to a yaml file with all categories and their parts",
        )
    return taxonomy


def read_split(root: str | Path, split: str, taxonomy: PartTaxonomy) -> list[PartEntry]:
    """Read the list of a split; sorted by category, then by name, as published code does.

    Raises:
        DataError: if the list is missing or names a folder that is no category.
    """
    root = Path(root)
    listing = root / "train_test_split" / f"shuffled_{split}_file_list.json"
    lines = read_json(listing, "a list of 'shape_data/<folder>/<name>'")
    folders = read_categories(root)
    entries = []
    for line in lines if isinstance(lines, list) else [lines]:
        words = str(line).replace("\\", "/").split("/")
        if len(words) != 3 or words[1] not in folders or len(words[2]) > MAX_ENTRY:
            raise DataError(
                listing,
                f"has the entry {line!r}, expected 'shape_data/<folder>/<name>' with a folder that "
                f"{CATEGORY_LIST} names",
                GET_AGAIN,
            )
        _, folder, name = words
        category = taxonomy.categories.index(folders[folder])
        entries.append(PartEntry(root / folder / f"{name}.txt", category, f"{folder}/{name}"))
    return sorted(entries, key=lambda entry: (entry.category, entry.name))


def read_part_file(entry: PartEntry, taxonomy: PartTaxonomy) -> PartCloud:
    """Read one text file.

    Raises:
        DataError: if it is missing or torn, has not 4 or 7 columns, or labels that are no parts of its
            category.
    """
    if not entry.file.is_file():
        raise DataError(entry.file, f"the file is missing, a split list names {entry.name!r}", GET_AGAIN)
    content = read_points(entry.file, dtype="float64")
    extra = content.fields.get("extra", np.empty((len(content.points), 0)))
    if 3 + extra.shape[1] not in NUM_COLUMNS:
        raise DataError(
            entry.file,
            f"has {3 + extra.shape[1]} columns, expected 7 (x y z, a normal, the part label) or 4 (x y z, "
            "the part label)",
            "write one of the two; normals are not used",
        )
    labels = extra[:, -1]
    if (labels != np.round(labels)).any():
        found = labels[labels != np.round(labels)][0]
        raise DataError(entry.file, f"has the part label {found:g}, expected a whole number", GET_AGAIN)
    whole = labels.astype(np.int64)
    check_labels(whole, entry.category, taxonomy, str(entry.file))
    return PartCloud(content.points, whole.astype(np.int16), entry.category, str(entry.file), entry.name)


class ShapeNetPartTxt(PartShapes):
    """One split of a folder in the text layout.

    Raises:
        DataError: naming everything that is wrong with lists and files at once.
    """

    def __init__(self, config: ShapeNetPartTxtConfig, split: str) -> None:
        taxonomy = taxonomy_of_folder(config.root, config.taxonomy)
        names = wanted_splits(config, split)
        assert set(names) <= set(PART_SPLITS)
        entries = [entry for name in names for entry in read_split(config.root, name, taxonomy)]
        entries.sort(key=lambda entry: (entry.category, entry.name))
        clouds: list[PartCloud] = []
        problems: list[DataError] = []
        for entry in entries:
            try:
                clouds.append(read_part_file(entry, taxonomy))
            except DataError as error:
                problems.append(error)
        if not entries:
            problems.append(DataError(config.root, f"the split {split!r} is empty", GET_AGAIN))
        raise_all(config.root, problems)
        super().__init__(config, taxonomy, clouds)
