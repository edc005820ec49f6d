"""Whether data have the classes that a run was trained on: matched by name, or refused."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from pcl_clora.adapters.files import AdapterHeader, read_header
from pcl_clora.config import ConfigError
from pcl_clora.data import PartDataset, PartTaxonomy, PointDataset
from pcl_clora.data.subset import PartsRelabelled, SubsetDataset
from pcl_clora.engine.run.folder import RunFolder
from pcl_clora.engine.run.taxonomy import taxonomy_of_header
from pcl_clora.engine.tasks import PartSegmentationTask
from pcl_clora.io.text import line_of

logger = logging.getLogger("pcl_clora")


def header_of_run(folder: str | Path) -> AdapterHeader:
    """Read what the adapter file of a finished run says of itself."""
    return read_header(RunFolder(Path(folder)).chosen)


def match_classes(dataset: PointDataset, header: AdapterHeader, task: str) -> PointDataset:
    """Give clouds the labels that a model knows, by the names of their classes, or categories and parts.

    Args:
        dataset: whose classes may stand in another order, or be some of those that were trained.
        header: of the model's adapter file, with the names of its logits; without any, the data are taken as
            they are.
        task: of the run.

    Returns:
        The data set, or one with the labels and class names of the model.

    Raises:
        ConfigError: if clouds are of classes, or points of parts, that the model does not know.
    """
    known = header.classes
    if task == PartSegmentationTask.name and isinstance(dataset, PartDataset):
        return _match_parts(dataset, header) if known else dataset
    names = tuple(dataset.class_names)
    if not known or names == known:
        return dataset
    used = {label: names[label] for label in sorted(set(dataset.labels.tolist()))}
    unknown = [name for name in used.values() if name not in known]
    if unknown or len(set(known)) < len(known):
        _refuse("classes", unknown or list(names), known)
    logger.warning(
        "The data have the classes %s, the run was trained on %s: clouds are matched by the names of their "
        "classes.",
        line_of(names, 12),
        line_of(known, 12),
    )
    classes = {label: known.index(name) for label, name in used.items()}
    every = torch.arange(len(dataset), device="cpu")
    return SubsetDataset(dataset, every, classes=classes, class_names=known)


def _match_parts(dataset: PartDataset, header: AdapterHeader) -> PointDataset:
    own, known = dataset.taxonomy, taxonomy_of_header(header)
    if known is None:  # the file does not say whose parts these are
        if own.part_names != header.classes:
            _refuse("parts", _unknown(own.part_names, header.classes), header.classes)
        return dataset
    if own == known:
        return dataset
    used = sorted(set(dataset.labels.tolist()))
    categories = [own.categories[number] for number in used]
    _require("categories", categories, known.categories)
    _require("parts", _parts(own, categories), _parts(known, known.categories))
    for name in categories:  # a part of another category is no part of this one
        _require("parts", _parts(own, [name]), _parts(known, [name]))
    logger.warning(
        "The data have the categories %s with the parts %s, the run was trained on %s with %s: they are "
        "matched by their names.",
        line_of(own.categories, 12),
        line_of(own.part_names, 12),
        line_of(known.categories, 12),
        line_of(known.part_names, 12),
    )
    labels = {name: label for label, name in enumerate(known.part_names)}
    parts = torch.tensor([labels.get(name, -1) for name in own.part_names], dtype=torch.int64)
    numbers = {number: known.categories.index(own.categories[number]) for number in used}
    return PartsRelabelled(dataset, known, categories=numbers, parts=parts)


def _parts(taxonomy: PartTaxonomy, categories: Sequence[str]) -> list[str]:
    numbers = [taxonomy.categories.index(name) for name in categories]
    return [taxonomy.part_names[label] for number in numbers for label in taxonomy.ids[number]]


def _require(what: str, names: Sequence[str], known: Sequence[str]) -> None:
    """Refuse names that are not known, or that are known twice."""
    if not set(names) <= set(known) or len(set(known)) < len(known):
        _refuse(what, _unknown(names, known), known)


def _unknown(names: Sequence[str], known: Sequence[str]) -> list[str]:
    return [name for name in names if name not in known] or list(names)


def _refuse(what: str, unknown: Sequence[str], known: Sequence[str]) -> None:
    raise ConfigError(
        f"The run was trained on other data: it knows the {what} {line_of(known, 12)}, and the data have "
        f"{line_of(unknown, 12)}; give the data it was trained on, or name their {what} as the run does."
    )
