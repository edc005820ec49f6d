"""A finished run as reports see it: its folder, its settings and its result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pcl_clora.adapters import attach_adapter, parse_adapter_config
from pcl_clora.config import (
    ConfigError,
    build,
    config_hash,
    merge,
    parse_overrides,
    read_yaml,
    unknown_name,
)
from pcl_clora.data import DataConfig, list_datasets, parse_data_config
from pcl_clora.engine import RunConfig, RunFolder, TrainConfig, choose_device, headlines, load_run_config
from pcl_clora.engine.config import differences
from pcl_clora.io import explained
from pcl_clora.models import build_model, parse_model_config
from pcl_clora.report.cost import count_cost
from pcl_clora.report.shapes import ReportError, ResultShape, check_shape, parse_object


@dataclass(frozen=True)
class RunRecord:
    """A finished run.

    Attributes:
        files: where its files are.
        cfg: its settings.
        result: the content of result.json.
    """

    files: RunFolder
    cfg: RunConfig
    result: Mapping[str, Any]

    @property
    def adapter_bytes(self) -> int | None:
        """Size of the adapter file, which need not be there any more; None if the result does not say."""
        size = self.result.get("adapter_bytes")
        return None if size is None else int(size)


def read_run(folder: str | Path) -> RunRecord:
    """Read the settings and the result of a finished run.

    Raises:
        ReportError: if the folder is not that of a finished run, its files are damaged or do not belong
            together, or its result was chosen on the test set although its protocol says honest.
    """
    with explained(folder, "read"):
        return _read_run(folder, RunFolder(Path(folder)))


def _read_run(folder: str | Path, files: RunFolder) -> RunRecord:
    if not files.config.is_file():
        raise ReportError(f"{folder} is not the folder of a run: {files.config} is missing; check the path.")
    if not files.result.is_file():
        raise ReportError(f"The run in {folder} is not finished: {files.result} is missing; resume it first.")
    result = parse_object(files.result, files.result.read_bytes())
    if result.get("task") == "pretraining":
        raise ReportError(
            f"{folder} is a pre-training, which has no accuracy to report: its loss is in "
            f"{files.result.name}, its probes are in {files.metrics.name}. Report a run that starts from it "
            f"(weights.path={folder})."
        )
    check_shape(ResultShape, result, files.result)
    refuse_dishonest(result, str(folder))
    cfg = load_run_config(files.config)
    _refuse_strangers(files, cfg, result)
    if files.chosen.exists():  # a copy of a run may leave it out
        files.check_chosen()
    return RunRecord(files, cfg, result)


def task_of(result: Mapping[str, Any]) -> str:
    """Say the task of a result; results of before there were several are of classification."""
    return str(result.get("task", "classification"))


def _refuse_strangers(files: RunFolder, cfg: RunConfig, result: Mapping[str, Any]) -> None:
    """Refuse a result that is not of these settings, or has no number for its task."""
    settings = {
        "name": cfg.name,
        "seed": cfg.seed,
        "augment": cfg.augment,
        "task": cfg.model.task,
        "model": cfg.model.name,
        "method": cfg.adapter.method,
        "epochs": cfg.optim.epochs,
        "config_hash": config_hash(cfg),
        **{f"protocol.{key}": getattr(cfg.protocol, key) for key in ("name", "select", "votes")},
        **{f"data.{key}": getattr(cfg.data, key) for key in ("name", "num_points")},
    }
    nested = {f"{part}.{key}": value for part in ("protocol", "data") for key, value in result[part].items()}
    said = {**nested, **result, "task": task_of(result)}
    different = differences(settings, {key: said[key] for key in settings})
    if different:
        raise ReportError(
            f"{files.config} and {files.result} are not of one run (settings -> result): "
            f"{'; '.join(different)}. Restore the one that was changed, or train again."
        )
    missing = [head.key for head in headlines(task_of(result)) if result["metrics"].get(head.key) is None]
    if missing:
        raise ReportError(
            f"{files.result}: metrics.{missing[0]} is missing, the number of {task_of(result)}; restore the "
            "file, or train again."
        )


def refuse_dishonest(result: Mapping[str, Any], where: str) -> None:
    """Refuse a number that was chosen on the test set but calls itself honest.

    Raises:
        ReportError: naming the run and the two ways out.
    """
    protocol = result["protocol"]
    chosen_on = {protocol["select"], result["best"].get("selected_on", "last")}
    if protocol["name"] == "honest" and "test" in chosen_on:
        raise ReportError(
            f"{where}: its epoch was chosen on the test set, but its protocol is 'honest', so the number is "
            "not printed. Run it with protocol.select=last or validation, or call it protocol.name=paper."
        )


def run_cost(cfg: RunConfig) -> dict[str, Any]:
    """Count what a run's model costs, from its settings alone: no weights and no data are read."""
    with torch.random.fork_rng(devices=[]):
        model = attach_adapter(build_model(cfg.model), cfg.adapter)
    return count_cost(model, cfg.data.num_points)


def build_for_cost(path: str | Path, overrides: Sequence[str] = ()) -> tuple[nn.Module, int]:
    """Make the model of a config for a cost report, with random weights, on the device that it names.

    Only the sections model, adapter and train are needed, and data.num_points: a config may name a data set
    that is not there, or that no reader exists for.

    Args:
        path: the yaml file of a run.
        overrides: key=value pairs that come last.

    Returns:
        The model with its adapter, and the points of a cloud.

    Raises:
        ConfigError: if a setting is wrong or missing.
    """
    values = merge(read_yaml(path), parse_overrides(overrides))
    for key in values:
        if key not in RunConfig.model_fields:
            raise ConfigError(f"{path}: {unknown_name(key, RunConfig.model_fields, what='section')}")
    for key in ("model", "adapter", "data"):
        if not isinstance(values.get(key), Mapping):
            raise ConfigError(
                f"{path}: section {key!r} is missing; a cost report needs model, adapter and data."
            )
    num_points = _num_points(values["data"], path)
    device = choose_device(
        build(TrainConfig, values.get("train", {}), source=f"{path}, section train").device
    )
    with torch.random.fork_rng(devices=[]):
        backbone = build_model(parse_model_config(values["model"]))
        model = attach_adapter(backbone, parse_adapter_config(values["adapter"]))
    return model.to(device), num_points


def _num_points(section: Mapping[str, Any], path: str | Path) -> int:
    if section.get("name") in list_datasets():
        return parse_data_config(section).num_points
    if "num_points" not in section:
        raise ConfigError(f"{path}: data.num_points is missing; the cost depends on it.")
    known = {key: value for key, value in section.items() if key in DataConfig.model_fields}
    return build(DataConfig, known, source=f"{path}, section data").num_points
