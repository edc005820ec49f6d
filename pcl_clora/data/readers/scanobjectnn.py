"""Read ScanObjectNN, and every data set in its layout: hdf5 files with `data`, `label` and `mask`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
import torch

from pcl_clora.data.config import DataConfig
from pcl_clora.data.dataset import ArrayDataset, check_split
from pcl_clora.data.input_rule import InputRule
from pcl_clora.data.readers.modelnet import GET_AGAIN
from pcl_clora.data.readers.modelnet_hdf5 import Hdf5Header, read_class_names, read_cloud_rows, read_header
from pcl_clora.io import DataError, hdf5
from pcl_clora.io.hdf5 import open_hdf5

SCANOBJECTNN_CLASSES: tuple[str, ...] = tuple(
    "bag bin box cabinet chair desk display door shelf table bed pillow sink sofa toilet".split()  # noqa: SIM905
)
"""The 15 classes in official order; a label is an index into this list."""

OFFICIAL_SIZES: dict[str, dict[str, int]] = {
    "obj_bg": {"train": 2309, "test": 581},
    "obj_only": {"train": 2309, "test": 581},
    "pb_t50_rs": {"train": 11416, "test": 2882},
}
"""Number of clouds of the official files."""

BACKGROUND = -1  # value of `mask` at points that do not belong to the object

Variant = Literal["obj_bg", "obj_only", "pb_t25", "pb_t25_r", "pb_t50_r", "pb_t50_rs"]

# Which objects are cut out, and how the boxes around them were moved before: the end of the file's name. PB:
# the boxes are perturbed; T25, T50: shifted by up to a quarter or half of their size; R: turned; S: scaled.
_SUFFIXES: dict[str, str] = {
    "obj_bg": "",
    "obj_only": "",
    "pb_t25": "_augmented25_norot",
    "pb_t25_r": "_augmented25rot",
    "pb_t50_r": "_augmentedrot",
    "pb_t50_rs": "_augmentedrot_scale75",
}
_PREFIXES = {"train": "training", "test": "test"}


class ScanObjectNNConfig(DataConfig):
    """ScanObjectNN as hdf5 files, and every data set in the same layout.

    The stored clouds are used as they are, as published code does.
    """

    paper_draws: ClassVar[Literal["unknown", "order", "in_reader"]] = "order"

    name: Literal["scanobjectnn"] = "scanobjectnn"
    variant: Variant = (
        "pb_t50_rs"  # "obj_only" has no background, the others have it unless `background` says no
    )
    background: bool = True  # False reads the files without background of every variant
    fold: Literal["main_split", "split1", "split2", "split3", "split4"] = (
        "main_split"  # official train/test split
    )
    class_names: tuple[str, ...] = ()  # in label order; empty = shape_names.txt, else the 15 official ones
    normalize: bool = False  # move and scale every cloud, after cutting, into the unit sphere

    def input_rule(self) -> InputRule:
        """Return the rule: the first points as they are stored, unless `normalize` moves them."""
        return self.make_rule(frame="unit_sphere" if self.normalize else "file", centre_on="cut")

    @property
    def folder(self) -> str:
        """Name of the folder that holds the files."""
        with_background = self.background and self.variant != "obj_only"
        return self.fold if with_background else f"{self.fold}_nobg"


@dataclass(frozen=True)
class ScanFile:
    """One hdf5 file of the layout, and what it is by its name.

    Attributes:
        path: the file.
        variant: of the clouds; "obj_only" if it is in a folder without background and not perturbed.
        split: "train" or "test".
    """

    path: Path
    variant: str
    split: str


def find_base(root: str | Path) -> Path:
    """Find the folder that holds main_split or main_split_nobg: root, or h5_files in it.

    Raises:
        DataError: if there is neither.
    """
    root = Path(root)
    for base in (root, root / "h5_files"):
        if any(entry.is_dir() for fold in ("main_split", "split1") for entry in base.glob(f"{fold}*")):
            return base
    raise DataError(
        root,
        "has no folder main_split or main_split_nobg, nor has its folder h5_files",
        "set data.root to the folder above them, see data/README.md",
    )


def list_scan_files(root: str | Path) -> list[ScanFile]:
    """List all hdf5 files of the layout that are there, sorted by path.

    Raises:
        DataError: if root holds none of the layout's folders.
    """
    variants = {suffix: name for name, suffix in _SUFFIXES.items() if name != "obj_only"}
    found = []
    for path in sorted(find_base(root).glob("*/*_objectdataset*.h5")):
        start, _, suffix = path.stem.partition("_objectdataset")
        split = {prefix: split for split, prefix in _PREFIXES.items()}.get(start)
        if split is None or suffix not in variants:
            continue
        bare = path.parent.name.endswith("_nobg") and not suffix
        found.append(ScanFile(path, "obj_only" if bare else variants[suffix], split))
    return found


def scan_file(config: ScanObjectNNConfig, split: str) -> Path:
    """Name the file of a split.

    Raises:
        DataError: if it is missing.
    """
    name = f"{_PREFIXES[check_split(split)]}_objectdataset{_SUFFIXES[config.variant]}.h5"
    file = find_base(config.root) / config.folder / name
    if not file.is_file():
        there = sorted({f"{one.path.parent.name}/{one.variant}" for one in list_scan_files(config.root)})
        raise DataError(
            file,
            f"the file is missing, variant {config.variant} needs it; here are: {', '.join(there) or 'none'}",
            "set data.variant to one of these, or get the file from the official site, see data/README.md",
        )
    return file


def scan_class_names(root: str | Path, given: tuple[str, ...] = ()) -> tuple[str, ...]:
    """Decide the class names: those given, else those of shape_names.txt in root, else the official ones."""
    if given:
        if len(set(given)) != len(given):
            raise DataError("data.class_names", f"{given} has a name twice", "give distinct names")
        return given
    return read_class_names(root) or SCANOBJECTNN_CLASSES


def read_masks(header: Hdf5Header, num_points: int) -> np.ndarray | None:
    """Read which points of every cloud belong to the object; None if the file does not say.

    Returns:
        (num_shapes, num_points), bool.

    Raises:
        DataError: if `mask` is there but has another shape than the points or cannot be read.
    """
    with open_hdf5(header.path) as handle:
        mask = hdf5.find_array(header.path, handle, "mask")
        if mask is None:
            return None
        if mask.shape != (header.num_shapes, header.stored_points) or mask.dtype.kind not in "iuf":
            raise DataError(
                header.path,
                f"'mask' is {mask.dtype} {mask.shape}, expected numbers "
                f"{(header.num_shapes, header.stored_points)} as 'data' has points",
                GET_AGAIN,
            )
        found: np.ndarray = hdf5.read(header.path, mask, np.s_[:, :num_points]) != BACKGROUND
        return found


class ScanObjectNN(ArrayDataset):
    """All clouds of one split in memory: the first `read_points` stored points of each, with masks.

    Raises:
        DataError: if a file is missing, truncated, mislabelled or holds values that are not finite, or fewer
            points are stored than asked for.
    """

    def __init__(self, config: ScanObjectNNConfig, split: str) -> None:
        file = scan_file(config, split)
        names = scan_class_names(config.root, config.class_names)
        header = read_header(file, len(names))
        rule = config.input_rule()
        points = np.empty((header.num_shapes, config.read_points, 3), rule.dtype_of(header.dtype))
        read_cloud_rows(header, points)
        super().__init__(
            rule.place(points).numpy(),
            torch.from_numpy(header.labels),
            names,
            [f"{file}#{row}" for row in range(header.num_shapes)],
            read_masks(header, config.read_points),
        )
