"""A folder of point files as a data set: the names of folders are the classes.

Three arrangements are known: ROOT/<split>/<class>/<file>, ROOT/<class>/<split>/<file> (as the meshes of
ModelNet40 come) and ROOT/<class>/<file>, which is split by a seed. Classes are in alphabetical order.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field, NonNegativeInt

from pcl_clora.data.config import DataConfig
from pcl_clora.data.dataset import SPLITS, Sample, check_split, split_validation
from pcl_clora.data.readers.files import FileDataset
from pcl_clora.data.shapes import Draw, Mesh
from pcl_clora.data.transforms import normalize_unit_sphere
from pcl_clora.io import POINT_SUFFIXES, DataError, read_points


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

    def for_one_pass(self) -> DataConfig:
        """Return these settings without keeping clouds in memory."""
        return self.model_copy(update={"keep": False})


@dataclass(frozen=True)
class FolderIndex:
    """What a folder holds, by names only.

    Attributes:
        layout: "split/class", "class/split" or "class".
        class_names: in alphabetical order.
        files: split -> (file, label) in alphabetical order; only the key "all" for the layout "class".
    """

    layout: Literal["split/class", "class/split", "class"]
    class_names: tuple[str, ...]
    files: dict[str, list[tuple[Path, int]]]


def index_folder(root: str | Path) -> FolderIndex:
    """Find classes and files.

    Raises:
        DataError: if the folder is missing or holds no point files in one of the known arrangements.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(root, "there is no such folder, expected one folder a class", "set data.root to it")
    folders = _folders(root)
    layout: Literal["split/class", "class/split", "class"]
    if any(folder.name in SPLITS for folder in folders):
        layout = "split/class"
        pairs = [(s, c.name, c) for s in SPLITS if (root / s).is_dir() for c in _folders(root / s)]
    elif any((folder / split).is_dir() for folder in folders for split in SPLITS):
        layout = "class/split"
        pairs = [(s, c.name, c / s) for s in SPLITS for c in folders if (c / s).is_dir()]
    else:
        layout = "class"
        pairs = [("all", folder.name, folder) for folder in folders]
    pairs = [(split, name, folder) for split, name, folder in pairs if any(_files(folder))]
    names = tuple(sorted({name for _, name, _ in pairs}))
    if not names:
        raise DataError(
            root,
            f"no folders with point files ({' '.join(POINT_SUFFIXES)}) here, expected ROOT/<class>/<file>, "
            "ROOT/<split>/<class>/<file> or ROOT/<class>/<split>/<file>",
            "set data.root to the folder above the classes",
        )
    files: dict[str, list[tuple[Path, int]]] = {}
    for split, name, folder in pairs:
        files.setdefault(split, []).extend((file, names.index(name)) for file in _files(folder))
    return FolderIndex(layout, names, {split: sorted(entries) for split, entries in files.items()})


def _folders(root: Path) -> list[Path]:
    return sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _files(folder: Path) -> list[Path]:
    return sorted(
        file
        for file in folder.iterdir()
        if file.suffix.lower() in POINT_SUFFIXES and file.is_file() and not file.name.startswith(".")
    )


class PointFolder(FileDataset):
    """One split of a folder of point files; a file is read when its sample is first asked for.

    Raises:
        DataError: if there are no files, and later, where a file is torn or has too few points.
    """

    def __init__(self, config: FolderConfig, split: str) -> None:
        self.config = config
        index = index_folder(config.root)
        entries = index.files.get(check_split(split), [])
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
