"""Read PointNet's hdf5 layout of part data: `ply_data_*.h5` with `data`, `label` and `pid`, and lists."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from pcl_clora.data.part_taxonomy import PartTaxonomy, read_json, read_taxonomy, taxonomy_from
from pcl_clora.data.readers.files import raise_all
from pcl_clora.data.readers.modelnet import GET_AGAIN, read_list
from pcl_clora.data.readers.shapenetpart import (
    PartCloud,
    PartConfig,
    PartShapes,
    check_labels,
    wanted_splits,
)
from pcl_clora.io import DataError, hdf5, no_folder
from pcl_clora.io.hdf5 import open_hdf5
from pcl_clora.io.text import line_of

CATEGORY_LIST = "all_object_categories.txt"
PART_LIST = "overallid_to_catid_partid.json"
PART_NAMES = "part_names.json"


class ShapeNetPartHdf5Config(PartConfig):
    """ShapeNetPart as PointNet's `hdf5_data`, and all part data in its layout.

    A cloud is used in the order it is stored where all of its points are wanted.
    """

    name: Literal["shapenetpart_hdf5"] = "shapenetpart_hdf5"


def read_hdf5_taxonomy(root: str | Path, given: str = "") -> PartTaxonomy:
    """Find categories and parts of a folder in the hdf5 layout.

    Args:
        root: the folder.
        given: a taxonomy file; empty for the folder's own lists.

    Raises:
        DataError: if a list is missing or they do not fit together.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(root, no_folder(root), "set data.root to it, see data/README.md")
    if given:
        return read_taxonomy(given)
    file = root / CATEGORY_LIST
    if not file.is_file():
        raise DataError(file, "the file is missing, expected one line 'category id' a category", GET_AGAIN)
    pairs = [line.split() for line in read_list(file)]
    if any(len(pair) != 2 for pair in pairs):
        raise DataError(file, "has a line that is not 'category id'", GET_AGAIN)
    parts: dict[str, dict[str, int]] = {name: {} for name, _ in pairs}
    names = {number: name for name, number in pairs}
    listing = root / PART_LIST
    for overall, entry in enumerate(read_json(listing, "a list of [category id, part number]")):
        if not isinstance(entry, list) or len(entry) != 2 or str(entry[0]) not in names:
            raise DataError(
                listing,
                f"has {entry!r}, expected [category id, part number] with an id of {file.name}",
                GET_AGAIN,
            )
        parts[names[str(entry[0])]][f"part{entry[1]}"] = overall
    if (root / PART_NAMES).is_file():
        parts = _with_names(parts, root / PART_NAMES)
    return taxonomy_from(parts, listing)


def _with_names(parts: dict[str, dict[str, int]], file: Path) -> dict[str, dict[str, int]]:
    """Replace part1, part2, ... by the names of part_names.json, which must tell of the same labels."""
    content = read_json(file, "a mapping of category to [{overall_id, part}]")
    try:
        named = {
            category: {str(one["part"]): int(one["overall_id"]) for one in entries}
            for category, entries in content.items()
        }
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise DataError(
            file, f"is not a mapping of category to [{{overall_id, part}}] ({error})", GET_AGAIN
        ) from error
    for category, labels in parts.items():
        if sorted(named.get(category, {}).values()) != sorted(labels.values()):
            raise DataError(file, f"has other parts for {category!r} than {PART_LIST}", GET_AGAIN)
    return {category: named[category] for category in parts}


def list_part_files(root: str | Path, split: str) -> list[Path]:
    """Find the files of a split by `<split>_hdf5_file_list.txt`; only the file names in it count.

    Raises:
        DataError: if the list is missing or empty.
    """
    root = Path(root)
    listing = root / f"{split}_hdf5_file_list.txt"
    if not listing.is_file():
        raise DataError(listing, f"the file is missing, it lists the files of {split!r}", GET_AGAIN)
    names = [line.replace("\\", "/").rsplit("/", 1)[-1] for line in read_list(listing)]
    if not names:
        raise DataError(listing, f"is empty, expected the files of {split!r}", GET_AGAIN)
    return [root / name for name in names]


def read_part_sizes(file: Path) -> tuple[int, int]:
    """Read how many clouds of how many points a file holds, without reading them.

    Raises:
        DataError: if it is missing, truncated, or without `data`.
    """
    if not file.is_file():
        raise DataError(file, "the file is missing, a list names it", GET_AGAIN)
    with open_hdf5(file) as handle:
        data = hdf5.find_array(file, handle, "data")
        shape: tuple[int, ...] = () if data is None else data.shape
    if len(shape) < 2:
        raise DataError(file, f"has no dataset 'data' (n, N, 3), found {shape}", GET_AGAIN)
    return int(shape[0]), int(shape[1])


def read_part_hdf5(file: Path, taxonomy: PartTaxonomy) -> Iterator[PartCloud | DataError]:
    """Read the clouds of one file; what is wrong with a cloud, or with all, comes instead of it.

    Yields:
        Clouds, and a DataError for the file or for each cloud that cannot be used.
    """
    if not file.is_file():
        yield DataError(file, "the file is missing, a list names it", GET_AGAIN)
        return
    try:
        with open_hdf5(file) as handle:
            found = {key: hdf5.find_array(file, handle, key) for key in ("data", "label", "pid")}
            if any(one is None for one in found.values()):
                names = line_of(sorted(handle)) or "nothing"
                raise DataError(file, f"has {names}, expected datasets data, label and pid", GET_AGAIN)
            points, label, parts = (hdf5.read(file, one) for one in found.values())
    except DataError as error:
        yield error
        return
    if (
        points.ndim != 3
        or points.shape[-1] != 3
        or parts.shape != points.shape[:2]
        or len(label) != len(points)
    ):
        shapes = f"data {points.shape}, label {label.shape}, pid {parts.shape}"
        yield DataError(file, f"has {shapes}, expected (n, N, 3), (n, 1) and (n, N)", GET_AGAIN)
        return
    for row, category in enumerate(label.reshape(len(points), -1)[:, 0].astype(np.int64).tolist()):
        place, name = f"{file}#{row}", f"{file.name}#{row}"
        if not 0 <= category < taxonomy.num_categories:
            yield DataError(
                place,
                f"has category {category}, expected 0..{taxonomy.num_categories - 1}",
                "name the right data.taxonomy, or get the file again",
            )
            continue
        cloud = np.ascontiguousarray(points[row])
        if not np.isfinite(cloud).all():
            yield DataError(place, "holds values that are not finite", GET_AGAIN)
            continue
        labels = parts[row].astype(np.int64)
        try:
            check_labels(labels, category, taxonomy, place)
        except DataError as error:
            yield error
            continue
        yield PartCloud(cloud, labels.astype(np.int16), category, place, name)


class ShapeNetPartHdf5(PartShapes):
    """One split of a folder in the hdf5 layout.

    Raises:
        DataError: naming everything that is wrong with lists and files at once.
    """

    def __init__(self, config: ShapeNetPartHdf5Config, split: str) -> None:
        taxonomy = read_hdf5_taxonomy(config.root, config.taxonomy)
        files = [file for name in wanted_splits(config, split) for file in list_part_files(config.root, name)]
        found = [one for file in files for one in read_part_hdf5(file, taxonomy)]
        clouds = [one for one in found if isinstance(one, PartCloud)]
        problems = [one for one in found if isinstance(one, DataError)]
        raise_all(config.root, problems)
        if not clouds:
            raise DataError(config.root, f"the split {split!r} is empty", GET_AGAIN)
        stored = min(len(cloud.labels) for cloud in clouds)
        if config.sampling == "stored" and stored < config.read_points:
            raise DataError(
                config.root,
                f"stores {stored} points a shape, but {config.read_points} were asked for",
                f"set data.num_points (and data.pool_points) to at most {stored}",
            )
        super().__init__(config, taxonomy, clouds)
