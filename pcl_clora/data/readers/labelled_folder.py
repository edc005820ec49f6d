"""A folder of labelled files as a data set for part segmentation: every point has a label beside it.

Files may be of any mix of formats: ROOT/<file>, or ROOT/<split>/<file>, with folders of categories in between
where there are several. Labels are a field or a column of the file; a small yaml names them.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import PositiveInt

from pcl_clora.data.dataset import Sample
from pcl_clora.data.frame import warn_of_up
from pcl_clora.data.input_rule import InputRule
from pcl_clora.data.loader import derive_seed
from pcl_clora.data.part_names import PartNames, read_part_names
from pcl_clora.data.part_taxonomy import PartTaxonomy
from pcl_clora.data.readers.files import FileDataset
from pcl_clora.data.readers.folder_index import FolderIndex
from pcl_clora.data.readers.labelled_index import index_labelled, part_file
from pcl_clora.data.readers.sorted_files import SortedFilesConfig, entries_of_split
from pcl_clora.data.surface import sample_surface
from pcl_clora.io import DataError, PointFile, read_arrays, read_points
from pcl_clora.io.text import line_of

_SAY = "name it: data.labels=<field>, or the number of a column from 0, -1 for the last one"


class LabelledFolderConfig(SortedFilesConfig):
    """Point files whose points have labels.

    Clouds are moved and scaled as a whole; a mesh gives points uniform over its area with the labels of the
    nearest corners.
    """

    name: Literal["labelled_folder"] = "labelled_folder"
    num_points: PositiveInt = 2048  # N, points of a cloud that the model sees
    parts: str = ""  # yaml file of the names of the labels; empty = parts.yaml in the folder
    labels: str = (
        ""  # field that holds the labels, or its column from 0, -1 = the last; empty = found by name
    )

    def part_names(self) -> PartNames:
        """Read the names of the labels."""
        return read_part_names(part_file(self.root, self.parts))

    def index(self) -> FolderIndex:
        """Find categories, splits and files by their names."""
        return index_labelled(self.root, self.part_names())

    def input_rule(self) -> InputRule:
        """Return the rule: the whole cloud is moved and scaled, then its points are drawn by its name."""
        return self.make_rule(
            frame="unit_sphere" if self.normalize else "file",
            cut="random",
            draw=("labelled", self.seed),
            naming="path",
            repeat=self.repeat,
        )

    def listed_files(self) -> list[Path]:
        """Name the files and the yaml."""
        files = [file for entries in self.index().files.values() for file, _ in entries]
        return [part_file(self.root, self.parts), *files]


class LabelledFolder(FileDataset):
    """One split of a folder of labelled files; a file is read when its sample is first asked for.

    Raises:
        DataError: if there are no files or no names of parts, and later, where a file is torn, has too few
            points, no labels, or labels without a name.
    """

    def __init__(self, config: LabelledFolderConfig, split: str) -> None:
        self.config, self._rule = config, config.input_rule()
        self._names = config.part_names()
        index = index_labelled(config.root, self._names)
        super().__init__(entries_of_split(config, index, split), index.class_names, keep=config.keep)

    @cached_property
    def taxonomy(self) -> PartTaxonomy:
        """Categories and parts."""
        return self._names.taxonomy

    def read_file(self, file: Path, label: int, index: int) -> Sample:
        """Read one cloud with its labels, or sample one mesh."""
        name = self._rule.name_of(file, self.config.root)
        content, parts = read_labelled(file, self.config.labels, self._names, label)
        warn_of_up(file, content.up, self._rule.up, "data.up=")
        points = content.points
        if content.faces is not None and len(content.faces):
            wanted = self._rule.read_points
            seed = derive_seed("labelled", self.config.seed, name)
            drawn = sample_surface(PointFile(points, {"part": parts}, content.faces), wanted, seed)
            points, parts = drawn.points, drawn.fields["part"]
        seen, kept = self._rule.read(points, name=name, file=file)
        labels = torch.from_numpy(np.ascontiguousarray(parts[kept]))
        return Sample(seen, label, index, str(file), part_labels=labels, category=label)


def read_labelled(
    file: str | Path, field: str, names: PartNames, category: int
) -> tuple[PointFile, NDArray[np.int64]]:
    """Read one labelled file.

    Args:
        file: of any kind that `read_points` takes.
        field: that holds the labels, or the number of its column; "" finds it.
        names: of the labels.
        category: of the file.

    Returns:
        What it holds, points in float64; and the part of every point: (N,), int64.

    Raises:
        DataError: if it has no labels, or some that are not whole or have no name.
    """
    file = Path(file)
    is_column = field.removeprefix("-").isdecimal()
    content = read_points(file, dtype="float64", labels="" if is_column else field)
    labels = _column(file, content, int(field)) if is_column else _found(file, content)
    if labels.ndim != 1 or labels.dtype.kind not in "iufb":
        raise DataError(file, f"has labels {labels.dtype} {labels.shape}, expected one number a point", _SAY)
    with np.errstate(invalid="ignore"):
        broken = np.flatnonzero(~(np.isfinite(labels) & (labels == np.round(labels))))
    if broken.size:
        what = f"has the label {labels[broken[0]]:g} at point {broken[0]}, expected whole numbers"
        raise DataError(file, what, _SAY)
    return content, names.parts_of(labels.astype(np.int64), category, file)


def _column(file: Path, content: PointFile, column: int) -> NDArray[Any]:
    extra = content.fields.get("extra")
    if extra is None:
        named = line_of(content.fields) or "none but x, y, z"
        raise DataError(file, f"has no columns without a name (named are {named})", _SAY)
    count = 3 + extra.shape[1]
    at = column + count if column < 0 else column
    if not 3 <= at < count:
        raise DataError(
            file, f"has the columns 0 to {count - 1}, of which 0 to 2 are x, y, z; not {column}", _SAY
        )
    return extra[:, at - 3]


def _found(file: Path, content: PointFile) -> NDArray[Any]:
    """Take the labels: those that were named, or of a usual name, or the only column besides x, y, z."""
    labels = content.fields.get("labels")
    if labels is not None:
        return labels
    extra = content.fields.get("extra")
    if extra is not None and extra.shape[1] == 1:
        return extra[:, 0]
    if extra is not None:
        columns = f"columns 3 to {2 + extra.shape[1]}, none with a name"
        raise DataError(file, f"has the {columns}; which one holds the labels is not known", _SAY)
    if file.suffix.lower() == ".npz":
        for name, array in read_arrays(file).items():
            if array.ndim == 1 and array.dtype.kind in "iu" and len(array) != len(content.points):
                what = f"has {len(array)} labels in {name!r} and {len(content.points)} points"
                raise DataError(file, what, "give every point one label")
    fields = line_of(content.fields) or "nothing"
    raise DataError(file, f"has no labels beside its points, but {fields}", _SAY)
