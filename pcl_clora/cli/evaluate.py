"""`pcl-clora eval`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pcl_clora.cli.common import AsJson, Overrides, RunFolderPath, print_json, show

if TYPE_CHECKING:
    from pcl_clora.engine import RunConfig

CHANGEABLE = ("data", "protocol", "train", "optim.batch_size")  # sections that do not change what was trained


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
    from pcl_clora.report.show import metrics_view
    from pcl_clora.report.tables import data_name

    given = [*(overrides or []), *([f"data.root={data}"] if data else [])]
    if robustness or calibration:
        _refuse_other_tasks(run)
    result = evaluate_run(run, given)
    result |= _diagnose(run, given, robustness, reference, calibration, quiet=as_json)
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
    overrides: list[str],
    wanted: str,
    reference: Path | None,
    with_calibration: bool,
    quiet: bool,
) -> dict[str, Any]:
    """Measure what was asked for beside accuracy."""
    from pcl_clora.cli import diagnose
    from pcl_clora.engine import RunFolder, choose_device, load_run, load_run_config

    found: dict[str, Any] = {}
    if not wanted and not with_calibration:
        return found
    cfg = load_run_config(RunFolder(folder).config, overrides)
    model = load_run(folder)[1].to(choose_device(cfg.train.device))
    if wanted:
        found["robustness"] = diagnose.robustness(folder, cfg, model, wanted, reference, quiet)
    if with_calibration:
        found["calibration"] = diagnose.calibration(folder, cfg, model, quiet)
    return found


def evaluate_run(folder: Path, overrides: list[str]) -> dict[str, Any]:
    """Evaluate a run's best model: the numbers with everything one needs to read them.

    Raises:
        ConfigError: if an override would change the model, or the data have other classes.
    """
    from pcl_clora.config import ConfigError
    from pcl_clora.engine import RunFolder, load_run, load_run_config
    from pcl_clora.engine.run.result import describe_data, describe_evaluation
    from pcl_clora.report.records import run_cost

    for item in overrides:
        key = item.partition("=")[0]
        if not any(key == name or key.startswith(f"{name}.") for name in CHANGEABLE):
            raise ConfigError(
                f"{key} cannot be changed when a run is evaluated, only {', '.join(CHANGEABLE)}; to change "
                "the model, train again."
            )
    _, model = load_run(folder)
    cfg = load_run_config(RunFolder(folder).config, overrides)
    start = time.monotonic()
    names, metrics = _measure(cfg, model)
    cost = describe_evaluation(cfg, time.monotonic() - start)
    if cfg.protocol.votes > 1:
        cost["macs"] = cfg.protocol.votes * run_cost(cfg)["macs"]["executed"]
    return {
        "run": str(folder),
        "task": cfg.model.task,
        "method": cfg.adapter.method,
        "model": cfg.model.name,
        "seed": cfg.seed,
        "protocol": cfg.protocol.model_dump(mode="json"),
        "data": {
            **describe_data(cfg.data),
            "num_test": metrics.num_clouds,
            "num_points": cfg.data.num_points,
        },
        "metrics": metrics.as_json(names),
        "evaluation": cost,
    }


def _measure(cfg: RunConfig, model: Any) -> tuple[tuple[str, ...], Any]:
    """Evaluate the test split; return the names of its classes or categories, and the metrics."""
    from pcl_clora.config import ConfigError
    from pcl_clora.data import PointLoader, build_dataset
    from pcl_clora.engine import choose_device, evaluate, make_task

    test = build_dataset(cfg.data, "test")
    try:
        task = make_task(cfg.model, test)
    except ConfigError as error:
        what = str(error).partition(";")[0]
        raise ConfigError(
            f"The run was trained on other data: {what}; give the data it was trained on."
        ) from None
    loader = PointLoader(test, 2 * cfg.optim.batch_size, seed=cfg.seed, num_workers=cfg.train.num_workers)
    metrics = evaluate(
        model.to(choose_device(cfg.train.device)),
        loader,
        task=task,
        num_points=cfg.data.num_points,
        votes=cfg.protocol.votes,
        vote_augment=cfg.protocol.vote_augment,
        seed=cfg.seed,
        amp=cfg.train.amp,
        reliability=True,
    )
    return task.class_names, metrics
