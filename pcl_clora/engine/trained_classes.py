"""Whether data have the classes that a run was trained on: matched by name, or refused."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from pcl_clora.adapters.files import read_header
from pcl_clora.config import ConfigError
from pcl_clora.data import PartDataset, PointDataset
from pcl_clora.data.subset import SubsetDataset
from pcl_clora.engine.run.folder import RunFolder
from pcl_clora.engine.tasks import PartSegmentationTask

logger = logging.getLogger("pcl_clora")


def classes_of_run(folder: str | Path) -> tuple[str, ...]:
    """Name the logits of a finished run's model in their order; () where its file does not say them."""
    return tuple(read_header(RunFolder(Path(folder)).chosen).classes)


def match_classes(dataset: PointDataset, trained: Sequence[str], task: str) -> PointDataset:
    """Give clouds the labels that a model knows, by the names of their classes.

    Args:
        dataset: whose classes may stand in another order, or be some of those that were trained.
        trained: names of the model's logits in their order; () takes the data as they are.
        task: of the run; names of parts are compared, and not matched.

    Returns:
        The data set, or one with the labels and class names of the model.

    Raises:
        ConfigError: if clouds are of classes, or points of parts, that the model does not know.
    """
    known = tuple(trained)
    if task == PartSegmentationTask.name and isinstance(dataset, PartDataset):
        own = tuple(dataset.taxonomy.part_names)
        if known and own != known:
            _refuse("parts", [name for name in own if name not in known] or list(own), known)
        return dataset
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
        _listed(names),
        _listed(known),
    )
    classes = {label: known.index(name) for label, name in used.items()}
    every = torch.arange(len(dataset), device="cpu")
    return SubsetDataset(dataset, every, classes=classes, class_names=known)


def _refuse(what: str, unknown: Sequence[str], known: Sequence[str]) -> None:
    raise ConfigError(
        f"The run was trained on other data: it knows the {what} {_listed(known)}, and the data have "
        f"{_listed(unknown)}; give the data it was trained on, or name their {what} as the run does."
    )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 12} more" if len(names) > 12 else ""
    return ", ".join(names[:12]) + more
