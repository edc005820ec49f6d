"""Which object categories a data set has, and which parts each of them has."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from pcl_clora.config import parse_yaml
from pcl_clora.data.dataset import PointDataset
from pcl_clora.errors import UserValueError
from pcl_clora.io import DataError, explained

CATEGORY = "object"  # the one category of clouds that are not sorted into several
REMEDY = "write a mapping of category to its parts, for example 'Chair: [back, seat, leg]'"


@dataclass(frozen=True)
class PartTaxonomy:
    """Categories and their parts. A part label counts through all categories; each belongs to one of them.

    Attributes:
        categories: names, in the order of the category numbers.
        ids: for every category the labels of its parts, ascending.
        part_names: name of every part label.

    Raises:
        ValueError: if a category has no parts or is named twice, or the labels are not 0..P-1, each once.
    """

    categories: tuple[str, ...]
    ids: tuple[tuple[int, ...], ...]
    part_names: tuple[str, ...]

    def __post_init__(self) -> None:
        problems = []
        if not self.categories or len(self.ids) != len(self.categories):
            problems.append(f"{len(self.categories)} categories with {len(self.ids)} lists of parts")
        twice = sorted({name for name in self.categories if self.categories.count(name) > 1})
        problems += [f"category {name!r} is named twice" for name in twice]
        empty = [name for name, ids in zip(self.categories, self.ids, strict=False) if not ids]
        problems += [f"category {name!r} has no parts" for name in empty]
        used = sorted(label for ids in self.ids for label in ids)
        if used == list(range(1, len(used) + 1)):
            problems.append(
                f"the part labels are {_runs(used)}: they start at 1, expected 0..{len(used) - 1}; subtract "
                "1 here and from the labels of every file"
            )
        elif used != list(range(len(used))):
            problems.append(
                f"the part labels are {_runs(used)}, expected 0..{len(used) - 1}, each in one category"
            )
        if len(self.part_names) != len(used):
            problems.append(f"{len(self.part_names)} names for {len(used)} parts")
        if problems:
            raise UserValueError("; ".join(problems))

    @property
    def num_parts(self) -> int:
        """P, parts of all categories together."""
        return len(self.part_names)

    @property
    def num_categories(self) -> int:
        """How many categories there are."""
        return len(self.categories)

    def mask(self) -> Tensor:
        """Say which parts a category has: (num_categories, num_parts), bool."""
        mask = torch.zeros(self.num_categories, self.num_parts, dtype=torch.bool)
        for row, ids in zip(mask, self.ids, strict=True):
            row[list(ids)] = True
        return mask

    def category_of_part(self) -> Tensor:
        """Say whose part a label is: (num_parts,), int64."""
        return self.mask().to(torch.int64).argmax(dim=0)

    @classmethod
    def counted(cls, parts: Mapping[str, Sequence[str]]) -> PartTaxonomy:
        """Make one from the part names of every category; labels count on through the categories."""
        starts = [0, *accumulate(len(names) for names in parts.values())]
        return cls(
            tuple(parts),
            tuple(tuple(range(first, last)) for first, last in pairwise(starts)),
            tuple(f"{category}/{name}" for category, names in parts.items() for name in names),
        )


@runtime_checkable
class PartDataset(PointDataset, Protocol):
    """A data set whose samples have part labels and a category, which is the label of the sample."""

    taxonomy: PartTaxonomy


def _runs(labels: Sequence[int]) -> str:
    shown = ", ".join(map(str, labels[:12]))
    return shown + (", ..." if len(labels) > 12 else "") if labels else "none"


SHAPENETPART_SYNSETS: dict[str, str] = {
    "Airplane": "02691156",
    "Bag": "02773838",
    "Cap": "02954340",
    "Car": "02958343",
    "Chair": "03001627",
    "Earphone": "03261776",
    "Guitar": "03467517",
    "Knife": "03624134",
    "Lamp": "03636649",
    "Laptop": "03642806",
    "Motorbike": "03790512",
    "Mug": "03797390",
    "Pistol": "03948459",
    "Rocket": "04099429",
    "Skateboard": "04225987",
    "Table": "04379243",
}
"""Folder of every category of ShapeNetPart, in official order."""

_NUM_PARTS = (4, 2, 2, 4, 4, 3, 3, 2, 4, 2, 6, 2, 3, 3, 3, 3)

SHAPENETPART = PartTaxonomy.counted(
    {
        name: [f"part{k}" for k in range(count)]
        for name, count in zip(SHAPENETPART_SYNSETS, _NUM_PARTS, strict=True)
    }
)
"""16 categories, 50 parts; the official data give the parts no names."""

SHAPENETPART_SIZES = {"train": 12137, "val": 1870, "test": 2874}
"""Number of shapes of the official lists."""


def read_taxonomy(path: str | Path) -> PartTaxonomy:
    """Read a taxonomy from a yaml or json file.

    A mapping of category to its parts, in the order of the category numbers. Parts are a list of names, and
    labels count on through the categories; or a mapping of name to label; or a list of labels.

    Raises:
        DataError: if the file is missing or holds something else; the message names all problems.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(path, "there is no such taxonomy file", "set data.taxonomy to a yaml file")
    try:
        with explained(path, "read"):
            content = parse_yaml(path.read_text(encoding="utf-8"))
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(path, f"is not valid yaml ({error})", REMEDY) from error
    if not isinstance(content, dict) or not content:
        raise DataError(path, f"holds a {type(content).__name__}, expected a mapping", REMEDY)
    return taxonomy_from(content, path)


def taxonomy_from(content: Mapping[Any, Any], place: str | Path) -> PartTaxonomy:
    """Turn a mapping of category to parts into a taxonomy; see `read_taxonomy`.

    Raises:
        DataError: if it is no taxonomy; `place` is named.
    """
    named: dict[str, list[str]] = {}
    ids: dict[str, list[int]] = {}
    for category, parts in content.items():
        if isinstance(parts, Mapping) and all(isinstance(label, int) for label in parts.values()):
            ids[str(category)] = list(parts.values())
            named[str(category)] = [str(name) for name in parts]
        elif isinstance(parts, list) and parts and all(isinstance(label, int) for label in parts):
            ids[str(category)] = list(parts)
            named[str(category)] = [f"part{k}" for k in range(len(parts))]
        elif isinstance(parts, list):
            named[str(category)] = [str(name) for name in parts]
        else:
            found = f"category {category!r} has {parts!r}, expected a list or a mapping of parts"
            raise DataError(place, found, REMEDY)
    if ids and len(ids) < len(named) and any(named[name] for name in named if name not in ids):
        raise DataError(place, "some categories have labels and others names only", "give all of them labels")
    try:
        if not ids:
            return PartTaxonomy.counted(named)
        names = {
            label: f"{category}/{name}"
            for category, labels in ids.items()
            for label, name in zip(labels, named[category], strict=True)
        }
        listed = tuple(tuple(sorted(ids.get(category, ()))) for category in named)
        return PartTaxonomy(tuple(named), listed, tuple(names[label] for label in sorted(names)))
    except ValueError as error:
        raise DataError(place, str(error), REMEDY) from error


def read_json(path: Path, what: str) -> Any:
    """Read a json file of a data set.

    Raises:
        DataError: if it is missing or no json.
    """
    remedy = "get it again, see data/README.md"
    if not path.is_file():
        raise DataError(path, f"the file is missing, expected {what}", remedy)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(path, f"is not json ({error}), expected {what}", remedy) from error
