"""A folder of point files as a data set: the names of folders are the classes.

Three arrangements are known: ROOT/<split>/<class>/<file>, ROOT/<class>/<split>/<file> (as the meshes of
ModelNet40 come) and ROOT/<class>/<file>, which is split by a seed. Splits are train, test and, if it is
there, val, which protocol.select=validation uses. Classes are in alphabetical order.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, NonNegativeInt, model_validator

from pcl_clora.data.config import DataConfig
from pcl_clora.data.dataset import SPLITS, Sample, check_split, split_folds, split_validation
from pcl_clora.data.frame import warn_of_up
from pcl_clora.data.input_rule import InputRule
from pcl_clora.data.readers.files import FileDataset, raise_all
from pcl_clora.data.readers.folder_index import index_folder
from pcl_clora.errors import UserValueError, warn_once
from pcl_clora.io import DataError, read_points


class FolderConfig(DataConfig):
    """Point files sorted into folders by class.

    A cloud with more points than wanted gives a random choice of them, a mesh points uniform over its area;
    both are decided by the file's name and the seed.
    """

    name: Literal["folder"] = "folder"
    test_fraction: float = Field(default=0.2, gt=0.0, lt=1.0)  # share of test where the folders do not say it
    seed: NonNegativeInt = 0  # decides that split and the points
    folds: NonNegativeInt = 0  # parts of a cross-validation in place of that split; 0 = none
    fold: NonNegativeInt = 0  # the part that is test, below folds
    normalize: bool = True  # move and scale every cloud into the unit sphere
    repeat: bool = (
        False  # fill up a cloud that has too few points with copies of its points; else it is an error
    )
    keep: bool = True  # keep clouds in memory once they are read

    def left_out(self) -> frozenset[str]:
        """Leave the cross-validation out where there is none."""
        return super().left_out() | self.at_default("folds", "fold")

    @model_validator(mode="after")
    def _check_folds(self) -> FolderConfig:
        if self.folds == 1 or (self.folds and self.fold >= self.folds) or (self.fold and not self.folds):
            raise UserValueError(
                f"fold={self.fold}, folds={self.folds}: give folds=2 or more and a fold below it, or neither."
            )
        return self

    @property
    def has_validation(self) -> bool:
        """Whether the folder has a split of its own for validation."""
        return Path(self.root).is_dir() and "val" in index_folder(self.root).files

    def input_rule(self) -> InputRule:
        """Return the rule: points drawn by the name of the file below root, and then moved and scaled."""
        return self.make_rule(
            frame="unit_sphere" if self.normalize else "file",
            centre_on="cut",
            cut="random",
            draw=("folder", self.seed),
            naming="path",
            repeat=self.repeat,
        )

    def for_one_pass(self) -> DataConfig:
        """Return these settings without keeping clouds in memory."""
        return self.model_copy(update={"keep": False})


class PointFolder(FileDataset):
    """One split of a folder of point files; a file is read when its sample is first asked for.

    Raises:
        DataError: if there are no files, a folder looks like a class but gives no clouds, and later, where a
            file is torn or has too few points.
    """

    def __init__(self, config: FolderConfig, split: str) -> None:
        self.config, self._rule = config, config.input_rule()
        index = index_folder(config.root)
        raise_all(config.root, index.faults)
        for place, what in index.left_out:
            warn_once(f"{place}: {what}.")
        entries = index.files.get(split if split == "val" else check_split(split), [])
        if index.layout == "class":
            everything = index.files["all"]
            labels = torch.tensor([label for _, label in everything])
            if config.folds:
                parts = split_folds(labels, config.folds, config.seed)[config.fold]
            else:
                parts = split_validation(labels, config.test_fraction, config.seed)
            entries = [everything[at] for at in parts[SPLITS.index(split)].tolist()]
        elif config.folds:
            raise DataError(
                config.root,
                f"has splits of its own, so folds={config.folds} cannot divide it",
                "set data.folds=0, or give a folder without splits",
            )
        if not entries:
            raise DataError(
                config.root, f"holds no files of the split {split!r}", "add them, see data/README.md"
            )
        super().__init__(entries, index.class_names, keep=config.keep)

    def read_file(self, file: Path, label: int, index: int) -> Sample:
        """Read one cloud, or sample one mesh."""
        content = read_points(file, dtype="float64")
        warn_of_up(file, content.up, self._rule.up, "data.up=")
        name = self._rule.name_of(file, self.config.root)
        points, _ = self._rule.read(content.points, name=name, file=file, faces=content.faces)
        return Sample(points, label, index, str(file))
