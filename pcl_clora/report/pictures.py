"""Pictures of a run's report: confusion matrix, a bar for every class, category or part, and reliability."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pcl_clora.errors import warn_once
from pcl_clora.io import atomic_write
from pcl_clora.io.pictures import scalar_colours
from pcl_clora.io.text import visible
from pcl_clora.report import units

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BAR_COLOUR, MEAN_COLOUR = "#0072b2", "#d55e00"
DPI = 120
MAX_NAMES = 50  # classes or parts that a confusion matrix names


def new_figure(width: float, height: float) -> Figure | None:
    """Make an empty picture, in inches; None if matplotlib is not installed."""
    if find_spec("matplotlib") is None:
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained", dpi=DPI)
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: Path) -> None:
    """Write a picture, whole or not at all; letters that its font lacks are boxes, and a warning says so."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        atomic_write(path, lambda aside: figure.savefig(aside))
    for one in said:
        if "missing from font" not in str(one.message):
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    if any("missing from font" in str(one.message) for one in said):
        warn_once(f"{path}: the font of pictures lacks letters of names; tables and pages show them.")


def plain_text(name: str) -> str:
    """Show a name as it is: matplotlib takes text between dollars for a formula."""
    return visible(name).replace("$", r"\$")


def plot_confusion(counts: Sequence[Sequence[int]], names: Sequence[str], path: Path) -> bool:
    """Draw a confusion matrix: one row a true class or part, as shares of its clouds or points.

    Up to 12 names, cells hold counts, or percent of their row where a count has more than three digits.

    Returns:
        False if matplotlib is not installed.
    """
    table = np.asarray(counts, dtype=np.float64)
    share = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    side = float(np.clip(0.22 * len(names) + 2.2, 4.2, 11))
    figure = new_figure(side, side)
    if figure is None:
        return False
    from matplotlib.colors import ListedColormap

    axes = figure.subplots()
    colours = ListedColormap(scalar_colours(np.linspace(0, 1, 256)) / 255)
    image = axes.imshow(share, vmin=0, vmax=1, cmap=colours)
    figure.colorbar(image, ax=axes, shrink=0.7, label="share of the row")
    too_long = len(names) <= 12 and table.max() > 999  # for a cell
    axes.set_xlabel("said; cells: percent of the row" if too_long else "said")
    axes.set_ylabel("true")
    if len(names) <= MAX_NAMES:
        size = 9 if len(names) <= 15 else 6
        plain = [plain_text(name) for name in names]
        axes.set_xticks(range(len(names)), plain, rotation=90, fontsize=size)
        axes.set_yticks(range(len(names)), plain, fontsize=size)
    if len(names) <= 12:
        for row in range(len(names)):
            for column in range(len(names)):
                if table[row, column]:
                    ink = "white" if share[row, column] < 0.6 else "black"
                    text = f"{100 * share[row, column]:.0f}" if too_long else f"{int(table[row, column])}"
                    axes.text(column, row, text, ha="center", va="center", color=ink, fontsize=8)
    save_figure(figure, path)
    return True


def plot_bars(values: Mapping[str, Any], quantity: str, path: Path) -> bool:
    """Draw a bar for every name, worst first, with a line at their mean.

    Args:
        values: name -> number in [0, 1]; None is left out.
        quantity: what is measured, such as "IoU".
        path: where to.

    Returns:
        False if matplotlib is not installed or there is nothing to draw.
    """
    known = sorted((value, name) for name, value in values.items() if value is not None)
    figure = new_figure(7, float(np.clip(0.2 * len(known) + 1.1, 2, 14)))
    if figure is None or not known:
        return False
    shares = [100 * value for value, _ in known]
    axes = figure.subplots()
    places = range(len(known))
    axes.barh(places, shares, color=BAR_COLOUR, height=0.72)
    axes.set_yticks(places, [plain_text(name) for _, name in known], fontsize=8)
    axes.invert_yaxis()
    mean = sum(shares) / len(shares)
    axes.axvline(mean, color=MEAN_COLOUR, linewidth=1.5, label=f"mean {mean:.1f}")
    axes.set_xlim(0, 100)
    axes.set_xlabel(f"{quantity}, percent")
    axes.margins(y=0.01)
    axes.legend(loc="lower right", fontsize=8)
    save_figure(figure, path)
    return True


def plot_reliability_of(content: Mapping[str, Any], path: Path) -> bool:
    """Draw the reliability plot of a run's evaluation.

    Args:
        content: as `Reliability.as_json` gives it.
        path: where to.

    Returns:
        False if matplotlib is not installed.
    """
    figure = new_figure(5, 4.4)
    if figure is None:
        return False
    draw_reliability(
        figure.subplots(), content, f"{sum(each['count'] for each in content['bins']):,} {content['unit']}"
    )
    save_figure(figure, path)
    return True


def draw_reliability(axes: Any, content: Mapping[str, Any], title: str) -> None:
    """Draw accuracy over confidence in bins, with the mean confidence of every bin and what would be true.

    Args:
        axes: of matplotlib.
        content: "ece", and "bins" with "count", "confidence" and "accuracy".
        title: what it is of.
    """
    bins = content["bins"]
    width = 1 / len(bins)
    middles = [(number + 0.5) * width for number in range(len(bins))]
    axes.bar(middles, [each["accuracy"] or 0.0 for each in bins], width=0.9 * width, label="accuracy")
    seen = [(each["confidence"], each["accuracy"]) for each in bins if each["count"]]
    axes.plot(*zip(*seen, strict=True), "k.", label="mean confidence")
    axes.plot([0, 1], [0, 1], ":", color="black")
    axes.set_title(f"{title}, ECE {units.percent(content['ece'])} percent")
    axes.set_xlabel("confidence")
    axes.set_ylabel("accuracy")
    axes.legend(loc="upper left")
