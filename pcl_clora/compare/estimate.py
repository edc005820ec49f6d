"""How long the runs of a study take here, and how much they write.

A step of every row is timed, by one thread: threads that wait for others, as on a busy machine, use processor
time without any use. Runs of the study that are finished on this processor say how much more or less it is.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from pcl_clora.adapters import attach_adapter
from pcl_clora.compare.folder import StudyFolder
from pcl_clora.compare.study import Run, Study
from pcl_clora.data import build_dataset, build_validation
from pcl_clora.engine import RunConfig, build_optimizer
from pcl_clora.engine.modes import evaluation_mode
from pcl_clora.engine.run.processor import processor_name
from pcl_clora.io import DataError
from pcl_clora.models import build_model
from pcl_clora.report.cost import random_inputs

TRIED_CLOUDS = 8  # of a timed step
REPEATS = 3  # the quickest counts: what a library sets up at first use is no part of a step
OVERHEAD_S = 6.0  # start of a process, reading clouds, writing


@dataclass(frozen=True)
class Estimate:
    """What a run takes.

    Attributes:
        seconds: of processor time, about.
        kept_mib: what stays of it in rows/.
        run_mib: its run folder while it is there, with checkpoint.
    """

    seconds: float
    kept_mib: float
    run_mib: float


class Estimator:
    """Estimates runs of a study; a row is timed once.

    Args:
        study: which.
        folder: where it is carried out; its finished runs scale the estimates.
    """

    def __init__(self, study: Study, folder: StudyFolder | None = None) -> None:
        self._study, self._folder = study, folder
        self.unknown: dict[Run, str] = {}
        self._sizes: dict[str, tuple[int, int, int]] = {}
        self._speeds: dict[str, tuple[float, float, int]] = {}

    def of(self, run: Run) -> Estimate:
        """Estimate a run.

        Raises:
            DataError: if its clouds cannot be counted, because files are missing.
        """
        cfg = self._study.settings(run, self._first_value(run))
        num_test, trained = self._count(cfg)[2], self._speed(run.row, cfg)[2]
        outputs = 0 if run.trial is not None else num_test * (2 * cfg.model.num_classes + 6)
        return Estimate(
            sum(self._timed(run)) * self._factor(run.row), (outputs + 8000) / 2**20, 16 * trained / 2**20
        )  # weights, two moments of AdamW, and the adapter file

    def known(self, runs: Iterable[Run]) -> dict[Run, Estimate]:
        """Estimate runs, as far as their files are there; of the others, `unknown` says why not."""
        found: dict[Run, Estimate] = {}
        for run in runs:
            try:
                found[run] = self.of(run)
            except DataError as error:
                self.unknown[run] = str(error)
        return found

    def made_from(self) -> str:
        """Say what the estimates are made from."""
        text = "made from a step of every row, timed in one thread"
        if not self._finished:
            return text
        return (
            f"{text}, and from {len(self._finished)} finished runs, which took {self._factor(''):.2f} times "
            "what that says"
        )

    def _timed(self, run: Run) -> tuple[float, float]:
        """Say what a run takes by the timed step: seconds of training, and of all else."""
        cfg = self._study.settings(run, self._first_value(run))
        num_train, num_validation, num_test = self._count(cfg)
        step, look, _ = self._speed(run.row, cfg)
        passes = num_validation if run.trial is not None else num_test * (1 + len(self._study.corruptions))
        batches = num_train // cfg.optim.batch_size
        training = cfg.optim.epochs * batches * cfg.optim.batch_size * step
        return training, passes * cfg.protocol.votes * look + OVERHEAD_S

    @cached_property
    def _finished(self) -> dict[Run, tuple[float, float]]:
        """Finished runs on a processor like this: what they took, and would by the timed step."""
        found: dict[Run, tuple[float, float]] = {}
        for run in self._study.runs() if self._folder else ():
            assert self._folder is not None
            record = self._folder.read(self._folder.record(run))
            if record is None or record.get("processor") != processor_name():
                continue
            with suppress(DataError):
                training, rest = self._timed(run)
                if record.get("processor_seconds"):
                    found[run] = record["processor_seconds"], training + rest
                elif training and {"train_seconds", "threads"} <= record.keys():  # of an older version
                    found[run] = record["train_seconds"] * record["threads"], training
        return found

    def _factor(self, row: str) -> float:
        """Say how much longer finished runs took than timed: those of a row, or all where it has none."""
        own = [times for run, times in self._finished.items() if run.row == row]
        known = own or list(self._finished.values())
        return sum(took for took, _ in known) / sum(timed for _, timed in known) if known else 1.0

    def _first_value(self, run: Run) -> float | None:
        chooser = self._study.rows[run.row].chooser
        return self._study.rows[chooser].values[0] if chooser else None

    def _count(self, cfg: RunConfig) -> tuple[int, int, int]:
        """Count the clouds of train, validation and test."""
        key = json.dumps({**cfg.data.model_dump(mode="json"), "shots_seed": 0, "how": cfg.protocol.select})
        if key not in self._sizes:
            train, test = (len(build_dataset(cfg.data, split)) for split in ("train", "test"))
            own = build_validation(cfg.data)
            held = round(train * cfg.protocol.val_fraction) if own is None else 0
            held = held if cfg.protocol.select == "validation" else 0
            self._sizes[key] = (train - held, held if own is None else len(own), test)
        return self._sizes[key]

    def _speed(self, row: str, cfg: RunConfig) -> tuple[float, float, int]:
        """Time a training step and a forward pass: seconds a cloud of each; and count trained parameters."""
        if row in self._speeds:
            return self._speeds[row]
        trained, step, look = make_step(cfg, TRIED_CLOUDS)
        with torch.random.fork_rng(devices=[]), one_thread():
            times = []
            for work in (step, look):
                work()
                times.append(min(_seconds(work) for _ in range(REPEATS)) / TRIED_CLOUDS)
        self._speeds[row] = (times[0], times[1], trained)
        return self._speeds[row]


@contextmanager
def one_thread() -> Iterator[None]:
    """Compute in one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _seconds(work: Callable[[], None]) -> float:
    """Return the processor time of a call."""
    began = time.process_time()
    work()
    return time.process_time() - began


def make_step(cfg: RunConfig, clouds: int) -> tuple[int, Callable[[], None], Callable[[], None]]:
    """Make a model with random weights: its trained parameters, and a training step and a forward pass of it.

    Args:
        cfg: settings of a run.
        clouds: random ones, of a step.
    """
    with torch.random.fork_rng(devices=[]):
        model = attach_adapter(build_model(cfg.model), cfg.adapter).train()
    inputs = random_inputs(model, clouds, cfg.data.num_points)
    optimizer = build_optimizer(model, cfg.optim)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss: Tensor = model(*inputs).square().mean()
        for term in model.extra_losses().values():
            loss = loss + term
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    def look() -> None:
        with evaluation_mode(model), torch.inference_mode():
            model(*inputs)

    return int(model.parameter_counts()["trainable"]), step, look


@dataclass(frozen=True)
class Total:
    """What all runs of a study take together.

    Attributes:
        runs: how many there are.
        left: how many are not finished.
        seconds: of processor time that are left.
        kept_mib: what rows/ will hold when all are finished.
        run_mib: the largest run folder.
    """

    runs: int
    left: int
    seconds: float
    kept_mib: float
    run_mib: float


def total(estimates: Mapping[Run, Estimate], finished: Iterable[Run]) -> Total:
    """Sum up."""
    left = set(estimates) - set(finished)
    return Total(
        len(estimates),
        len(left),
        sum(estimates[run].seconds for run in left),
        sum(one.kept_mib for one in estimates.values()),
        max((one.run_mib for one in estimates.values()), default=0.0),
    )
