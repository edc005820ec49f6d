"""The learning curve of a run: one row an epoch, as csv, and as a picture where possible."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pcl_clora.engine import read_metrics
from pcl_clora.report.units import csv_table

COLUMNS = (
    "epoch",
    "train_loss",
    "train_oa",
    "lr",
    "validation_oa",
    "validation_loss",
    "test_oa",
    "test_loss",
)


def read_curve(metrics: str | Path) -> list[dict[str, Any]]:
    """Read one row an epoch from a metrics.jsonl.

    Args:
        metrics: the file.

    Returns:
        Rows with COLUMNS; epochs count from 1, accuracies lie in [0, 1], what was not measured is None. The
        test accuracy of the last row is the run's result where the last epoch counts.
    """
    rows: dict[int, dict[str, Any]] = {}
    for event in read_metrics(metrics):
        kind, split = event["kind"], event.get("split")
        if kind not in ("epoch", "eval"):
            continue
        row = rows.setdefault(event["epoch"], dict.fromkeys(COLUMNS) | {"epoch": event["epoch"] + 1})
        if kind == "epoch":
            row |= {"train_loss": event["loss"], "train_oa": event["oa"], "lr": event["lr"]}
        else:
            row |= {f"{split}_oa": event["oa"], f"{split}_loss": event["loss"]}
    return [rows[epoch] for epoch in sorted(rows)]


def curve_csv(rows: Sequence[dict[str, Any]]) -> str:
    """Write the rows as csv text; None becomes an empty cell."""
    return csv_table(COLUMNS, [[row[name] for name in COLUMNS] for row in rows])


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
    for axes, quantity, scale in zip(figure.subplots(1, 2), ("loss", "oa"), (1, 100), strict=True):
        for split in ("train", "validation", "test"):
            drawn = [(row["epoch"], row[f"{split}_{quantity}"]) for row in rows]
            drawn = [(epoch, scale * value) for epoch, value in drawn if value is not None]
            if drawn:
                style = "o" if len(drawn) == 1 else "-"
                axes.plot(*zip(*drawn, strict=True), style, label=split)
        axes.set_xlabel("epoch")
        axes.set_ylabel("overall accuracy, percent" if quantity == "oa" else "loss")
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend()
    figure.savefig(path, dpi=120)
    return True
