"""`pcl-clora pretrain`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from pcl_clora.cli.common import AsJson, ConfigPath, Overrides, interruptible, print_json, show
from pcl_clora.cli.probe import probe_numbers
from pcl_clora.cli.train import Resume

if TYPE_CHECKING:
    from pcl_clora.engine import RunResult


def pretrain(
    config: ConfigPath,
    overrides: Overrides = None,
    resume: Annotated[
        Resume,
        typer.Option(help="auto: go on from the folder's checkpoint, with the same bits. never: start over."),
    ] = Resume.auto,
    as_json: AsJson = False,
) -> None:
    """Pre-train a backbone without labels: hide patches of clouds and learn to rebuild them.

    The run folder (output/name of the settings) is a source of weights: weights.path=<folder> of a later
    run, or `pcl-clora weights convert`. A run that was interrupted, even killed, goes on with the same
    command. The section `probe` of the settings says on which labelled clouds the features are probed.
    """
    from pcl_clora.config import ConfigError
    from pcl_clora.engine import Trainer, load_run_config

    cfg = load_run_config(config, overrides or [])
    if cfg.model.task != "pretraining":
        raise ConfigError(f"model.task={cfg.model.task!r}; set model.task=pretraining, or use train.")
    with interruptible():
        finished = Trainer(cfg, resume=resume.value).fit()
    content = summary(finished)
    if as_json:
        print_json(content)
        return
    show(
        f"Reconstruction loss on test {content['loss']:.5f} after {content['steps']:,} steps",
        *(probe_line(probe) for probe in content["probes"]),
        f"Use it: weights.path={finished.run_dir}",
    )


def summary(finished: RunResult) -> dict[str, Any]:
    """Put together what a finished pre-training says: loss, steps, time, and all probes."""
    from pcl_clora.engine import RunFolder
    from pcl_clora.engine.events import read_probes

    probes = read_probes(RunFolder(finished.run_dir).metrics)
    told = {key: finished.result[key] for key in ("name", "config_hash", "epochs", "steps", "train_seconds")}
    return {"run": str(finished.run_dir), **told, "loss": finished.metrics.loss, "probes": probes}


def probe_line(probe: dict[str, Any]) -> str:
    """Say a probe in a line."""
    return f"epoch {probe['epoch'] + 1}: {probe_numbers(probe)}"
