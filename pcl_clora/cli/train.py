"""`pcl-clora train`."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pcl_clora.cli.common import AsJson, ConfigPath, Overrides, interruptible, print_json, show

if TYPE_CHECKING:
    from pcl_clora.engine import RunConfig, RunResult


class Resume(str, Enum):
    """What to do with a checkpoint in the run folder."""

    auto = "auto"
    never = "never"


def train(
    config: ConfigPath,
    overrides: Overrides = None,
    resume: Annotated[
        Resume,
        typer.Option(help="auto: go on from the folder's checkpoint, with the same bits. never: start over."),
    ] = Resume.auto,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="Print settings, what would be trained, cost and missing files; train nothing."
        ),
    ] = False,
    seeds: Annotated[
        str,
        typer.Option(
            help="Run once with each of these seeds, for example 0,1,2 or 0-4, and report mean and standard "
            "deviation; the folder of each run ends in _seed<number>."
        ),
    ] = "",
    new_shots: Annotated[
        bool,
        typer.Option(
            "--new-shots",
            help="With --seeds and data.shots: each seed also draws other training clouds, so that the "
            "deviation has their choice in it.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Adapt a backbone to a data set, evaluate it on the test split, and write a run folder.

    The folder (output/name of the settings) gets config.yaml, env.json, plan.json, metrics.jsonl,
    result.json, report.md and best/adapter.safetensors. A run that was interrupted, even killed, goes on with
    the same command.
    """
    from pcl_clora.config import ConfigError
    from pcl_clora.engine import load_run_config

    cfg = load_run_config(config, overrides or [])
    if cfg.model.task == "pretraining":
        raise ConfigError(f"{config} is a pre-training; use `pcl-clora pretrain --config {config}`.")
    if new_shots and not seeds:
        raise ConfigError("--new-shots goes with --seeds; for a single run set data.shots_seed.")
    if dry_run:
        _dry_run(cfg)
        return
    if seeds:
        _train_seeds(cfg, seeds, resume, as_json, new_shots=new_shots)
        return
    finished, report = _train_one(cfg, resume)
    if as_json:
        print_json(dict(finished.result))
        return
    from pcl_clora.report import make_table
    from pcl_clora.report.show import run_table_view

    show(run_table_view(make_table([finished.run_dir])), f"Report: {report}")


def _train_one(
    cfg: RunConfig, resume: Resume, like: Mapping[str, Any] | None = None
) -> tuple[RunResult, Path]:
    """Train and report one run; with the result of another one, by the precision and the product of that."""
    from pcl_clora.engine import Trainer
    from pcl_clora.engine.precision import precision_of
    from pcl_clora.engine.product_route import product_of
    from pcl_clora.report import write_report

    precision = None if like is None else precision_of(cfg, like)
    product = None if like is None else product_of(cfg, like)
    with interruptible():
        finished = Trainer(cfg, resume=resume.value, precision=precision, product=product).fit()
    return finished, write_report(finished.run_dir)


def _train_seeds(cfg: RunConfig, seeds: str, resume: Resume, as_json: bool, *, new_shots: bool) -> None:
    """Run every seed, and write the table over all of them beside their folders."""
    from pcl_clora.engine.several_seeds import parse_seeds, with_seed
    from pcl_clora.report import make_table
    from pcl_clora.report.show import run_table_view, seeds_view

    runs = [with_seed(cfg, seed, new_shots=new_shots) for seed in parse_seeds(seeds)]
    first, _ = _train_one(runs[0], resume)
    others = [_train_one(run, resume, first.result)[0] for run in runs[1:]]
    table = make_table([finished.run_dir for finished in (first, *others)])
    path = Path(cfg.output) / f"{cfg.name}_seeds.json"
    table.write(path)
    table.write(path.with_suffix(".md"))
    if as_json:
        print_json(table.as_json())
        return
    show(seeds_view(table.rows[0]), run_table_view(table), f"Table: {path.with_suffix('.md')}")


def _dry_run(cfg: RunConfig) -> None:
    """Print everything that can be known before a run."""
    import torch

    from pcl_clora.adapters import attach_adapter
    from pcl_clora.adapters.plan import format_plan
    from pcl_clora.config import dump_yaml
    from pcl_clora.models import build_model
    from pcl_clora.report import count_cost
    from pcl_clora.report.show import cost_view

    torch.manual_seed(cfg.seed)
    model = attach_adapter(build_model(cfg.model), cfg.adapter)
    cost = cost_view(count_cost(model, cfg.data.num_points), title="Cost")
    missing = missing_files(cfg)
    show(
        "Settings\n" + dump_yaml(cfg),
        "What is trained\n" + format_plan(model.plan, model) + "\n",
        cost,
        "",
        "What is missing\n" + "\n".join(f"  {line}" for line in missing)
        if missing
        else "No file is missing.",
    )


def missing_files(cfg: RunConfig) -> list[str]:
    """Say what a run needs and does not find, one message each.

    Names and headers are read, with shots the training clouds too. A head for another number of classes than
    the data have is among it, and more shots than a class has clouds.
    """
    from pcl_clora.data import check_classes, check_headers, count_classes
    from pcl_clora.models.weights.load import missing_source

    missing = [f"{finding.file}: {finding.message}" for finding in check_headers(cfg.data)]
    if cfg.weights.path and (problem := missing_source(cfg.weights.path)):
        missing.append(problem)
    classes = count_classes(cfg.data) if cfg.model.task == "classification" and not missing else None
    if classes not in (None, cfg.model.num_classes):
        missing.append(
            f"model.num_classes={cfg.model.num_classes}, but {cfg.data.root} has {classes} classes; set "
            f"model.num_classes={classes}."
        )
    if cfg.data.shots and not missing:
        missing = [f"{finding.file}: {finding.message}" for finding in check_classes(cfg.data)]
    return missing
