"""What a finished run is worth beyond its accuracy: robustness to corruptions, and calibration."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pcl_clora.config import ConfigError
from pcl_clora.data import PointDataset, PointLoader, build_dataset, split_validation
from pcl_clora.engine.config import RunConfig
from pcl_clora.engine.evaluate import evaluate
from pcl_clora.engine.metrics.calibration import cross_fit_temperature, fit_temperature, measure_calibration
from pcl_clora.engine.numerics import Numerics, numerics_of_run
from pcl_clora.engine.robustness import RobustnessResult, evaluate_robustness
from pcl_clora.engine.trained_classes import header_of_run, match_classes


def diagnose_robustness(
    folder: str | Path,
    cfg: RunConfig,
    model: nn.Module,
    corruptions: Sequence[str] = (),
    *,
    on_step: Callable[[str, int, float | None], None] | None = None,
) -> RobustnessResult:
    """Measure a run's model on the corrupted test split, computing as the run did.

    Args:
        folder: of the run.
        cfg: its settings, of which those of the data may be changed.
        model: its model, on the device to use.
        corruptions: which; all by default.
        on_step: as in `evaluate_robustness`.

    Raises:
        ConfigError: if the run is not a classification.
    """
    require_classification(cfg)
    numerics = numerics_of_run(folder, cfg)
    test = match_classes(build_dataset(cfg.data, "test"), header_of_run(folder), cfg.model.task)
    with numerics.applied(next(model.parameters()).device):
        return evaluate_robustness(
            model,
            test,
            num_classes=cfg.model.num_classes,
            num_points=cfg.data.num_points,
            batch_size=2 * cfg.optim.batch_size,
            corruptions=corruptions,
            seed=cfg.seed,
            amp=numerics.bfloat16,
            on_step=on_step,
        )


def diagnose_calibration(folder: str | Path, cfg: RunConfig, model: nn.Module) -> dict[str, Any]:
    """Measure the calibration of a run's model on the test split, before and after temperature scaling.

    Logits are computed as the run did.

    The temperature is fitted on the run's validation split. A run without one scales every half of the test
    clouds by the temperature of the other half, so that no cloud helps to choose its own.

    Args:
        folder: of the run.
        cfg: its settings, of which those of the data may be changed.
        model: its model, on the device to use.

    Returns:
        "before" and "after" (`Calibration.as_json`), "temperature" (a list) and "fitted_on".

    Raises:
        ConfigError: if the run is not a classification.
    """
    require_classification(cfg)
    header, numerics = header_of_run(folder), numerics_of_run(folder, cfg)
    test = match_classes(build_dataset(cfg.data, "test"), header, cfg.model.task)
    logits, label = _logits(cfg, model, numerics, test, None)
    if cfg.protocol.select == "validation":
        train = match_classes(build_dataset(cfg.data, "train"), header, cfg.model.task)
        _, held_out = split_validation(train.labels, cfg.protocol.val_fraction, cfg.seed)
        temperature = [fit_temperature(*_logits(cfg, model, numerics, train, held_out))]
        scaled, fitted_on = logits.double() / temperature[0], "fitted on the validation split"
    else:
        scaled, halves = cross_fit_temperature(logits, label, seed=cfg.seed)
        temperature, fitted_on = list(halves), "every half of test scaled by the other half's"
    return {
        "before": measure_calibration(logits, label).as_json(),
        "after": measure_calibration(scaled, label).as_json(),
        "temperature": temperature,
        "fitted_on": fitted_on,
        "num_clouds": len(label),
    }


def require_classification(cfg: RunConfig) -> None:
    """Refuse another task: corruptions move points that labels belong to, and both measures are of classes.

    Raises:
        ConfigError: naming the task.
    """
    if cfg.model.task != "classification":
        raise ConfigError(
            f"Robustness and calibration are measured for classification, not for task={cfg.model.task!r}; "
            "leave --robustness and --calibration out."
        )


def _logits(
    cfg: RunConfig, model: nn.Module, numerics: Numerics, dataset: PointDataset, indices: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Classify clouds once, without votes: (n, C) logits and (n,) labels in the same order."""
    loader = PointLoader(dataset, 2 * cfg.optim.batch_size, indices=indices, seed=cfg.seed)
    with numerics.applied(next(model.parameters()).device):
        metrics = evaluate(
            model,
            loader,
            num_classes=cfg.model.num_classes,
            num_points=cfg.data.num_points,
            amp=numerics.bfloat16,
            keep_logits=True,
        )
    assert metrics.logits is not None
    assert metrics.indices is not None
    return metrics.logits, torch.as_tensor(dataset.labels)[metrics.indices]
