"""A folder of point files as a data set: the names of folders are the classes.

Three arrangements are known: ROOT/<split>/<class>/<file>, ROOT/<class>/<split>/<file> (as the meshes of
ModelNet40 come) and ROOT/<class>/<file>, which is split by a seed. Splits are train, test and, if it is
there, val, which protocol.select=validation uses. Classes are in alphabetical order.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pcl_clora.data.dataset import Sample
from pcl_clora.data.frame import warn_of_up
from pcl_clora.data.input_rule import InputRule
from pcl_clora.data.readers.files import FileDataset, raise_all
from pcl_clora.data.readers.folder_index import FolderIndex, index_folder
from pcl_clora.data.readers.sorted_files import SortedFilesConfig, entries_of_split
from pcl_clora.errors import warn_once
from pcl_clora.io import read_points


class ClassFilesConfig(SortedFilesConfig):
    """Settings of files that each have one class."""

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


class FolderConfig(ClassFilesConfig):
    """Point files sorted into folders by class."""

    name: Literal["folder"] = "folder"

    def index(self) -> FolderIndex:
        """Find classes, splits and files by their names."""
        return index_folder(self.root)


class PointFolder(FileDataset):
    """One split of point files that have a class each; a file is read when its sample is first asked for.

    Raises:
        DataError: if there are no files, a folder looks like a class but gives no clouds, and later, where a
            file is torn or has too few points.
    """

    def __init__(self, config: ClassFilesConfig, split: str) -> None:
        self.config, self._rule = config, config.input_rule()
        index = config.index()
        raise_all(config.root, index.faults)
        for place, what in index.left_out:
            warn_once(f"{place}: {what}.")
        super().__init__(entries_of_split(config, index, split), index.class_names, keep=config.keep)

    def read_file(self, file: Path, label: int, index: int) -> Sample:
        """Read one cloud, or sample one mesh."""
        content = read_points(file, dtype="float64")
        warn_of_up(file, content.up, self._rule.up, "data.up=")
        name = self._rule.name_of(file, self.config.file_root())
        points, _ = self._rule.read(content.points, name=name, file=file, faces=content.faces)
        return Sample(points, label, index, str(file))
