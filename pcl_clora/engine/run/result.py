"""What came out of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pcl_clora.adapters import AdaptedModel
from pcl_clora.config import config_hash
from pcl_clora.data import DataConfig
from pcl_clora.engine.config import RunConfig
from pcl_clora.engine.run.state import RunState
from pcl_clora.engine.setup import RunData
from pcl_clora.engine.tasks import Metrics, PartSegmentationTask, Task


@dataclass(frozen=True)
class RunResult:
    """What a finished run gives back.

    Attributes:
        run_dir: its folder.
        metrics: on the test split, of the epoch that the protocol chose.
        result: the content of result.json.
        model: the model of that epoch, in evaluation mode.
    """

    run_dir: Path
    metrics: Metrics
    result: Mapping[str, Any]
    model: AdaptedModel


def describe_protocol(cfg: RunConfig, val_fraction: float) -> dict[str, Any]:
    """Say how the number was chosen, as result.json does; `val_fraction` is what was really held out."""
    protocol = cfg.protocol
    how = {"name": protocol.name, "select": protocol.select, "votes": protocol.votes}
    votes = {"vote_augment": protocol.vote_augment} if protocol.votes > 1 else {}
    return {**how, "val_fraction": val_fraction, **votes}


def describe_data(data: DataConfig) -> dict[str, Any]:
    """Name the data: the reader, its variant, and the folder, which tells a substitute in the same layout."""
    variant, folder = getattr(data, "variant", ""), Path(data.root).name
    source: DataConfig | None = getattr(data, "source", None) if data.name == "fewshot" else None
    return {
        "name": data.name,
        **({"variant": variant} if variant else {}),
        **({"folder": folder} if folder else {}),
        **({"source": describe_data(source)} if source is not None else {}),
        **({"kind": data.kind} if data.kind != "points" else {}),
    }


def describe_input(cfg: RunConfig, state: RunState) -> dict[str, Any]:
    """Say what a model of this run sees of a cloud, and the sizes of those that it met so far."""
    rule = cfg.data.input_rule().model_copy(update={"norms": state.norms.norms()})
    return rule.model_dump(mode="json")


def describe_parts(task: Task) -> dict[str, Any]:
    """Say which parts the categories of a part segmentation have; nothing in other tasks."""
    if not isinstance(task, PartSegmentationTask):
        return {}
    taxonomy = task.taxonomy
    return {"categories": list(taxonomy.categories), "ids": [list(ids) for ids in taxonomy.ids]}


def describe_evaluation(cfg: RunConfig, seconds: float) -> dict[str, Any]:
    """Say what the evaluation on the test split cost: forward passes of every cloud, and seconds."""
    return {"passes_per_cloud": cfg.protocol.votes, "seconds": round(seconds, 3)}


def describe_result(
    cfg: RunConfig,
    data: RunData,
    model: AdaptedModel,
    metrics: Metrics,
    state: RunState,
    env: Mapping[str, Any],
    how: Mapping[str, str],
    *,
    test_seconds: float,
) -> dict[str, Any]:
    """Put together result.json: the numbers with everything that one needs to read them.

    Args:
        cfg: settings of the run.
        data: what it ran on.
        model: what was trained.
        metrics: on test, of the epoch that counts.
        state: at the end of the run.
        env: what `environment` said when the run began.
        how: it was computed: "precision" and "product".
        test_seconds: that the evaluation on test took.
    """
    held_out = data.validation is not None and not data.own_validation
    return {
        "name": cfg.name,
        "config_hash": config_hash(cfg),
        "protocol": describe_protocol(cfg, cfg.protocol.val_fraction if held_out else 0.0),
        "seed": cfg.seed,
        "augment": cfg.augment,
        **how,
        "git": env["git"],
        "versions": env["versions"],
        "task": cfg.model.task,
        "model": cfg.model.name,
        "data": {
            **describe_data(cfg.data),
            "num_train": data.num_train,
            "num_validation": data.num_validation,
            "num_test": metrics.num_clouds,
            "num_points": cfg.data.num_points,
        },
        "input_rule": describe_input(cfg, state),
        "method": cfg.adapter.method,
        "metrics": metrics.as_json(data.class_names),
        "params": dict(model.parameter_counts()),
        "epochs": cfg.optim.epochs,
        "steps": state.step,
        "train_seconds": round(state.seconds, 3),
        "evaluation": describe_evaluation(cfg, test_seconds),
        "best": state.best or {"epoch": cfg.optim.epochs - 1, "selected_on": "last"},
    }
