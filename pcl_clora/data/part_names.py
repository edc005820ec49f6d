"""The small yaml that names the labels of a user's own files: value -> part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcl_clora.config import parse_yaml
from pcl_clora.data.part_taxonomy import CATEGORY, PartTaxonomy
from pcl_clora.io import DataError, explained
from pcl_clora.io.text import line_of, visible

REMEDY = "write the names in the order of the labels, '[back, seat, leg]', or 'label: name', one a line"


@dataclass(frozen=True)
class PartNames:
    """Parts, and the numbers that the labels of files have for them.

    Attributes:
        taxonomy: categories and parts; one category where the yaml has none.
        values: for every category, the label in the files -> the part, as the taxonomy numbers it.
        sorted: whether the yaml has categories, which are folders.
        file: the yaml.
    """

    taxonomy: PartTaxonomy
    values: tuple[Mapping[int, int], ...]
    sorted: bool
    file: Path

    def parts_of(self, labels: NDArray[Any], category: int, place: str | Path) -> NDArray[np.int64]:
        """Turn labels of a file into parts.

        Args:
            labels: (N,), whole numbers of any type.
            category: of the file.
            place: the file, for the message.

        Returns:
            (N,), int64.

        Raises:
            DataError: if a label has no name; lists all such.
        """
        known = self.values[category]
        used, inverse = np.unique(labels, return_inverse=True)
        nameless = [int(value) for value in used if int(value) not in known]
        if nameless:
            counts = np.bincount(inverse.ravel())
            listed = ", ".join(
                f"{int(value)} ({count} points)"
                for value, count in zip(used, counts, strict=True)
                if int(value) in nameless
            )
            raise DataError(
                place,
                f"has labels without a name: {listed}; {visible(self.file.name)} names {line_of(known)}",
                f"name them there, for example '{nameless[0]}: other'",
            )
        table = np.array([known[int(value)] for value in used], dtype=np.int64)
        return table[inverse.ravel()]


def read_part_names(path: str | Path) -> PartNames:
    """Read the yaml of part names.

    It is a list of names for the labels 0, 1, 2, ...; or a mapping of label to name, or of name to label; or
    a mapping of category to one of these, where the files lie in folders of categories.

    Raises:
        DataError: if the file is missing or is something else.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(path, "there is no such file, and it was to name the parts", REMEDY)
    with explained(path, "read"):
        text = path.read_bytes()
    try:
        content = parse_yaml(text.decode("utf-8"))
    except ValueError as error:
        raise DataError(path, f"is not yaml ({error})", REMEDY) from error
    by_category = isinstance(content, Mapping) and all(
        isinstance(value, Mapping | list) for value in content.values()
    )
    sections = content if by_category and content else {CATEGORY: content}
    names: list[str] = []
    ids: list[tuple[int, ...]] = []
    values: list[dict[int, int]] = []
    for category, section in sections.items():
        start = len(names)
        said = _read_section(section, path)
        names += [f"{category}/{name}" if by_category else name for name in said.values()]
        ids.append(tuple(range(start, len(names))))
        values.append({value: start + place for place, value in enumerate(said)})
    if len(names) < 2:
        raise DataError(path, f"names {len(names)} part, expected two or more", REMEDY)
    try:
        taxonomy = PartTaxonomy(tuple(map(str, sections)), tuple(ids), tuple(names))
    except ValueError as error:
        raise DataError(path, str(error), REMEDY) from error
    return PartNames(taxonomy, tuple(values), by_category, path)


def _read_section(section: Any, path: Path) -> dict[int, str]:
    """Read the parts of one category: label -> name, in the order of the labels."""
    if isinstance(section, list) and section:
        pairs = list(enumerate(section))
    elif isinstance(section, Mapping) and section:
        pairs = [(key, name) if _is_label(key) else (name, key) for key, name in section.items()]
    else:
        raise DataError(path, f"holds {section!r}, expected the names of parts", REMEDY)
    found: dict[int, str] = {}
    for label, name in pairs:
        if not _is_label(label) or not (_is_label(name) or (isinstance(name, str) and name.strip())):
            raise DataError(path, f"has {label!r}: {name!r}, expected a whole number and a name", REMEDY)
        if label in found or str(name) in found.values():
            raise DataError(path, f"names {label!r} or {name!r} twice", "name every label and part once")
        found[int(label)] = str(name)
    return dict(sorted(found.items()))


def _is_label(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
