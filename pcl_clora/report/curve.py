"""The learning curve of a run: one row an epoch, as csv, and as a picture where possible."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pcl_clora.engine import read_metrics
from pcl_clora.report.units import csv_table

METRICS = ("instance_miou", "oa")  # what a curve shows: the first of these that a run measured


def curve_metric(rows: Sequence[Mapping[str, Any]]) -> str:
    """Say which metric the rows of a curve have."""
    return next((name for name in METRICS if rows and f"train_{name}" in rows[0]), "oa")


def curve_columns(metric: str) -> tuple[str, ...]:
    """Name the columns of a curve."""
    splits = [f"{split}_{name}" for split in ("validation", "test") for name in (metric, "loss")]
    return ("epoch", "train_loss", f"train_{metric}", "lr", *splits)


def read_curve(metrics: str | Path) -> list[dict[str, Any]]:
    """Read one row an epoch from a metrics.jsonl.

    Args:
        metrics: the file.

    Returns:
        Rows with the columns of `curve_columns`; epochs count from 1, accuracies and IoU lie in [0, 1], what
        was not measured is None. The test score of the last row is the run's result where the last epoch
        counts.
    """
    events = [event for event in read_metrics(metrics) if event["kind"] in ("epoch", "eval")]
    metric = next((name for name in METRICS if any(name in event for event in events)), "oa")
    rows: dict[int, dict[str, Any]] = {}
    for event in events:
        split = event.get("split")
        empty = dict.fromkeys(curve_columns(metric))
        row = rows.setdefault(event["epoch"], empty | {"epoch": event["epoch"] + 1})
        if event["kind"] == "epoch":
            row |= {"train_loss": event["loss"], f"train_{metric}": event[metric], "lr": event["lr"]}
        else:
            row |= {f"{split}_{metric}": event[metric], f"{split}_loss": event["loss"]}
    return [rows[epoch] for epoch in sorted(rows)]


def curve_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Write the rows as csv text; None becomes an empty cell."""
    columns = curve_columns(curve_metric(rows))
    return csv_table(columns, [[row[name] for name in columns] for row in rows])


def plot_curve(rows: Sequence[dict[str, Any]], path: Path) -> bool:
    """Draw loss and accuracy over the epochs into a picture.

    Returns:
        False if matplotlib is not installed or there is nothing to draw.
    """
    if find_spec("matplotlib") is None or not rows:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    metric = curve_metric(rows)
    title = {"oa": "overall accuracy"}.get(metric, "instance mIoU")
    for axes, quantity, scale in zip(figure.subplots(1, 2), ("loss", metric), (1, 100), strict=True):
        for split in ("train", "validation", "test"):
            drawn = [(row["epoch"], row[f"{split}_{quantity}"]) for row in rows]
            drawn = [(epoch, scale * value) for epoch, value in drawn if value is not None]
            if drawn:
                style = "o" if len(drawn) == 1 else "-"
                axes.plot(*zip(*drawn, strict=True), style, label=split)
        axes.set_xlabel("epoch")
        axes.set_ylabel(f"{title}, percent" if quantity == metric else "loss")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    figure.savefig(path, dpi=120)
    return True
