"""Where a run stands, and what came out of it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pcl_clora.adapters import AdaptedModel
from pcl_clora.config import config_hash
from pcl_clora.data import DataConfig
from pcl_clora.engine.config import RunConfig
from pcl_clora.engine.setup import RunData
from pcl_clora.engine.tasks import Meter, Metrics


@dataclass
class RunState:
    """Position of a run and what it has summed up so far; all of it is in a checkpoint.

    Attributes:
        meter: of the training predictions of this epoch.
        epoch: epoch of the next batch, 0-based.
        batch: number of the next batch in its epoch, 0-based.
        step: steps done.
        loss_sum: sum of the losses of this epoch.
        seconds: time in the loop, over all parts of an interrupted run.
        epoch_seconds: the same within this epoch, evaluations left out.
        best: epoch and metrics of the best evaluation on the split that chooses, None before the first.
    """

    meter: Meter
    epoch: int = 0
    batch: int = 0
    step: int = 0
    loss_sum: float = 0.0
    seconds: float = 0.0
    epoch_seconds: float = 0.0
    best: dict[str, Any] | None = None
    _tick: float = field(default_factory=time.monotonic)

    def start_clock(self) -> None:
        """Begin to measure."""
        self._tick = time.monotonic()

    def take_time(self, *, training: bool) -> None:
        """Add the time since the last call; `training` says whether it belongs to the epoch."""
        now = time.monotonic()
        self.seconds += now - self._tick
        self.epoch_seconds += (now - self._tick) if training else 0.0
        self._tick = now

    def next_epoch(self) -> None:
        """Go to the first batch of the next epoch."""
        self.epoch, self.batch = self.epoch + 1, 0
        self.loss_sum, self.epoch_seconds = 0.0, 0.0
        self.meter.reset()

    def tree(self) -> dict[str, Any]:
        """Return everything as plain values and tensors."""
        names = ("epoch", "batch", "step", "loss_sum", "seconds", "epoch_seconds", "best")
        return {"meter": dict(self.meter.state()), **{name: getattr(self, name) for name in names}}

    def load(self, tree: Mapping[str, Any]) -> None:
        """Take over a saved state."""
        for name, value in tree.items():
            if name == "meter":
                self.meter.load(value)
            else:
                setattr(self, name, value)


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
        test_seconds: that the evaluation on test took.
    """
    held_out = data.validation is not None and not data.own_validation
    return {
        "name": cfg.name,
        "config_hash": config_hash(cfg),
        "protocol": describe_protocol(cfg, cfg.protocol.val_fraction if held_out else 0.0),
        "seed": cfg.seed,
        "augment": cfg.augment,
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
        "method": cfg.adapter.method,
        "metrics": metrics.as_json(data.class_names),
        "params": dict(model.parameter_counts()),
        "epochs": cfg.optim.epochs,
        "steps": state.step,
        "train_seconds": round(state.seconds, 3),
        "evaluation": describe_evaluation(cfg, test_seconds),
        "best": state.best or {"epoch": cfg.optim.epochs - 1, "selected_on": "last"},
    }
