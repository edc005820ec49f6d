"""Pictures of a study that a paper would print: vector pdf, png, and svg for the page; colour-blind safe.

Rows are told apart by colour and by the shape of the mark, and every mark has its name beside it.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pcl_clora.compare.results import RowResult, StudyResults
from pcl_clora.io import write_text
from pcl_clora.io.pictures import PART_COLOURS, scalar_colours
from pcl_clora.report.pictures import new_figure, plain_text, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKS = "osD^vP*Xhp<>d"
LABEL_SIZE, MARK_SIZE, LEGEND_LINES = 7, 6, 26

Draw = Callable[[StudyResults], "Figure | None"]


def write_plots(results: StudyResults) -> dict[str, str]:
    """Write every picture that the study has numbers for, as plots/NAME.pdf and .png.

    Returns:
        Title of a picture -> its svg, for a page; empty if matplotlib is not installed.
    """
    made: dict[str, str] = {}
    for name, (title, draw) in _pictures(results).items():
        figure = draw(results)
        if figure is None:
            continue
        for suffix in (".pdf", ".png"):
            save_figure(figure, results.path / "plots" / f"{name}{suffix}")
        text = io.StringIO()
        with _plain_svg():
            figure.savefig(text, format="svg", metadata={"Date": None})
        made[title] = text.getvalue()
        write_text(results.path / "plots" / f"{name}.svg", made[title])
    return made


def _plain_svg() -> Any:
    """Let an svg be the same every time, with letters as text."""
    from matplotlib import rc_context

    return rc_context({"svg.hashsalt": "study", "svg.fonttype": "none"})


def _pictures(results: StudyResults) -> dict[str, tuple[str, Draw]]:
    head = results.headlines[0].title

    def front(key: Callable[[RowResult], float | None], label: str) -> Draw:
        return lambda study: draw_front(study, key, label)

    def line(setting: str, label: str) -> Draw:
        return lambda study: draw_line(study, setting, label)

    pictures: dict[str, tuple[str, Draw]] = {
        "front_parameters": (
            f"{head} against trained parameters",
            front(lambda row: row.sizes["without_head"], "trained parameters without head and tokens"),
        ),
        "front_memory": (
            f"{head} against memory of training",
            front(
                lambda row: (row.measured.get("memory_mib") or {}).get("training_step"), "training step, MiB"
            ),
        ),
        "front_step": (
            f"{head} against time of training",
            front(lambda row: row.measured.get("step_ms"), "training step, ms"),
        ),
        "corruptions": ("Error under corruption", draw_corruptions),
        "curves": ("Training curves", draw_curves),
    }
    varied = results.content["rows"]
    for setting in dict.fromkeys(key for row in varied.values() for key in row.get("varied", {})):
        name = setting.rpartition(".")[2]
        label = "training clouds a class" if setting == "data.shots" else name.replace("_", " ")
        pictures[f"against_{name}"] = (f"{head} against {label}", line(setting, label))
    return pictures


def _style(number: int) -> dict[str, Any]:
    return {"color": PART_COLOURS[number % len(PART_COLOURS)], "marker": MARKS[number % len(MARKS)]}


def draw_front(results: StudyResults, key: Callable[[RowResult], float | None], label: str) -> Figure | None:
    """Draw accuracy with error bars against a cost, and the line of the rows that no other beats in both.

    Returns:
        None if matplotlib is not installed, or fewer than two rows have the cost.
    """
    metric = results.headlines[0]
    known = [(row, key(row), row.metric(metric.key)) for row in results.finished]
    rows = [(row, cost, value) for row, cost, value in known if cost is not None and value is not None]
    figure = new_figure(7.2, 4.8) if len(rows) > 1 else None
    if figure is None:
        return None
    axes = figure.subplots()
    costs = [cost for _, cost, _ in rows]
    smallest = min((cost for cost in costs if cost > 0), default=1.0)
    axes.set_xscale("symlog", linthresh=smallest, linscale=0.3)  # a row may cost nothing
    axes.set_xticks(marks := log_ticks(costs), [f"{mark:,.10g}" for mark in marks])
    axes.minorticks_off()
    for number, (_, cost, (mean, deviation)) in enumerate(rows):
        spread = None if deviation is None else 100 * deviation
        axes.errorbar(cost, 100 * mean, spread, ms=MARK_SIZE, capsize=2, lw=1, **_style(number))
    front: list[tuple[float, float]] = []
    for cost, mean in sorted(((c, -v[0]) for _, c, v in rows)):
        if not front or -mean > front[-1][1]:
            front.append((cost, -mean))
    axes.plot(*zip(*[(x, 100 * y) for x, y in front], strict=True), color="0.6", lw=1, ls="--", zorder=0)
    axes.set_xlabel(f"{label} (log)")
    axes.set_ylabel(f"{metric.title}, percent")
    axes.margins(0.12)
    axes.grid(alpha=0.3)
    place_labels(axes, [(cost, 100 * value[0], row.name) for row, cost, value in rows])
    return figure


def log_ticks(values: Sequence[float]) -> list[float]:
    """Choose marks of a logarithmic axis: powers of ten, or round numbers where it is narrow; and 0."""
    from matplotlib.ticker import MaxNLocator

    positive = [value for value in values if value > 0]
    zero = [0.0] if len(positive) < len(values) else []
    if not positive:
        return zero
    low, high = min(positive), max(positive)
    powers = [10.0**power for power in range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)]
    marks = [mark for mark in powers if 0.8 * low <= mark <= 1.25 * high]
    if len(marks) < 2:
        round_ones = map(float, MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high))
        marks = [mark for mark in round_ones if 0.8 * low <= mark <= 1.25 * high and mark > 0]
    return [*zero, *marks]


def place_labels(axes: Axes, marks: Sequence[tuple[float, float, str]]) -> None:
    """Write names beside marks so that none lies on another or on a mark, with a thin line where one is far.

    Args:
        axes: drawn already, so that limits are known.
        marks: x, y and name.
    """
    figure = axes.figure
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    spots = [axes.transData.transform((x, y)) for x, y, _ in marks]
    taken = [(sx - 5, sy - 5, sx + 5, sy + 5) for sx, sy in spots]
    inside = axes.get_window_extent(renderer)
    for (x, y, name), (sx, sy) in zip(marks, spots, strict=True):
        text = axes.text(x, y, plain_text(name), fontsize=LABEL_SIZE, ha="left", va="center")
        box = text.get_window_extent(renderer)
        text.remove()
        found = _free_place(sx, sy, box.width, box.height, taken, inside)
        taken.append((found[0], found[1], found[0] + box.width, found[1] + box.height))
        note = axes.annotate(
            plain_text(name),
            (x, y),
            xytext=((found[0] - sx) * 72 / figure.dpi, (found[1] - sy) * 72 / figure.dpi),
            textcoords="offset points",
            fontsize=LABEL_SIZE,
            ha="left",
            va="bottom",
            arrowprops={"arrowstyle": "-", "lw": 0.4, "color": "0.6", "shrinkA": 0, "shrinkB": 3},
        )
        note.set_in_layout(False)  # axes stay where the places were found


def _free_place(
    x: float,
    y: float,
    width: float,
    height: float,
    taken: Sequence[tuple[float, float, float, float]],
    inside: Any,
) -> tuple[float, float]:
    """Find the nearest place for a box beside a mark that meets no other box: its lower left, in pixels."""
    best, best_cost = (x + 7, y - height / 2), float("inf")
    for distance in range(7, 200, 6):
        for turn in range(16):
            angle = 2 * np.pi * turn / 16
            middle = (x + (distance + width / 2) * np.cos(angle), y + (distance + height / 2) * np.sin(angle))
            left, low = middle[0] - width / 2, middle[1] - height / 2
            right, high = left + width, low + height
            out = left < inside.x0 or right > inside.x1 or low < inside.y0 or high > inside.y1
            meets = sum(
                max(min(right, r) - max(left, a), 0) * max(min(high, t) - max(low, b), 0)
                for a, b, r, t in taken
            )
            cost = meets + 1e6 * out
            if not cost:
                return left, low
            if cost < best_cost:
                best, best_cost = (left, low), cost
    return best


def draw_line(results: StudyResults, setting: str, label: str) -> Figure | None:
    """Draw accuracy against a setting that rows go through, one line a row of the study's file.

    Returns:
        None if matplotlib is not installed, or no row has two finished values.
    """
    metric = results.headlines[0]
    lines: dict[str, list[tuple[float, float, float]]] = {}
    varied: Mapping[str, Any] = {name: row.get("varied", {}) for name, row in results.content["rows"].items()}
    for row in results.finished:
        value = varied[row.row].get(setting)
        found = row.metric(metric.key)
        if isinstance(value, bool) or not isinstance(value, int | float) or found is None:
            continue
        others = [f"{k.rpartition('.')[2]}={v}" for k, v in varied[row.row].items() if k != setting]
        name = ",".join([row.row.split(",")[0], *others])
        lines.setdefault(name, []).append((value, 100 * found[0], 100 * (found[1] or 0.0)))
    figure = new_figure(6.4, 4.4) if any(len(points) > 1 for points in lines.values()) else None
    if figure is None:
        return None
    axes = figure.subplots()
    for number, (name, points) in enumerate(lines.items()):
        x, y, spread = np.array(sorted(points)).T
        axes.errorbar(x, y, spread, ms=MARK_SIZE, capsize=2, label=plain_text(name), **_style(number))
    if min(value for points in lines.values() for value, _, _ in points) > 0:
        axes.set_xscale("log")
        ticks = sorted({value for points in lines.values() for value, _, _ in points})
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
    axes.set_xlabel(label)
    axes.set_ylabel(f"{metric.title}, percent")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=LABEL_SIZE)
    return figure


def draw_corruptions(results: StudyResults) -> Figure | None:
    """Draw a heat map, rows by corruptions, of error rates in percent.

    Returns:
        None if matplotlib is not installed, or nothing was measured.
    """
    rows = [row for row in results.finished if row.errors()]
    names = list(dict.fromkeys(name for row in rows for name in row.errors()))
    figure = new_figure(max(0.55 * len(names) + 3, 4.5), 0.28 * len(rows) + 2.2) if rows else None
    if figure is None:
        return None
    from matplotlib.colors import ListedColormap

    table = np.array([[100 * row.errors().get(name, (np.nan, None))[0] for name in names] for row in rows])
    axes = figure.subplots()
    colours = ListedColormap(scalar_colours(np.linspace(0, 1, 256)) / 255)
    image = axes.imshow(table, cmap=colours, aspect="auto")
    figure.colorbar(image, ax=axes, label="error, percent")
    axes.set_xticks(
        range(len(names)), [plain_text(name) for name in names], rotation=40, ha="right", fontsize=7
    )
    axes.set_yticks(range(len(rows)), [plain_text(row.name) for row in rows], fontsize=7)
    middle = np.nanmean([np.nanmin(table), np.nanmax(table)])
    for (line, column), value in np.ndenumerate(table):
        if np.isfinite(value):
            colour = "black" if value > middle else "white"
            axes.text(column, line, f"{value:.1f}", ha="center", va="center", fontsize=6, color=colour)
    return figure


def draw_curves(results: StudyResults) -> Figure | None:
    """Draw the training score over epochs, with a band of one standard deviation over seeds.

    Returns:
        None if matplotlib is not installed, or no run is finished.
    """
    columns = -(-len(results.finished) // LEGEND_LINES)
    figure = new_figure(5.7 + 1.7 * columns, 4.6) if results.finished else None
    if figure is None:
        return None
    axes = figure.subplots()
    for number, row in enumerate(results.finished):
        curves = [[point["score"] for point in record["curve"]] for record in row.records.values()]
        length = min(map(len, curves))
        table = 100 * np.array([curve[:length] for curve in curves], dtype=float)
        epochs, mean = np.arange(1, length + 1), table.mean(axis=0)
        style = _style(number)
        axes.plot(
            epochs,
            mean,
            lw=1,
            ls=("-", "--", "-.", ":")[number // 8 % 4],
            color=style["color"],
            label=plain_text(row.name),
        )
        if len(table) > 1:
            spread = table.std(axis=0, ddof=1)
            axes.fill_between(epochs, mean - spread, mean + spread, color=style["color"], alpha=0.15, lw=0)
    axes.locator_params(axis="x", integer=True)
    axes.set_xlabel("epoch")
    axes.set_ylabel(f"{results.headlines[0].title} in training, percent")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=6, loc="center left", bbox_to_anchor=(1.01, 0.5), ncols=columns)
    return figure
