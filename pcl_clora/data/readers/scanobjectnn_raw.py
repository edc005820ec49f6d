"""Read the raw objects of ScanObjectNN: `<class>/<scene>_<number>.bin` files and a list of the split."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

import torch
from pydantic import NonNegativeInt

from pcl_clora.data.config import DataConfig
from pcl_clora.data.dataset import Sample, check_split
from pcl_clora.data.input_rule import InputRule
from pcl_clora.data.readers.files import FileDataset
from pcl_clora.data.readers.modelnet import GET_AGAIN, read_list
from pcl_clora.data.readers.scanobjectnn import scan_class_names
from pcl_clora.io import DataError
from pcl_clora.io.raw_object import read_raw_object

SPLIT_FILES = ("main_split.txt", "split_new.txt")  # names of the official list in its releases


class ScanObjectNNRawConfig(DataConfig):
    """Whole objects of ScanObjectNN as they were cut out of the scans, in metres, of any number of points.

    A cloud gives a random choice of its points, decided by the file's name and the seed. The hdf5 files hold
    another choice of 2,048 points, so numbers differ a little.
    """

    paper_draws: ClassVar[Literal["unknown", "order", "in_reader"]] = "unknown"

    name: Literal["scanobjectnn_raw"] = "scanobjectnn_raw"
    background: bool = True  # False keeps only the points of the object
    split_file: str = (
        ""  # list of files, labels and test marks; empty = main_split.txt or split_new.txt in root
    )
    class_names: tuple[str, ...] = ()  # in label order; empty = shape_names.txt, else the 15 official ones
    seed: NonNegativeInt = 0  # decides which points
    normalize: bool = (
        True  # move and scale every cloud into the unit sphere, after the background is left out
    )
    repeat: bool = False  # fill up a cloud that has too few points with copies; else it is an error
    keep: bool = True  # keep clouds in memory once they are read

    def input_rule(self) -> InputRule:
        """Return the rule: the whole object is moved and scaled, then its points are drawn by their name."""
        return self.make_rule(
            frame="unit_sphere" if self.normalize else "file",
            cut="random",
            draw=("scanobjectnn_raw", self.seed),
            naming="parent",
            repeat=self.repeat,
            object_only=not self.background,
        )

    def for_one_pass(self) -> DataConfig:
        """Return these settings without keeping clouds in memory."""
        return self.model_copy(update={"keep": False})


def find_raw_base(root: str | Path) -> Path:
    """Find the folder of the classes: root, or object_dataset in it."""
    inner = Path(root) / "object_dataset"
    return inner if inner.is_dir() else Path(root)


def find_split_file(root: str | Path, given: str = "") -> Path:
    """Find the list of the split: a file in root, in its folder of classes, or given by its own path.

    Raises:
        DataError: if there is none.
    """
    names = (given,) if given else SPLIT_FILES
    for name in names:
        for folder in (Path(root), find_raw_base(root), Path()):
            if (folder / name).is_file() and (given or folder != Path()):
                return folder / name
    raise DataError(
        Path(root) / names[0],
        "the split list is missing, expected lines of file, label and, for test, t",
        "get it from the official repository (training_data/main_split.txt), or set data.split_file",
    )


def read_split_file(file: Path, class_names: tuple[str, ...]) -> dict[str, list[tuple[str, int]]]:
    """Read a list: split -> (file name, label).

    Raises:
        DataError: if a line is not "name label" or "name label t", or a label is no class.
    """
    entries: dict[str, list[tuple[str, int]]] = {"train": [], "test": []}
    for number, line in enumerate(read_list(file), start=1):
        parts = line.split()
        if (
            len(parts) not in (2, 3)
            or not parts[1].isdecimal()
            or len(parts[1]) > 9
            or parts[2:] not in ([], ["t"])
        ):
            raise DataError(
                file, f"line {number} is {line!r}, expected a file, a label and, for test, t", "mend the line"
            )
        if int(parts[1]) >= len(class_names):
            raise DataError(
                file,
                f"line {number} has label {parts[1]}, expected 0..{len(class_names) - 1}",
                "mend the line, or complete shape_names.txt",
            )
        entries["test" if parts[2:] else "train"].append((parts[0], int(parts[1])))
    return entries


def raw_files(config: ScanObjectNNRawConfig, split: str) -> tuple[list[tuple[Path, int]], tuple[str, ...]]:
    """List (file, label) of a split, and the class names; does not look whether the files are there."""
    names = scan_class_names(config.root, config.class_names)
    base = find_raw_base(config.root)
    entries = read_split_file(find_split_file(config.root, config.split_file), names)[check_split(split)]
    return [(base / names[label] / name, label) for name, label in entries], names


class ScanObjectNNRaw(FileDataset):
    """One split of the raw objects.

    Raises:
        DataError: if the list or a file of it is missing, and later, where a file is torn or has too few
            points.
    """

    def __init__(self, config: ScanObjectNNRawConfig, split: str) -> None:
        self.config, self._rule = config, config.input_rule()
        entries, names = raw_files(config, split)
        if not entries:
            raise DataError(config.root, f"the list names no files of the split {split!r}", GET_AGAIN)
        missing = [file for file, _ in entries if not file.is_file()]
        if missing:
            raise DataError(
                missing[0], f"the file is missing, the list names it ({len(missing)} such files)", GET_AGAIN
            )
        super().__init__(entries, names, keep=config.keep)

    def read_file(self, file: Path, label: int, index: int) -> Sample:
        """Read one object and choose its points."""
        raw = read_raw_object(file)
        name = self._rule.name_of(file)
        points, chosen = self._rule.read(raw.points, name=name, file=file, inside=raw.mask)
        return Sample(points, label, index, str(file), mask=torch.from_numpy(raw.mask[chosen]))
