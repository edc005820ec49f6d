"""Robustness and calibration of a run as tables and pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pcl_clora.data.corruptions import SEVERITIES
from pcl_clora.engine.robustness import RobustnessResult
from pcl_clora.report.pictures import draw_reliability, new_figure, save_figure
from pcl_clora.report.units import markdown_table, percent

ROBUSTNESS_HEADER = ("corruption", *(f"severity {severity}" for severity in SEVERITIES), "mean")


def robustness_cells(result: RobustnessResult) -> list[list[str]]:
    """Return the cells of ROBUSTNESS_HEADER: accuracies in percent, one row a corruption, clean first."""
    rows = [["clean", *[""] * len(SEVERITIES), percent(result.clean)]]
    for name, values in result.accuracy.items():
        known = [value for value in values if value is not None]
        mean = percent(sum(known) / len(known)) if known else "-"
        rows.append([name, *("-" if value is None else percent(value) for value in values), mean])
    return rows


def robustness_lines(result: RobustnessResult, reference: RobustnessResult | None = None) -> list[str]:
    """Say the mean corruption error of every family, and relative to another model if one is given."""
    lines = []
    for family in result.families():
        line = f"{family}: mean corruption error {percent(result.mean_error(family))} percent"
        if reference is not None and family in reference.families():
            relative, added = result.relative_error(family, reference)
            line += f"; relative to the reference, mCE {percent(relative)}, RmCE {percent(added)} percent"
        lines.append(line)
    reasons = dict[str, list[str]]()
    for place, why in result.left_out.items():
        reasons.setdefault(why, []).append(place)
    return lines + [f"left out: {'; '.join(places)}: {why}" for why, places in reasons.items()]


def robustness_markdown(result: RobustnessResult, reference: RobustnessResult | None = None) -> str:
    """Write a result as a page: means, and every corruption at every severity."""
    title = (
        f"Overall accuracy in percent under corruption, {result.num_clouds:,} clouds of "
        f"{result.num_points:,} points, seed {result.seed}."
    )
    means = "\n".join(f"* {line}" for line in robustness_lines(result, reference))
    return f"{title}\n\n{means}\n\n{markdown_table(ROBUSTNESS_HEADER, robustness_cells(result))}\n"


def plot_robustness(result: RobustnessResult, path: Path) -> bool:
    """Draw one curve a corruption over the severities, one panel a family.

    Returns:
        False if matplotlib is not installed.
    """
    families = result.families()
    figure = new_figure(5.2 * len(families), 4.2)
    if figure is None:
        return False
    panels = figure.subplots(1, len(families), squeeze=False, sharey=True)[0]
    for axes, family in zip(panels, families, strict=True):
        axes.axhline(100 * result.clean, color="black", linestyle=":", label="clean")
        for number, (name, values) in enumerate(result.accuracy.items()):
            if name.startswith(f"{family}."):
                style = ("-", "--", "-.")[number // 10 % 3]
                label = name.removeprefix(f"{family}.")
                axes.plot(
                    SEVERITIES,
                    [math.nan if value is None else 100 * value for value in values],
                    style,
                    marker=".",
                    label=label,
                )
        axes.set_title(family)
        axes.set_xlabel("severity")
        axes.set_xticks(SEVERITIES)
        axes.set_ylim(0, 100)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=6, ncols=2)
    panels[0].set_ylabel("overall accuracy, percent")
    save_figure(figure, path)
    return True


def calibration_lines(content: Mapping[str, Any]) -> list[str]:
    """Say the calibration error as it is and after scaling by a temperature."""
    before, after = content["before"], content["after"]
    temperatures = " and ".join(f"{value:.3f}" for value in content["temperature"])
    return [
        f"expected calibration error {percent(before['ece'])} percent, negative log-likelihood "
        f"{before['nll']:.4f}",
        f"after temperature scaling {percent(after['ece'])} percent, {after['nll']:.4f} "
        f"(temperature {temperatures}, {content['fitted_on']})",
    ]


def plot_reliability(content: Mapping[str, Any], path: Path) -> bool:
    """Draw accuracy over confidence in bins, before and after scaling by a temperature.

    Returns:
        False if matplotlib is not installed.
    """
    figure = new_figure(8.4, 4)
    if figure is None:
        return False
    for axes, when in zip(figure.subplots(1, 2, sharey=True), ("before", "after"), strict=True):
        draw_reliability(axes, content[when], f"{when} scaling")
    save_figure(figure, path)
    return True
