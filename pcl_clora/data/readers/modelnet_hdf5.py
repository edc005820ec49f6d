"""Read the layout of modelnet40_ply_hdf5_2048: `ply_data_*.h5` with `data` and `label`.

Any number of classes and of stored points works, so other data in this layout can be used as well.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from pcl_clora.data.config import DataConfig
from pcl_clora.data.dataset import ArrayDataset, check_split
from pcl_clora.data.input_rule import InputRule
from pcl_clora.data.readers.modelnet import GET_AGAIN, MODELNET40_CLASSES, read_list
from pcl_clora.io import DataError, hdf5, no_folder
from pcl_clora.io.hdf5 import open_hdf5
from pcl_clora.io.text import line_of

logger = logging.getLogger(__name__)


class ModelNet40Hdf5Config(DataConfig):
    """ModelNet40 as hdf5 files, and every data set in the same layout.

    The stored clouds are used as they are; the official ones fill the unit sphere already.
    """

    name: Literal["modelnet40_hdf5"] = "modelnet40_hdf5"
    normalize: bool = False  # move and scale every cloud, after cutting, into the unit sphere
    drop_empty_classes: bool = False  # names without training clouds are no classes; labels close the gaps

    def left_out(self) -> frozenset[str]:
        """Name the settings that came later, where they have their default; see `Config.left_out`."""
        return super().left_out() | self.at_default("drop_empty_classes")

    def input_rule(self) -> InputRule:
        """Return the rule: the first points, in the unit sphere, where the stored clouds lie already."""
        return self.make_rule(
            framed_by="reader" if self.normalize else "file", centre_on="cut" if self.normalize else "whole"
        )


@dataclass(frozen=True)
class Hdf5Header:
    """What one file holds, read without its points.

    Attributes:
        path: the file.
        num_shapes: rows.
        stored_points: points a row.
        labels: (num_shapes,), int64.
        dtype: of the stored points.
    """

    path: Path
    num_shapes: int
    stored_points: int
    labels: np.ndarray
    dtype: np.dtype[Any]


def list_hdf5_files(root: str | Path, split: str) -> list[Path]:
    """Find the files of a split: those of `<split>_files.txt`, else all `ply_data_<split>*.h5`.

    The list files hold paths of another machine; only the file names count, and they are taken from root.

    Raises:
        DataError: if the folder or a listed file is missing, or there is no file at all.
    """
    root = Path(root)
    check_split(split)
    if not root.is_dir():
        raise DataError(
            root,
            f"{no_folder(root)}; expected one with ply_data_{{train,test}}*.h5 and shape_names.txt",
            "set data.root to the folder modelnet40_ply_hdf5_2048, see data/README.md",
        )
    listing = root / f"{split}_files.txt"
    if listing.is_file():
        names = [line.strip().replace("\\", "/").rsplit("/", 1)[-1] for line in read_list(listing)]
        files = [root / name for name in names]
        for file in files:
            if not file.is_file():
                raise DataError(file, f"the file is missing, but {listing.name} lists it", GET_AGAIN)
    else:
        files = sorted(root.glob(f"ply_data_{split}*.h5"), key=_natural)
    if not files:
        raise DataError(root, f"no ply_data_{split}*.h5 here, expected at least one", GET_AGAIN)
    return files


def read_class_names(root: str | Path) -> tuple[str, ...] | None:
    """Read the class names of `shape_names.txt`, one a line in label order; None if there is no such file."""
    file = Path(root) / "shape_names.txt"
    if not file.is_file():
        return None
    names = tuple(read_list(file))
    if not names or len(set(names)) != len(names):
        raise DataError(file, f"{len(names)} names, some empty or twice", "write one distinct name a line")
    return names


def read_header(file: Path, num_classes: int | None = None) -> Hdf5Header:
    """Read sizes and labels of one file and check them.

    Args:
        file: an hdf5 file with `data` (n, N, 3) and `label` (n, 1) or (n,).
        num_classes: labels must be below it; None leaves that open.

    Raises:
        DataError: if the file cannot be opened (truncated, not hdf5), a dataset is missing or has another
            shape, or a label is out of range.
    """
    with open_hdf5(file) as handle:
        data, label = (hdf5.find_array(file, handle, key) for key in ("data", "label"))
        if data is None or label is None:
            found = line_of(sorted(handle)) or "nothing"
            raise DataError(file, f"has {found}, expected datasets 'data' and 'label'", GET_AGAIN)
        shape, dtype = data.shape, data.dtype
        raw = hdf5.read(file, label)
    if len(shape) != 3 or shape[-1] != 3 or dtype.kind not in "iuf":
        raise DataError(file, f"'data' has shape {shape}, expected (shapes, points, 3), numbers", GET_AGAIN)
    if raw.shape not in ((shape[0],), (shape[0], 1)) or raw.dtype.kind not in "iu":
        raise DataError(
            file,
            f"'label' is {raw.dtype} {raw.shape}, expected integers ({shape[0]}, 1) as 'data' has",
            GET_AGAIN,
        )
    labels = raw.reshape(-1).astype(np.int64)
    bad = np.flatnonzero((labels < 0) | (labels >= (num_classes or np.inf)))
    if bad.size:
        row = int(bad[0])
        raise DataError(
            file,
            f"label {labels[row]} at row {row} ({bad.size} such rows), expected 0..{(num_classes or 0) - 1}, "
            "the lines of shape_names.txt",
            "complete shape_names.txt or get the file again",
        )
    return Hdf5Header(Path(file), int(shape[0]), int(shape[1]), labels, dtype)


class ModelNet40Hdf5(ArrayDataset):
    """All clouds of one split in memory: the first `read_points` stored points of every shape.

    Raises:
        DataError: if a file is missing, truncated, mislabelled or holds values that are not finite, or fewer
            points are stored than asked for.
    """

    def __init__(self, config: ModelNet40Hdf5Config, split: str) -> None:
        files = list_hdf5_files(config.root, split)
        names = read_class_names(config.root)
        headers = [read_header(file, len(names) if names else None) for file in files]
        if names is None:
            names = _official_names(config.root, headers)
        rule = config.input_rule()
        dtype = np.result_type(*(rule.dtype_of(header.dtype) for header in headers))
        points = np.empty((sum(header.num_shapes for header in headers), config.read_points, 3), dtype)
        start = 0
        for header in headers:
            read_cloud_rows(header, points[start : start + header.num_shapes])
            start += header.num_shapes
        labels = np.concatenate([header.labels for header in headers])
        if config.drop_empty_classes:
            names, labels = _without_empty(config.root, names, headers, labels)
        super().__init__(
            rule.place(points).numpy(),
            torch.from_numpy(labels),
            names,
            [f"{header.path}#{row}" for header in headers for row in range(header.num_shapes)],
        )


def classes_with_clouds(root: str | Path) -> tuple[str, ...]:
    """List the names that have training clouds, in label order; reads labels only.

    Raises:
        DataError: as `ModelNet40Hdf5`.
    """
    names = read_class_names(root) or MODELNET40_CLASSES
    headers = [read_header(file, len(names)) for file in list_hdf5_files(root, "train")]
    used = np.unique(np.concatenate([header.labels for header in headers]))
    return tuple(names[label] for label in used)


def _without_empty(
    root: str, names: tuple[str, ...], headers: list[Hdf5Header], labels: np.ndarray
) -> tuple[tuple[str, ...], np.ndarray]:
    """Leave out the names without training clouds, and close the gaps in the labels."""
    kept = classes_with_clouds(root)
    number = np.array([kept.index(name) if name in kept else -1 for name in names])
    if (number[labels] < 0).any():
        name = names[int(labels[number[labels] < 0][0])]
        raise DataError(
            headers[0].path,
            f"holds clouds of {name!r}, of which train has none, and data.drop_empty_classes=true",
            "set it to false, and data.allow_empty_classes=true, to test on what nothing is learnt of",
        )
    return kept, number[labels]


def _official_names(root: str, headers: list[Hdf5Header]) -> tuple[str, ...]:
    file, largest = Path(root) / "shape_names.txt", max(int(one.labels.max(initial=0)) for one in headers)
    if largest >= len(MODELNET40_CLASSES):
        raise DataError(
            file, f"is missing, and labels go up to {largest}", "write one class name a line in it"
        )
    logger.warning("%s is missing; the official names of ModelNet40 are taken. Write it to be sure.", file)
    return MODELNET40_CLASSES


def read_cloud_rows(header: Hdf5Header, out: np.ndarray) -> None:
    """Fill an array (num_shapes, N, 3) with the first N stored points of every cloud.

    Raises:
        DataError: if fewer points are stored, they cannot be read, or some are not finite.
    """
    num_points = out.shape[1]
    if header.stored_points < num_points:
        raise DataError(
            header.path,
            f"stores {header.stored_points} points a shape, but {num_points} were asked for",
            f"set data.num_points (and data.pool_points) to at most {header.stored_points}",
        )
    with open_hdf5(header.path) as handle:
        out[:] = hdf5.read(header.path, handle["data"], np.s_[:, :num_points])
    bad = np.flatnonzero(~np.isfinite(out).all(axis=(1, 2)))
    if bad.size:
        raise DataError(
            header.path,
            f"{len(bad)} of {header.num_shapes} shapes hold values that are not finite, "
            f"the first in row {bad[0]}",
            GET_AGAIN,
        )


def _natural(path: Path) -> list[int | str]:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)]
