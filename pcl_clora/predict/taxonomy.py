"""Categories and parts of a run from the files it wrote, so that its data need not be there."""

from __future__ import annotations

from pcl_clora.data import PartTaxonomy
from pcl_clora.engine import RunFolder


def taxonomy_of_run(files: RunFolder, part_names: tuple[str, ...]) -> PartTaxonomy | None:
    """Put categories and parts together; None where the files do not say enough."""
    if not files.result.is_file():
        return None
    metrics = files.read_result()["metrics"]
    categories = tuple(metrics.get("per_category", ()))
    ids = [tuple(k for k, n in enumerate(part_names) if n.rpartition("/")[0] == name) for name in categories]
    try:
        return PartTaxonomy(categories, tuple(ids), part_names)
    except ValueError:  # parts that are not named after their category; the data know more
        return None
