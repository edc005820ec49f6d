"""Check a folder in the layout of modelnet40_ply_hdf5_2048."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pcl_clora.data.checks.finding import Finding, RootInfo, class_balance, digest_of, duplicates, problem
from pcl_clora.data.dataset import SPLITS
from pcl_clora.data.readers.modelnet import GET_AGAIN, MODELNET40_CLASSES, OFFICIAL_SIZES
from pcl_clora.data.readers.modelnet_hdf5 import Hdf5Header, list_hdf5_files, read_class_names, read_header
from pcl_clora.io import DataError, hdf5


def is_hdf5(root: Path) -> bool:
    """Say whether a folder looks like this layout."""
    return any(root.glob("ply_data_*.h5")) or all((root / f"{split}_files.txt").is_file() for split in SPLITS)


def describe_hdf5(root: Path) -> RootInfo:
    """Read sizes and class names."""
    headers = {
        split: [read_header(file) for file in list_hdf5_files(root, split)]
        for split in SPLITS
        if any(root.glob(f"ply_data_{split}*.h5")) or (root / f"{split}_files.txt").is_file()
    }
    return RootInfo(
        str(root),
        "modelnet40_hdf5",
        read_class_names(root) or MODELNET40_CLASSES,
        {split: sum(header.num_shapes for header in group) for split, group in headers.items()},
        min((header.stored_points for group in headers.values() for header in group), default=0),
    )


def check_hdf5(root: Path) -> Iterator[Finding]:
    """Check lists, headers, labels, every value, and whether train and test share clouds."""
    try:
        names = read_class_names(root)
    except DataError as error:
        yield problem(error)
        names = None
    if names is None:
        yield Finding(
            "warning",
            str(root / "shape_names.txt"),
            "the class names are missing or unusable, expected one name a line in label order; "
            "without them labels cannot be checked, write the file.",
        )
    labels: dict[str, np.ndarray] = {}
    digests: dict[str, list[tuple[str, bytes]]] = {}
    for split in SPLITS:
        try:
            files = list_hdf5_files(root, split)
        except DataError as error:
            yield problem(error)
            continue
        digests[split], labels[split] = [], np.empty(0, dtype=np.int64)
        for file in files:
            found: list[tuple[str, bytes]] = []
            try:
                header = read_header(file, len(names) if names else None)
                yield from check_points(header, found)
            except DataError as error:
                yield problem(error)
                continue
            if names:
                yield from _check_id_list(header, names)
            digests[split] += found
            labels[split] = np.concatenate([labels[split], header.labels])
    yield from duplicates(digests)
    if names:
        yield from class_balance(str(root), names, labels)
    yield from _compare_sizes(root, names, {split: len(values) for split, values in labels.items()})


def check_points(
    header: Hdf5Header, digests: list[tuple[str, bytes]], *, reach: float = 1.01
) -> Iterator[Finding]:
    """Check all points of one file, and note a digest of every cloud.

    Args:
        header: of the file.
        digests: gets (place, digest) of every cloud.
        reach: largest coordinate that is not worth a remark.

    Raises:
        DataError: if the points cannot be read.
    """
    with hdf5.open_hdf5(header.path) as file:
        points = hdf5.read(header.path, file["data"])
    digests += [(f"{header.path}#{row}", digest_of(one)) for row, one in enumerate(points)]
    low, high = points.min(axis=1), points.max(axis=1)  # nan and infinity show in one or the other
    finite = (np.isfinite(low) & np.isfinite(high)).all(axis=-1)
    bad = np.flatnonzero(~finite)
    flat = np.flatnonzero(finite & (low == high).all(axis=-1))
    far = np.flatnonzero(finite & (np.maximum(-low, high).max(axis=-1) > reach))
    place = str(header.path)
    if bad.size:
        yield Finding(
            "error",
            place,
            f"{len(bad)} shapes hold values that are not finite, the first in row {bad[0]}; {GET_AGAIN}.",
        )
    if flat.size:
        yield Finding(
            "error",
            place,
            f"all points of {len(flat)} shapes coincide, the first in row {flat[0]}; {GET_AGAIN}.",
        )
    if far.size:
        yield Finding(
            "info",
            place,
            f"{len(far)} shapes reach beyond the unit sphere, the first in row {far[0]}; "
            "set data.normalize=true.",
        )


def _check_id_list(header: Hdf5Header, names: tuple[str, ...]) -> Iterator[Finding]:
    """Compare labels with `ply_data_train_0_id2file.json`, where it exists: entries `class/id.ply`."""
    stem = header.path.stem.rstrip("0123456789")
    listing = header.path.with_name(f"{stem}_{header.path.stem[len(stem) :]}_id2file.json")
    if not listing.is_file():
        return
    try:
        entries = json.loads(listing.read_text(encoding="utf-8"))
        classes = [str(entry).replace("\\", "/").partition("/")[0] for entry in entries]
    except (ValueError, TypeError, RecursionError) as error:
        yield Finding("error", str(listing), f"is not a json list of class/id.ply ({error}); {GET_AGAIN}.")
        return
    if len(classes) != header.num_shapes:
        message = f"names {len(classes)} shapes, {header.path.name} holds {header.num_shapes}; {GET_AGAIN}."
        yield Finding("error", str(listing), message)
        return
    wrong = [row for row, label in enumerate(header.labels) if classes[row] != names[label]]
    if wrong:
        row = wrong[0]
        yield Finding(
            "error",
            str(header.path),
            f"{len(wrong)} shapes are mislabelled, the first in row {row}: label {header.labels[row]} is "
            f"{names[header.labels[row]]!r}, expected {classes[row]!r} by {listing.name}; {GET_AGAIN}.",
        )


def _compare_sizes(root: Path, names: tuple[str, ...] | None, sizes: dict[str, int]) -> Iterator[Finding]:
    official = OFFICIAL_SIZES["modelnet40_hdf5"]
    if names == MODELNET40_CLASSES and sizes and sizes != official:
        held, expected = (
            ", ".join(f"{n} {split}" for split, n in some.items()) for some in (sizes, official)
        )
        yield Finding(
            "info",
            str(root),
            f"holds {held}, the official release {expected}; name the difference beside results.",
        )
