"""Check folders in the layouts of ScanObjectNN: hdf5 files, and raw objects."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from pcl_clora.data.checks.finding import (
    Finding,
    RootInfo,
    class_balance,
    digest_of_file,
    duplicates,
    problem,
)
from pcl_clora.data.checks.hdf5 import check_points
from pcl_clora.data.config import DataConfig
from pcl_clora.data.dataset import SPLITS
from pcl_clora.data.readers.modelnet import GET_AGAIN
from pcl_clora.data.readers.modelnet_hdf5 import read_header
from pcl_clora.data.readers.scanobjectnn import (
    OFFICIAL_SIZES,
    SCANOBJECTNN_CLASSES,
    ScanFile,
    ScanObjectNNConfig,
    list_scan_files,
    read_masks,
    scan_class_names,
    scan_file,
)
from pcl_clora.data.readers.scanobjectnn_raw import (
    SPLIT_FILES,
    ScanObjectNNRawConfig,
    find_raw_base,
    find_split_file,
    raw_files,
)
from pcl_clora.io import DataError
from pcl_clora.io.raw_object import is_raw_object, read_raw_object


def is_scan(root: Path) -> bool:
    """Say whether a folder looks like the hdf5 layout."""
    folders = [entry for base in (root, root / "h5_files") for entry in base.glob("*/*_objectdataset*.h5")]
    try:
        return bool(folders) and bool(list_scan_files(root))
    except DataError:
        return False


def describe_scan(root: Path) -> RootInfo:
    """Read sizes and class names; sizes are those of the hardest variant that is there."""
    files = list_scan_files(root)
    variants = sorted({one.variant for one in files})
    shown = "pb_t50_rs" if "pb_t50_rs" in variants else variants[0]
    mine = [one for one in files if one.variant == shown]
    folder = mine[0].path.parent
    headers = {one.split: read_header(one.path) for one in mine if one.path.parent == folder}
    return RootInfo(
        str(root),
        "scanobjectnn",
        scan_class_names(root),
        {split: headers[split].num_shapes for split in SPLITS if split in headers},
        min(header.stored_points for header in headers.values()),
        tuple(variants),
        {"variant": shown},
    )


def check_scan(root: Path, config: DataConfig | None) -> Iterator[Finding]:
    """Check every file that is there, or those of a config's variant: labels, masks, values, pairs, sizes."""
    given = config.class_names if isinstance(config, ScanObjectNNConfig) else ()
    try:
        names = scan_class_names(root, given)
        files = list_scan_files(root)
    except DataError as error:
        yield problem(error)
        return
    if isinstance(config, ScanObjectNNConfig):
        wanted = []
        for split in SPLITS:
            try:
                wanted.append(scan_file(config, split))
            except DataError as error:
                yield problem(error)
        files = [one for one in files if one.path in wanted]
    else:
        yield from _missing_partners(files)
    groups: dict[tuple[Path, str], list[ScanFile]] = {}
    for one in files:
        groups.setdefault((one.path.parent, one.variant), []).append(one)
    for group in groups.values():
        yield from _check_pair(group, names)


def _missing_partners(files: list[ScanFile]) -> Iterator[Finding]:
    there = {(one.path.parent, one.variant, one.split) for one in files}
    for one in files:
        other = "test" if one.split == "train" else "train"
        if (one.path.parent, one.variant, other) not in there:
            message = f"its {other} file is missing, expected both; {GET_AGAIN}."
            yield Finding("error", str(one.path), message)


def _check_pair(files: list[ScanFile], names: tuple[str, ...]) -> Iterator[Finding]:
    """Check the files of one variant, train and test."""
    labels: dict[str, np.ndarray] = {}
    digests: dict[str, list[tuple[str, bytes]]] = {}
    for one in files:
        found: list[tuple[str, bytes]] = []
        try:
            header = read_header(one.path, len(names))
            yield from check_points(header, found, reach=np.inf)
            masks = read_masks(header, header.stored_points)
        except DataError as error:
            yield problem(error)
            continue
        yield from _check_masks(one.path, masks)
        labels[one.split], digests[one.split] = header.labels, found
    yield from duplicates(digests)
    place = str(files[0].path.parent)
    yield from class_balance(place, names, labels)
    official = OFFICIAL_SIZES.get(files[0].variant)
    sizes = {split: len(values) for split, values in labels.items()}
    if names == SCANOBJECTNN_CLASSES and official and len(sizes) == 2 and sizes != official:
        yield Finding(
            "info",
            place,
            f"{files[0].variant} has {sizes['train']} train and {sizes['test']} test clouds, the official "
            f"release {official['train']} and {official['test']}; name the difference beside results.",
        )


def _check_masks(file: Path, masks: np.ndarray | None) -> Iterator[Finding]:
    if masks is None:
        message = (
            "has no 'mask', expected one; background cannot be told from objects, get the official file."
        )
        yield Finding("info", str(file), message)
        return
    empty = np.flatnonzero(~masks.any(axis=1))
    if empty.size:
        yield Finding(
            "warning",
            str(file),
            f"{len(empty)} clouds are all background by their mask, the first in row {empty[0]}, expected "
            f"points of an object; {GET_AGAIN}.",
        )


def is_raw(root: Path) -> bool:
    """Say whether a folder looks like the raw objects, and not like scans that end in .bin, too."""
    files = list(islice(find_raw_base(root).glob("*/*.bin"), 20))
    named = (root / "object_dataset").is_dir() or any((root / name).is_file() for name in SPLIT_FILES)
    return bool(files) and (named or any(map(is_raw_object, files)))


def describe_raw(root: Path) -> RootInfo:
    """Read the list and the class names."""
    config = ScanObjectNNRawConfig(root=str(root))
    found = {split: raw_files(config, split) for split in SPLITS}
    sizes = {split: len(entries) for split, (entries, _) in found.items()}
    return RootInfo(str(root), "scanobjectnn_raw", found["train"][1], sizes)


def check_raw(root: Path, config: DataConfig | None) -> Iterator[Finding]:
    """Check the list, and every file that it names whole."""
    settings = config if isinstance(config, ScanObjectNNRawConfig) else ScanObjectNNRawConfig(root=str(root))
    try:
        lists = {split: raw_files(settings, split) for split in SPLITS}
        listing = find_split_file(root, settings.split_file)
    except DataError as error:
        yield problem(error)
        return
    names = lists["train"][1]
    named = Counter(file for entries, _ in lists.values() for file, _ in entries)
    for file, count in named.items():
        if count > 1:
            yield Finding(
                "error", str(listing), f"names {file.name} {count} times, expected once; mend the list."
            )
    digests: dict[str, list[tuple[str, bytes]]] = {}
    fewest: tuple[int, str] | None = None
    for split, (entries, _) in lists.items():
        digests[split] = []
        for file, _ in entries:
            if not file.is_file():
                message = f"the file is missing, {listing.name} names it; {GET_AGAIN}."
                yield Finding("error", str(file), message)
                continue
            try:
                raw = read_raw_object(file)
            except DataError as error:
                yield problem(error)
                continue
            digests[split].append((str(file), digest_of_file(file)))
            count = len(raw.points) if settings.background else int(raw.mask.sum())
            fewest = min(fewest or (count, str(file)), (count, str(file)))
            if not raw.mask.any():
                message = "no point is labelled as an object; leave it out, or keep the background."
                yield Finding("warning" if settings.background else "error", str(file), message)
    yield from duplicates(digests)
    labels = {split: np.array([label for _, label in entries]) for split, (entries, _) in lists.items()}
    yield from class_balance(str(root), names, labels)
    if fewest:
        message = f"the smallest cloud has {fewest[0]} points; set data.num_points to at most that."
        yield Finding("info", fewest[1], message)
