"""The page of a search: what it found, which settings mattered, how trials went; one file without network."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pcl_clora.io import write_text
from pcl_clora.io.text import visible
from pcl_clora.report.pictures import BAR_COLOUR, MEAN_COLOUR, new_figure
from pcl_clora.tune.settings import DimensionConfig, Search

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from optuna import Study

STATES = {
    "complete": "trained to the end",
    "pruned": "stopped early by successive halving",
    "over budget": "over the budget, refused before training",
    "refused": "settings that no run can have, or a loss that was not finite",
    "same": "tried before",
    "lost": "its process was killed; begun again under another number",
    "running": "at work in another process",
    "waiting": "to be begun again",
}
MIN_FOR_IMPORTANCE = 4  # complete trials below which nothing is said of importance
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem }
table { border-collapse: collapse; font-size: 13px }
td, th { padding: .2rem .6rem; border-bottom: 1px solid #ddd }
th { text-align: left } td.number { text-align: right; font-variant-numeric: tabular-nums }
tr.best { background: #fff3d6 } .wide { overflow-x: auto } code, pre { background: #f5f5f5 }
img { max-width: 100% } body { color: #1a1a1a }
@media (prefers-color-scheme: dark) {
body { background: #161616; color: #e8e8e8 } tr.best { background: #4a3c12 }
code, pre { background: #242424 } td, th { border-color: #444 } img { background: #fff } }
"""


def importances(study: Study, rows: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Share of the spread of the complete trials that each setting explains; empty for too few trials.

    Source: PED-ANOVA, Watanabe, Bansal, Hutter, IJCAI 2023, as optuna computes it.
    """
    values = [row["value"] for row in rows if row["state"] == "complete"]
    if len(values) < MIN_FOR_IMPORTANCE or len(set(values)) == 1:
        return {}
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    varied = [
        key
        for key in rows[0]["params"]
        if len({str(row["params"].get(key)) for row in rows if row["state"] == "complete"}) > 1
    ]
    if not varied:
        return {}
    found = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator(), params=varied)
    return {key: float(value) for key, value in found.items()}


def write_page(
    path: Path,
    search: Search,
    study: Study,
    rows: Sequence[Mapping[str, Any]],
    best: Mapping[str, Any] | None,
    told: Mapping[str, Any],
) -> None:
    """Write the page.

    Args:
        path: where to.
        search: what was searched.
        study: its study, for the importances.
        rows: all trials, as `search.describe_trial` gives them.
        best: the best of them.
        told: content of search.json.
    """
    mattered = importances(study, rows)
    complete = [row for row in rows if row["state"] == "complete"]
    pictures = [
        ("Which settings mattered", draw_importances(mattered) if mattered else None),
        (
            "Complete trials, setting by setting",
            draw_parallel(search, complete) if len(complete) > 1 else None,
        ),
        ("The best value so far", draw_history(rows) if complete else None),
    ]
    title = search.cfg.title or search.name
    parts = [f"<h1>{_text(title)}</h1>", f"<p>{_text(_summary(search, rows, best, told))}</p>"]
    if best is not None:
        settings = "\n".join(f"{key}: {json.dumps(value)}" for key, value in best["params"].items())
        parts.append(f"<h2>Best settings</h2><pre>{_text(settings)}</pre>")
        parts.append("<p>All settings of the run: <code>best.yaml</code> beside this page.</p>")
    for heading, figure in pictures:
        if figure is not None:
            parts.append(f"<h2>{heading}</h2>{_image(figure, heading)}")
    if mattered and find_spec("matplotlib") is None:
        items = "".join(f"<li>{_text(key)}: {value:.2f}</li>" for key, value in mattered.items())
        parts.append(f"<h2>Which settings mattered</h2><ul>{items}</ul>")
    parts.append(f"<h2>All trials</h2>{_table(search, rows, best)}")
    body = "\n".join(parts)
    head = f"<meta charset='utf-8'><title>{_text(title)}</title><style>{_STYLE}</style>"
    write_text(path, f"<!doctype html><html lang='en'><head>{head}</head><body>{body}</body></html>\n")


def _summary(
    search: Search,
    rows: Sequence[Mapping[str, Any]],
    best: Mapping[str, Any] | None,
    told: Mapping[str, Any],
) -> str:
    counts = {state: sum(row["state"] == state for row in rows) for state in STATES}
    listed = "; ".join(f"{count} {STATES[state]}" for state, count in counts.items() if count)
    limits = ", ".join(f"at most {limit} {name}" for name, limit in search.cfg.budget if limit) or "none"
    value = (
        "no trial is complete yet" if best is None else f"best {best['value']:.4f} (trial {best['number']})"
    )
    env = told["environment"]
    return (
        f"{len(rows)} trials: {listed}. Judged on held-out clouds of train after the last epoch, never on "
        f"test: {value}. A best of many is seen as better than it is; train it and look at test. Budget: "
        f"{limits}. Sampler: tree-structured Parzen estimator, seed {search.cfg.seed}. {told['precision']}, "
        f"products by "
        f"{told['product']}, {env.get('processor') or env['device']}, torch {env['versions'].get('torch')}."
    )


def _text(text: str) -> str:
    return escape(visible(text, keep="\n"))


def _table(search: Search, rows: Sequence[Mapping[str, Any]], best: Mapping[str, Any] | None) -> str:
    keys = list(search.cfg.space)
    head = "".join(
        f"<th>{_text(key)}</th>" for key in ("trial", "state", "value", "epochs", "parameters", *keys)
    )
    lines = []
    for row in sorted(rows, key=lambda row: (-(row["value"] or -1.0), row["number"])):
        value = "" if row["value"] is None else f"{row['value']:.4f}"
        cells = [str(row["number"]), row["state"], value, str(row["epochs"] or "")]
        cells += [str(row.get("adapter_parameters", "")), *(_short(row["params"].get(key)) for key in keys)]
        mark = " class='best'" if best is not None and row["number"] == best["number"] else ""
        shown = "".join(
            f"<td class='number' title='{_text(row.get('why', ''))}'>{_text(x)}</td>" for x in cells
        )
        lines.append(f"<tr{mark}>{shown}</tr>")
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
    return f"<div class='wide'>{table}</div>"


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return "" if value is None else value if isinstance(value, str) else json.dumps(value)


def _image(figure: Figure, heading: str) -> str:
    from base64 import b64encode

    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None})
    return (
        f"<img alt='{escape(heading)}' src='data:image/svg+xml;base64,{b64encode(file.getvalue()).decode()}'>"
    )


def draw_importances(mattered: Mapping[str, float]) -> Figure | None:
    """Draw a bar for every setting, the most important on top."""
    figure = new_figure(7.5, 0.8 + 0.35 * len(mattered))
    if figure is None:
        return None
    axes = figure.add_subplot()
    names = sorted(mattered, key=lambda key: mattered[key])
    axes.barh(names, [mattered[key] for key in names], color=BAR_COLOUR)
    axes.set_xlabel("share of the spread (PED-ANOVA)")
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def draw_history(rows: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Draw the complete trials and the best so far, in the order of their numbers."""
    figure = new_figure(7.5, 3.2)
    if figure is None:
        return None
    axes = figure.add_subplot()
    complete = [row for row in rows if row["state"] == "complete"]
    numbers, values = [row["number"] for row in complete], [row["value"] for row in complete]
    stopped = [row for row in rows if row["state"] == "pruned" and row["value"] is not None]
    axes.plot(numbers, values, "o", color=BAR_COLOUR, label="complete")
    at, low = [row["number"] for row in stopped], [row["value"] for row in stopped]
    axes.plot(at, low, "x", color="#888888", label="stopped early")
    axes.step(numbers, np.maximum.accumulate(values), where="post", color=MEAN_COLOUR, label="best so far")
    axes.set_xlabel("trial")
    axes.set_ylabel("validation")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def draw_parallel(search: Search, complete: Sequence[Mapping[str, Any]]) -> Figure | None:
    """Draw a line for every complete trial through its settings to its value; better ones darker, on top."""
    space = search.cfg.space
    figure = new_figure(max(7.5, 1.7 * (len(space) + 1)), 4.2)
    if figure is None:
        return None
    from matplotlib import colormaps

    axes = figure.add_subplot()
    values = np.asarray([row["value"] for row in complete])
    low, high = float(values.min()), float(values.max())
    shares = (values - low) / (high - low) if high > low else np.ones_like(values)
    columns = [[_height(dim, row["params"][key]) for row in complete] for key, dim in space.items()]
    columns.append(shares.tolist())
    colours = colormaps["cividis_r"]
    for index in np.argsort(shares, kind="stable"):
        heights = [column[index] for column in columns]
        axes.plot(range(len(columns)), heights, color=colours(0.1 + 0.9 * shares[index]), linewidth=1.3)
    for place, dim in enumerate(space.values()):
        for height, label in _ticks(dim):
            axes.annotate(label, (place, height), xytext=(3, 0), textcoords="offset points", fontsize=7)
    for height, label in ((0.0, f"{low:.4f}"), (1.0, f"{high:.4f}")):
        axes.annotate(label, (len(space), height), xytext=(3, 0), textcoords="offset points", fontsize=7)
    axes.set_xticks(
        range(len(columns)), [*(key.replace(".", ".\n") for key in space), "validation"], fontsize=8
    )
    axes.set_yticks([])
    axes.set_xlim(-0.2, len(columns) - 0.4)
    for place in range(len(columns)):
        axes.axvline(place, color="#bbbbbb", linewidth=0.8, zorder=0)
    axes.spines[:].set_visible(False)
    return figure


def _height(dimension: DimensionConfig, value: Any) -> float:
    """Place a value between 0 (low, or the first choice) and 1."""
    if dimension.choices:
        return [json.dumps(x) for x in dimension.choices].index(json.dumps(value)) / max(
            len(dimension.choices) - 1, 1
        )
    assert dimension.low is not None
    assert dimension.high is not None
    turn = np.log if dimension.log else float
    low, high = turn(dimension.low), turn(dimension.high)
    return float((turn(value) - low) / (high - low))


def _ticks(dimension: DimensionConfig) -> list[tuple[float, str]]:
    if dimension.choices:
        return [(_height(dimension, value), _short(value)) for value in dimension.choices]
    assert dimension.low is not None
    assert dimension.high is not None
    middle = (
        (dimension.low * dimension.high) ** 0.5 if dimension.log else (dimension.low + dimension.high) / 2
    )
    marks = (float(dimension.low), float(middle), float(dimension.high))
    return [(_height(dimension, mark), f"{mark:.2g}") for mark in marks]
