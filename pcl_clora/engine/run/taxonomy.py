"""Categories and parts of a run from the files it wrote, so that its data need not be there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from pcl_clora.adapters.files import AdapterHeader
from pcl_clora.data import PartTaxonomy
from pcl_clora.engine.run.folder import RunFolder


def taxonomy_of_header(header: AdapterHeader) -> PartTaxonomy | None:
    """Take categories and parts from an adapter file; None where it does not say enough."""
    said = header.parts
    if said:
        return _taxonomy(said.get("categories", ()), said.get("ids", ()), header.classes)
    return _by_names(header.metrics, header.classes)


def taxonomy_of_run(files: RunFolder, part_names: tuple[str, ...]) -> PartTaxonomy | None:
    """Put categories and parts together from a result; None where it does not say enough."""
    if not files.result.is_file():
        return None
    return _by_names(files.read_result()["metrics"], part_names)


def _by_names(metrics: Mapping[str, Any], part_names: tuple[str, ...]) -> PartTaxonomy | None:
    categories = tuple(metrics.get("per_category", ()))
    ids = [[k for k, n in enumerate(part_names) if n.rpartition("/")[0] == name] for name in categories]
    return _taxonomy(categories, ids, part_names)


def _taxonomy(
    categories: Iterable[str], ids: Iterable[Iterable[int]], part_names: tuple[str, ...]
) -> PartTaxonomy | None:
    try:
        return PartTaxonomy(tuple(categories), tuple(tuple(each) for each in ids), part_names)
    except (ValueError, TypeError):  # parts that are not named after their category; the data know more
        return None
