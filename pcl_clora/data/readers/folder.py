"""A folder of point files as a data set: the names of folders are the classes.

Three arrangements are known: ROOT/<split>/<class>/<file>, ROOT/<class>/<split>/<file> (as the meshes of
ModelNet40 come) and ROOT/<class>/<file>, which is split by a seed. Splits are train, test and, if it is
there, val, which protocol.select=validation uses. Classes are in alphabetical order.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field, NonNegativeInt

from pcl_clora.data.config import DataConfig
from pcl_clora.data.dataset import SPLITS, Sample, check_split, split_validation
from pcl_clora.data.readers.files import FileDataset, raise_all
from pcl_clora.data.readers.folder_index import index_folder
from pcl_clora.data.shapes import Draw, Mesh
from pcl_clora.data.transforms import normalize_unit_sphere
from pcl_clora.errors import warn_once
from pcl_clora.io import DataError, read_points


class FolderConfig(DataConfig):
    """Point files sorted into folders by class.

    A cloud with more points than wanted gives a random choice of them, a mesh points uniform over its area;
    both are decided by the file's name and the seed.
    """

    name: Literal["folder"] = "folder"
    test_fraction: float = Field(default=0.2, gt=0.0, lt=1.0)  # share of test where the folders do not say it
    seed: NonNegativeInt = 0  # decides that split and the points
    normalize: bool = True  # move and scale every cloud into the unit sphere
    repeat: bool = (
        False  # fill up a cloud that has too few points with copies of its points; else it is an error
    )
    keep: bool = True  # keep clouds in memory once they are read

    @property
    def has_validation(self) -> bool:
        """Whether the folder has a split of its own for validation."""
        return Path(self.root).is_dir() and "val" in index_folder(self.root).files

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
        self.config = config
        index = index_folder(config.root)
        raise_all(config.root, index.faults)
        for place, what in index.left_out:
            warn_once(f"{place}: {what}.")
        entries = index.files.get(split if split == "val" else check_split(split), [])
        if index.layout == "class":
            everything = index.files["all"]
            labels = torch.tensor([label for _, label in everything])
            parts = split_validation(labels, config.test_fraction, config.seed)
            entries = [everything[at] for at in parts[SPLITS.index(split)].tolist()]
        if not entries:
            raise DataError(
                config.root, f"holds no files of the split {split!r}", "add them, see data/README.md"
            )
        super().__init__(entries, index.class_names, keep=config.keep)

    def read_file(self, file: Path, label: int, index: int) -> Sample:
        """Read one cloud, or sample one mesh."""
        return Sample(torch.from_numpy(self._read(file)), label, index, str(file))

    def _read(self, file: Path) -> np.ndarray:
        wanted = self.config.read_points
        content = read_points(file)
        # The name of the file, not its place on this machine, decides the choice.
        name = file.relative_to(self.config.root).as_posix()
        draw = Draw("folder", self.config.seed, name)
        if content.faces is not None:
            mesh = Mesh(
                content.points.astype(np.float64), content.faces, np.zeros(len(content.faces), np.int64)
            )
            if not mesh.areas().sum() > 0:
                raise DataError(file, "the triangles of this mesh have no area", "mend or remove the file")
            points = mesh.sample(wanted, draw)[0].astype(np.float32)
        else:
            points = content.points[
                choose_points(file, len(content.points), wanted, self.config.repeat, draw)
            ]
        return normalize_unit_sphere(torch.from_numpy(points)).numpy() if self.config.normalize else points


def choose_points(file: Path, available: int, wanted: int, repeat: bool, draw: Draw) -> np.ndarray:
    """Choose points at random, or all in their order where they are as many as wanted.

    Returns:
        (wanted,), int64, indices below available.

    Raises:
        DataError: if there are too few and repeat, which fills up with copies, is not set.
    """
    if available < wanted and not repeat:
        raise DataError(
            file,
            f"has {available} points, but {wanted} were asked for",
            "lower data.num_points (and data.pool_points), or set data.repeat=true to fill up with copies",
        )
    if available == wanted:
        return np.arange(wanted)
    order = np.argsort(draw.array(available), kind="stable")
    return np.resize(order, wanted)
