"""What a run needs to go on: put together, written, read back, refused where it belongs to another run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor

from pcl_clora.adapters import AdaptedModel
from pcl_clora.adapters.state import current_name
from pcl_clora.data import Batch
from pcl_clora.engine.config import differences
from pcl_clora.engine.ema import WeightAverage
from pcl_clora.engine.events import logger
from pcl_clora.engine.optim import trained_parameters
from pcl_clora.engine.randomness import capture_rng_state, restore_rng_state
from pcl_clora.engine.run.checkpoint import CheckpointError, save_checkpoint
from pcl_clora.engine.run.state import RunState
from pcl_clora.errors import PclCloraError
from pcl_clora.io.digest import digest_tensors


class NonFiniteLossError(PclCloraError, RuntimeError):
    """A loss or gradient that is nan or infinite; the message names the file with the batch and the state."""


class Snapshot:
    """The moving parts of a run, as one tree for a checkpoint file.

    Args:
        model: its trained tensors are kept, its frozen ones are named by a fingerprint.
        optimizer: over the trained parameters.
        average: moving average of the weights.
        state: position of the run.
        identity: settings that a resumed run must share, see `run_identity`.
        data: what a resumed run must share of its data, see `data_identity`.
    """

    def __init__(
        self,
        model: AdaptedModel,
        optimizer: torch.optim.Optimizer,
        average: WeightAverage,
        state: RunState,
        identity: Mapping[str, Any],
        data: Mapping[str, Any],
    ) -> None:
        self._model, self._optimizer, self._average, self._state = model, optimizer, average, state
        self._identity, self._data = identity, data
        self._parameters = list(trained_parameters(model))
        changed = set(model.saved_names())
        frozen = {name: value for name, value in model.state_dict().items() if name not in changed}
        self._base = digest_tensors(frozen, mark=";")[:16]
        self._statistics = {
            name: buffer for name, buffer in model.named_buffers() if name in changed
        }  # of norms that track: a forward pass in training changes them
        self._before: tuple[Mapping[str, Any], dict[str, Tensor]] | None = None

    def tree(self, log: Mapping[str, Any]) -> dict[str, Any]:
        """Put everything together; `log` is what `RunLog.known` says of metrics.jsonl."""
        return {
            "state": self._state.tree(),
            "model": self._model.adapter_state(),
            "average": self._average.average,
            "optimizer": self._optimizer.state_dict(),
            "parameters": self._parameters,
            "rng": capture_rng_state(),
            "threads": torch.get_num_threads(),
            "base": self._base,
            "data": self._data,
            **log,
        }

    def save(self, path: Path, log: Mapping[str, Any]) -> None:
        """Write a checkpoint."""
        save_checkpoint(path, self.tree(log), self._identity)

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Take over a checkpoint.

        Raises:
            CheckpointError: if the data, the frozen weights or the trained parameters are other ones.
        """
        before = saved.get("data", self._data)  # older checkpoints do not say it
        if different := differences(before, self._data):
            shown = "\n  ".join(different)
            raise CheckpointError(
                f"The checkpoint belongs to other data. Checkpoint -> now:\n  {shown}\nGive the run the data "
                "that it began with (data.root), choose another run folder (name=...), or start over with "
                "--resume never."
            )
        parameters = [current_name(name) for name in saved["parameters"]]
        for name, then, now in (
            ("base", saved["base"], self._base),
            ("parameters", parameters, self._parameters),
        ):
            if then != now:
                raise CheckpointError(
                    f"The checkpoint belongs to another run: its {name} was {then}, now it is {now}. "
                    "Was the weights file or the code changed? Start over with --resume never."
                )
        if saved["threads"] != torch.get_num_threads():
            logger.warning(
                "The run began with %d threads and goes on with %d: sums are added in another order, so the "
                "last bits of its numbers can differ. Remedy: OMP_NUM_THREADS=%d.",
                saved["threads"],
                torch.get_num_threads(),
                saved["threads"],
            )
        self._model.load_adapter_state(saved["model"])
        self._optimizer.load_state_dict(saved["optimizer"])
        self._average.load({current_name(name): value for name, value in saved["average"].items()})
        self._state.load(saved["state"])
        restore_rng_state(saved["rng"])

    def begin_step(self) -> None:
        """Remember what a forward pass changes: generators, and statistics of norms that track."""
        statistics = {name: buffer.detach().clone() for name, buffer in self._statistics.items()}
        self._before = capture_rng_state(), statistics

    def refuse_step(self, path: Path, batch: Batch, numbers: Mapping[str, float]) -> NoReturn:
        """Save batch and state of a step that must not be taken, and raise; the model is as before it, too.

        Args:
            path: file to write, a checkpoint with "indices", "points", "label" and "numbers" besides.
            batch: as the model saw it.
            numbers: of the loss.

        Raises:
            NonFiniteLossError: always.
        """
        assert self._before is not None  # a step begins before it is refused
        rng, statistics = self._before
        for name, buffer in self._statistics.items():
            buffer.copy_(statistics[name])
        seen = {"indices": batch.index, "points": batch.points, "label": batch.label}
        culprit = {**seen, "part_labels": batch.part_labels, "numbers": dict(numbers)}
        save_checkpoint(path, {**self.tree({"metrics_bytes": 0}), "rng": rng, **culprit}, self._identity)
        what = "The gradient" if math.isfinite(numbers["loss"]) else "The loss"
        state = self._state
        raise NonFiniteLossError(
            f"{what} is not finite in step {state.step + 1} (epoch {state.epoch}, batch {state.batch}; "
            f"{dict(numbers)}). The weights before this step, the batch's indices and its points are in "
            f"{path}. Look for nan or all-equal points in these clouds; else lower optim.lr or "
            "optim.clip_norm, or switch train.amp off."
        )
