"""`pcl-clora eval`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pcl_clora.cli.common import AsJson, Overrides, RunFolderPath, print_json, show

if TYPE_CHECKING:
    from pcl_clora.adapters import AdaptedModel
    from pcl_clora.engine import RunConfig


def evaluate(
    run: RunFolderPath,
    overrides: Overrides = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of the data, where it is not where the run found it.")
    ] = None,
    robustness: Annotated[
        str,
        typer.Option(
            metavar="WHICH",
            help="Also classify corrupted clouds: all, a family (modelnet40_c, pointcloud_c, sweep) or "
            "single corruptions, joined by commas. Writes robustness.json, .md and .png into the run folder.",
        ),
    ] = "",
    reference: Annotated[
        Path | None, typer.Option(help="robustness.json of another run, for relative errors (mCE, RmCE).")
    ] = None,
    calibration: Annotated[
        bool,
        typer.Option(
            "--calibration",
            help="Also measure whether confidences are true, before and after temperature scaling.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Evaluate the best model of a finished run on the test split.

    Settings of data, protocol and train can be changed, for example protocol.votes=10 or data.num_points=512;
    the model is the one that was trained.
    """
    from pcl_clora.engine.evaluate_run import evaluate_run, load_for_evaluation
    from pcl_clora.report.records import run_cost
    from pcl_clora.report.show import metrics_view
    from pcl_clora.report.tables import data_name

    given = [*(overrides or []), *([f"data.root={data}"] if data else [])]
    if robustness or calibration:
        _refuse_other_tasks(run)
    cfg, model = load_for_evaluation(run, given)
    result = evaluate_run(run, loaded=(cfg, model))
    if cfg.protocol.votes > 1:
        result["evaluation"]["macs"] = cfg.protocol.votes * run_cost(cfg)["macs"]["executed"]
    result |= _diagnose(run, cfg, model, robustness, reference, calibration, quiet=as_json)
    if as_json:
        print_json(result)
        return
    tested_on = f"{data_name(result['data'])}, {result['data']['num_test']:,} test clouds"
    title = f"{run}: {result['method']} on {tested_on}"
    show(metrics_view(result, title))


def _refuse_other_tasks(folder: Path) -> None:
    """Refuse before anything is evaluated."""
    from pcl_clora.engine import RunFolder, load_run_config
    from pcl_clora.engine.diagnose import require_classification

    if RunFolder(folder).config.is_file():  # a wrong folder is refused where it is loaded
        require_classification(load_run_config(RunFolder(folder).config))


def _diagnose(
    folder: Path,
    cfg: RunConfig,
    model: AdaptedModel,
    wanted: str,
    reference: Path | None,
    with_calibration: bool,
    quiet: bool,
) -> dict[str, Any]:
    """Measure what was asked for beside accuracy."""
    from pcl_clora.cli import diagnose

    found: dict[str, Any] = {}
    if wanted:
        found["robustness"] = diagnose.robustness(folder, cfg, model, wanted, reference, quiet)
    if with_calibration:
        found["calibration"] = diagnose.calibration(folder, cfg, model, quiet)
    return found
