"""The learning curve of a run: one row an epoch, as csv, and as a picture where possible."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pcl_clora.io import explained
from pcl_clora.report.pictures import new_figure, save_figure
from pcl_clora.report.shapes import EventShape, ReportError, check_shape, parse_object
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

    Raises:
        ReportError: if a line is not as a run writes it; what is still being written, a last line without an
            end, is left out.
    """
    events = _read_events(Path(metrics))
    metric = next((name for name in METRICS if any(name in event for event in events.values())), "oa")
    rows: dict[int, dict[str, Any]] = {}
    for number, event in events.items():
        if metric not in event:
            raise ReportError(f"{metrics}, line {number}: {metric} is missing; restore the file.")
        split = event.get("split")
        empty = dict.fromkeys(curve_columns(metric))
        row = rows.setdefault(event["epoch"], empty | {"epoch": event["epoch"] + 1})
        if event["kind"] == "epoch":
            row |= {"train_loss": event["loss"], f"train_{metric}": event[metric], "lr": event.get("lr")}
        else:
            row |= {f"{split}_{metric}": event[metric], f"{split}_loss": event["loss"]}
    return [rows[epoch] for epoch in sorted(rows)]


def _read_events(path: Path) -> dict[int, dict[str, Any]]:
    """Read the lines that a curve is made of: number of the line -> event."""
    events = {}
    with explained(path, "read"):
        content = path.read_bytes()
    for number, line in enumerate(content.split(b"\n")[:-1], 1):
        where = f"{path}, line {number}"
        event = parse_object(where, line)
        kind = event.get("kind")
        if not isinstance(kind, str):
            raise ReportError(f"{where}: kind is {kind!r}, expected a word; restore the file.")
        if kind in ("epoch", "eval"):
            check_shape(EventShape, event, where)
            events[number] = event
    return events


def curve_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Write the rows as csv text; None becomes an empty cell."""
    columns = curve_columns(curve_metric(rows))
    return csv_table(columns, [[row[name] for name in columns] for row in rows])


def plot_curve(rows: Sequence[dict[str, Any]], path: Path) -> bool:
    """Draw loss and accuracy over the epochs into a picture.

    Returns:
        False if matplotlib is not installed or there is nothing to draw.
    """
    figure = new_figure(9, 3.2)
    if figure is None or not rows:
        return False
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
    save_figure(figure, path)
    return True
