"""Pictures of a run's report: the confusion matrix, and a bar for every class, category or part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from pcl_clora.io.pictures import scalar_colours

BAR_COLOUR, MEAN_COLOUR = "#0072b2", "#d55e00"
DPI = 120
MAX_NAMES = 45  # classes that a confusion matrix names


def plot_confusion(counts: Sequence[Sequence[int]], names: Sequence[str], path: Path) -> bool:
    """Draw a confusion matrix: one row a true class, as shares of its clouds.

    Returns:
        False if matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure

    table = np.asarray(counts, dtype=np.float64)
    share = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    side = float(np.clip(0.22 * len(names) + 2.2, 4.2, 11))
    figure = Figure(figsize=(side, side), layout="constrained", dpi=DPI)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    colours = ListedColormap(scalar_colours(np.linspace(0, 1, 256)) / 255)
    image = axes.imshow(share, vmin=0, vmax=1, cmap=colours)
    figure.colorbar(image, ax=axes, shrink=0.7, label="share of the true class")
    axes.set_xlabel("said")
    axes.set_ylabel("true")
    if len(names) <= MAX_NAMES:
        size = 9 if len(names) <= 15 else 6
        plain = [name.replace("$", r"\$") for name in names]
        axes.set_xticks(range(len(names)), plain, rotation=90, fontsize=size)
        axes.set_yticks(range(len(names)), plain, fontsize=size)
    if len(names) <= 12:
        for row in range(len(names)):
            for column in range(len(names)):
                if table[row, column]:
                    ink = "white" if share[row, column] < 0.6 else "black"
                    count = f"{int(table[row, column])}"
                    axes.text(column, row, count, ha="center", va="center", color=ink, fontsize=8)
    figure.savefig(path)
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
    if find_spec("matplotlib") is None or not known:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    percent = [100 * value for value, _ in known]
    figure = Figure(figsize=(7, float(np.clip(0.2 * len(known) + 1.1, 2, 14))), layout="constrained", dpi=DPI)
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    places = range(len(known))
    axes.barh(places, percent, color=BAR_COLOUR, height=0.72)
    axes.set_yticks(places, [name.replace("$", r"\$") for _, name in known], fontsize=8)
    axes.invert_yaxis()
    mean = sum(percent) / len(percent)
    axes.axvline(mean, color=MEAN_COLOUR, linewidth=1.5, label=f"mean {mean:.1f}")
    axes.set_xlim(0, 100)
    axes.set_xlabel(f"{quantity}, percent")
    axes.margins(y=0.01)
    axes.legend(loc="lower right", fontsize=8)
    figure.savefig(path)
    return True
