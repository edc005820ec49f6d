"""`pcl-clora eval --robustness` and `--calibration`: measure, print, and write beside the run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

    from pcl_clora.engine import RunConfig
    from pcl_clora.engine.robustness import RobustnessResult


def corruptions_named(text: str) -> list[str]:
    """Turn "all", families and single corruptions, joined by commas, into names of corruptions.

    Raises:
        ConfigError: if one is not known; the message names the nearest one.
    """
    from pcl_clora.config import ConfigError, unknown_name
    from pcl_clora.data.corruptions import FAMILIES, list_corruptions

    names: list[str] = []
    for part in text.split(","):
        if part in ("all", *FAMILIES):
            names += list_corruptions("" if part == "all" else part)
        elif part in list_corruptions():
            names.append(part)
        else:
            known = ("all", *FAMILIES, *list_corruptions())
            raise ConfigError(unknown_name(part, known, what="corruption or family"))
    return list(dict.fromkeys(names))


def read_reference(path: Path) -> RobustnessResult:
    """Read the robustness.json of another run.

    Raises:
        ConfigError: if the file is not there or is none.
    """
    from pcl_clora.config import ConfigError
    from pcl_clora.engine.robustness import RobustnessResult
    from pcl_clora.io import read_json

    try:
        return RobustnessResult.from_json(read_json(path))
    except ValueError as error:
        raise ConfigError(f"{path} cannot be the reference: {error}; give a robustness.json.") from error


def robustness(
    folder: Path, cfg: RunConfig, model: nn.Module, wanted: str, reference: Path | None, quiet: bool
) -> dict[str, Any]:
    """Measure robustness, print it unless quiet, and write robustness.json, .md and .png into the folder."""
    from pcl_clora.cli.common import show
    from pcl_clora.engine.diagnose import diagnose_robustness
    from pcl_clora.engine.numerics import numerics_of_run
    from pcl_clora.io import finite, write_json, write_text
    from pcl_clora.report.robustness import (
        ROBUSTNESS_HEADER,
        plot_robustness,
        robustness_cells,
        robustness_lines,
        robustness_markdown,
    )
    from pcl_clora.report.show import plain_table
    from pcl_clora.report.units import percent

    names = corruptions_named(wanted)
    other = read_reference(reference) if reference else None

    def tell(name: str, severity: int, accuracy: float | None) -> None:
        if not quiet:
            found = "left out, see below" if accuracy is None else f"{percent(accuracy)} percent"
            show(f"{name}, severity {severity}: {found}")

    result = diagnose_robustness(folder, cfg, model, names, on_step=tell)
    how = {"protocol": cfg.protocol.model_dump(mode="json"), **numerics_of_run(folder, cfg).as_json()}
    content = {"run": str(folder), **how, **result.as_json()}
    if other is not None:
        content["relative_to"] = str(reference)
        relative = {
            family: list(result.relative_error(family, other))
            for family in result.families()
            if family in other.families()
        }
        content["mce_rmce"] = finite(relative)
    write_json(folder / "robustness.json", content)
    write_text(folder / "robustness.md", robustness_markdown(result, other))
    plot_robustness(result, folder / "robustness.png")
    if not quiet:
        show(plain_table("Accuracy, percent", ROBUSTNESS_HEADER, robustness_cells(result)))
        show(*robustness_lines(result, other), f"Written: {folder / 'robustness.md'}")
    return content


def calibration(folder: Path, cfg: RunConfig, model: nn.Module, quiet: bool) -> dict[str, Any]:
    """Measure calibration, print it unless quiet, and write calibration.json and .png into the folder."""
    from pcl_clora.cli.common import show
    from pcl_clora.engine.diagnose import diagnose_calibration
    from pcl_clora.engine.numerics import numerics_of_run
    from pcl_clora.io import write_json
    from pcl_clora.report.robustness import calibration_lines, plot_reliability

    how = numerics_of_run(folder, cfg).as_json()
    content = {"run": str(folder), **how, **diagnose_calibration(folder, cfg, model)}
    write_json(folder / "calibration.json", content)
    plot_reliability(content, folder / "calibration.png")
    if not quiet:
        show(*calibration_lines(content), f"Written: {folder / 'calibration.json'}")
    return content
