"""The page of a study, one file without network: a table to sort and to filter, advice, the pictures."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from pcl_clora.compare.advice import advice_cells, advise, overrides_of
from pcl_clora.compare.cells import Line, difference_labels, family_labels
from pcl_clora.compare.results import StudyResults
from pcl_clora.compare.tables import asked_pairs, table_lines
from pcl_clora.io import write_text
from pcl_clora.io.text import visible
from pcl_clora.vis.html import whole_page

# Columns: key, label, how it is written ("percent" has a deviation beside it where there is one), group.
COLUMNS = (
    ("n", "n", "count", "accuracy"),
    ("difference_mean", "difference", "difference", "accuracy"),
    ("difference_ahead", "seeds ahead", "count", "accuracy"),
    ("ece_mean", "ECE", "percent", "accuracy"),
    ("params_trained", "trained", "count", "cost"),
    ("params_without_head", "without head", "count", "cost"),
    ("adapter_bytes", "adapter bytes", "count", "cost"),
    ("macs_published", "MACs published", "count", "cost"),
    ("macs_executed", "MACs executed", "count", "cost"),
    ("macs_merged", "MACs merged", "count", "cost"),
    ("training_memory_mib", "training MiB", "number", "cost"),
    ("step_ms", "step ms", "number", "cost"),
    ("latency_unmerged_ms", "latency ms", "number", "cost"),
    ("latency_merged_ms", "merged ms", "number", "cost"),
    ("method", "method", "text", "provenance"),
    ("chosen", "chosen", "number", "provenance"),
    ("train_seconds", "train s", "number", "provenance"),
    ("precision", "precision", "text", "provenance"),
    ("processor", "processor", "text", "provenance"),
    ("torch", "torch", "text", "provenance"),
    ("versions", "versions", "text", "provenance"),
    ("cost_precision", "cost measured in", "text", "provenance"),
    ("cost_processor", "cost measured on", "text", "provenance"),
    ("git", "commit", "text", "provenance"),
    ("state", "state", "text", "accuracy"),
)


def write_page(
    results: StudyResults, pictures: Mapping[str, str], lines: Sequence[Line] | None = None
) -> None:
    """Write index.html into the folder of a study.

    Args:
        results: of the study.
        pictures: title -> svg.
        lines: of its table, where they are at hand.
    """
    lines = table_lines(results) if lines is None else lines
    write_text(results.path / "index.html", render_page(results, pictures, lines))


def render_page(results: StudyResults, pictures: Mapping[str, str], lines: Sequence[Line]) -> str:
    """Make the page as text."""
    title, content = visible(results.title), _content(results, pictures, lines)
    return whole_page(*map(_part, ("study.html", "study.js", "study.css")), title=title, content=content)


@cache
def _part(name: str) -> str:
    return (files("pcl_clora.compare") / "page" / name).read_text(encoding="utf-8")


def _content(results: StudyResults, pictures: Mapping[str, str], lines: Sequence[Line]) -> dict[str, Any]:
    columns: list[dict[str, str]] = [{"key": "row", "label": "row", "kind": "text", "group": "accuracy"}]
    for head in results.headlines:
        columns.append(
            {"key": f"{head.key}_mean", "label": head.label, "kind": "percent", "group": "accuracy"}
        )
    families, apart = family_labels(lines[0]), difference_labels(results.baseline, lines[0])
    columns += [{"key": k, "label": label, "kind": kind, "group": group} for k, label, kind, group in COLUMNS]
    for key in lines[0].values:
        if key.startswith("error_mean ") or key in families:
            label = families.get(key, key.removeprefix("error_mean "))
            columns.append({"key": key, "label": label, "kind": "percent", "group": "corruption"})
        if key in apart:
            columns.append({"key": key, "label": apart[key], "kind": "difference", "group": "corruption"})
        if key.startswith("value_"):
            label = key.removeprefix("value_")
            columns.append({"key": key, "label": label, "kind": "number", "group": "accuracy"})
    columns = [c for c in columns if any(line.values.get(c["key"]) is not None for line in lines)]
    header, advice = advice_cells(results, advise(results)) if results.finished else ((), [])
    settings = {row.name: overrides_of(results, row) for row in results.rows}
    return {
        "title": visible(results.title),
        "baseline": results.baseline,
        "headlines": [head.key for head in results.headlines],
        "columns": columns,
        "rows": [
            {
                **{key: visible(v) if isinstance(v, str) else v for key, v in line.values.items()},
                "near_best": sorted(line.near_best),
                "settings": visible(settings[line.values["row"]]),
            }
            for line in lines
        ],
        "pairs": [
            {"row": one, "against": other, **(vars(apart) if apart else {"mean": None})}
            for one, other, apart in asked_pairs(results)
        ],
        "advice": {"header": list(header), "rows": [[visible(cell) for cell in row] for row in advice]},
        "pictures": [
            {"title": title, "source": "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()}
            for title, svg in pictures.items()
        ],
    }
