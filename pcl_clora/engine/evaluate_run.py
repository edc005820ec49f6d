"""Evaluate what a finished run has trained, under its own settings or changed ones."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pcl_clora.adapters import AdaptedModel
from pcl_clora.config import ConfigError
from pcl_clora.data import PointLoader, build_dataset
from pcl_clora.engine.config import RunConfig, load_run_config
from pcl_clora.engine.evaluate import evaluate
from pcl_clora.engine.numerics import numerics_of_run
from pcl_clora.engine.precision import warn_if_emulated
from pcl_clora.engine.run.folder import RunFolder
from pcl_clora.engine.run.result import describe_data, describe_evaluation
from pcl_clora.engine.setup import choose_device, load_run
from pcl_clora.engine.tasks import make_task
from pcl_clora.engine.trained_classes import header_of_run, match_classes

CHANGEABLE = ("data", "protocol", "train", "optim.batch_size")  # sections that do not change what was trained


def load_for_evaluation(folder: str | Path, overrides: Sequence[str] = ()) -> tuple[RunConfig, AdaptedModel]:
    """Load a finished run with settings changed, its model on the device that they name.

    Args:
        folder: of the run.
        overrides: key=value pairs, of `CHANGEABLE` only.

    Raises:
        ConfigError: if an override would change the model, or the folder holds no finished run.
    """
    for item in overrides:
        key = item.partition("=")[0]
        if not any(key == name or key.startswith(f"{name}.") for name in CHANGEABLE):
            raise ConfigError(
                f"{key} cannot be changed when a run is evaluated, only {', '.join(CHANGEABLE)}; to change "
                "the model, train again."
            )
    cfg, model = load_run(folder)
    if overrides:
        cfg = load_run_config(RunFolder(Path(folder)).config, overrides)
    return cfg, model.to(choose_device(cfg.train.device))


def evaluate_run(
    folder: str | Path,
    overrides: Sequence[str] = (),
    *,
    loaded: tuple[RunConfig, AdaptedModel] | None = None,
) -> dict[str, Any]:
    """Evaluate a run's chosen model on the test split: the numbers with everything one needs to read them.

    Args:
        folder: of the run.
        overrides: as in `load_for_evaluation`.
        loaded: what that returned, where it is at hand; `overrides` are then those in it.

    Raises:
        ConfigError: if an override would change the model, or the data have classes or parts that it does not
            know.

    Example:
        >>> evaluate_run("runs/clora", ["protocol.votes=10"])["metrics"]["oa"]
    """
    cfg, model = loaded or load_for_evaluation(folder, overrides)
    test = match_classes(build_dataset(cfg.data, "test"), header_of_run(folder), cfg.model.task)
    try:
        task = make_task(cfg.model, test)
    except ConfigError as error:
        what = str(error).partition(";")[0]
        raise ConfigError(
            f"The run was trained on other data: {what}; give the data it was trained on."
        ) from None
    numerics, device = numerics_of_run(folder, cfg), next(model.parameters()).device
    if numerics.bfloat16:
        warn_if_emulated(device, "give train.amp=false")
    start = time.monotonic()
    with numerics.applied(device):
        metrics = evaluate(
            model,
            PointLoader(test, 2 * cfg.optim.batch_size, seed=cfg.seed, num_workers=cfg.train.num_workers),
            task=task,
            num_points=cfg.data.num_points,
            votes=cfg.protocol.votes,
            vote_augment=cfg.protocol.vote_augment,
            seed=cfg.seed,
            amp=numerics.bfloat16,
            reliability=True,
        )
    return {
        "run": str(folder),
        "task": cfg.model.task,
        "method": cfg.adapter.method,
        "model": cfg.model.name,
        "seed": cfg.seed,
        "protocol": cfg.protocol.model_dump(mode="json"),
        **numerics.as_json(),
        "data": {
            **describe_data(cfg.data),
            "num_test": metrics.num_clouds,
            "num_points": cfg.data.num_points,
        },
        "metrics": metrics.as_json(task.class_names),
        "evaluation": describe_evaluation(cfg, time.monotonic() - start),
    }
