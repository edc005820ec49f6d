"""Carry out a study: every run in a process of its own, several at a time; what is finished is not repeated.

All that is known stands in files that are there whole or not at all, so that the study may be killed at any
moment: the next call finds what is finished and goes on with what is not.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

import pcl_clora
from pcl_clora.compare.folder import StudyFolder, missing_corruptions
from pcl_clora.compare.study import Run, Study
from pcl_clora.compare.work import INTERRUPTED, LOCKED
from pcl_clora.engine.interrupt import TrainingInterrupted
from pcl_clora.engine.progress import format_seconds
from pcl_clora.engine.tasks import headlines
from pcl_clora.errors import UserValueError
from pcl_clora.io import write_json
from pcl_clora.io.safe import open_log
from pcl_clora.io.text import visible

_POLL_S, GRACE_S, LOCKED_TRIES = 0.2, 30.0, 3


@dataclass
class Outcome:
    """How a study went.

    Attributes:
        finished: runs that are there now, those of before among them.
        failed: run -> why; those that another process is at work on are named too.
    """

    finished: list[Run] = field(default_factory=list)
    failed: dict[Run, str] = field(default_factory=dict)


class Process(Protocol):
    """A job that was begun."""

    def poll(self) -> int | None:
        """Return the exit code; None while it goes on. Negative: the signal that ended it."""
        ...

    def stop(self, seconds: float) -> None:
        """Ask it to save and end, and wait for that, but no longer than so many seconds; then end it."""
        ...


class LaunchedProcess:
    """A job in a process of its own, which ends when this one does, however that ends.

    Args:
        job: see `work.run_job`, with "threads".
        log: gets what it prints, behind what is there.
    """

    def __init__(self, job: Mapping[str, Any], log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        root = str(Path(pcl_clora.__file__).resolve().parents[1])
        paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
        own = {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": str(job["threads"])}
        with open_log(log) as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pcl_clora.compare.work"],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **own},
                start_new_session=True,  # Ctrl-C reaches it once, by `stop`
            )
        assert self._process.stdin is not None
        self._lifeline = self._process.stdin  # left open: it closes when this process ends
        self._lifeline.write(json.dumps(job).encode() + b"\n")
        self._lifeline.flush()

    def poll(self) -> int | None:
        """Return the exit code; None while it goes on."""
        code = self._process.poll()
        if code is not None:
            self._lifeline.close()
        return code

    def stop(self, seconds: float) -> None:
        """Interrupt it as Ctrl-C does, and kill it where it does not end in time."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(seconds)
            self._process.kill()
            self._process.wait()


@dataclass
class _Job:
    process: Process
    began: float


def parse_shard(text: str) -> tuple[int, int]:
    """Read "2/8": the second of eight parts.

    Raises:
        ValueError: if it is no such thing.
    """
    number, slash, count = text.partition("/")
    if not slash or not number.isdecimal() or not count.isdecimal() or not 1 <= int(number) <= int(count):
        raise UserValueError(f"shard={text!r} is no part of a study; write it like 2/8, from 1/8 to 8/8.")
    return int(number), int(count)


def shard_rows(study: Study, rows: Sequence[str], shard: tuple[int, int]) -> list[str]:
    """List the rows of a shard: a row goes where the row goes whose choice it takes."""
    names = [name for name in study.rows if not rows or name in rows]
    heads = list(dict.fromkeys(study.rows[name].chooser or name for name in names))
    number, count = shard
    mine = set(heads[number - 1 :: count])
    return [name for name in names if (study.rows[name].chooser or name) in mine]


class StudyRunner:
    """Runs what is missing of a study.

    Args:
        study: which.
        folder: where; opened.
        jobs: runs at a time.
        threads: of every run; 0 divides those of the machine.
        tell: called with every line of progress.
        estimate: run -> seconds, for the time that is left.
        launch: begins a job, whose output goes to a file.
    """

    def __init__(
        self,
        study: Study,
        folder: StudyFolder,
        *,
        jobs: int = 1,
        threads: int = 0,
        tell: Callable[[str], None] = print,
        estimate: Callable[[Run], float] | None = None,
        launch: Callable[[Mapping[str, Any], Path], Process] | None = None,
    ) -> None:
        self._study, self._folder, self._jobs = study, folder, jobs
        self._threads = threads or max(torch.get_num_threads() // jobs, 1)
        self._tell, self._estimate = tell, estimate or (lambda run: 1.0)
        self._launch = launch or LaunchedProcess
        self._running: dict[Run, _Job] = {}
        self._todo: list[Run] = []
        self._refused: Counter[Run] = Counter()
        self._outcome = Outcome()
        self._estimated = self._took = 0.0

    def run(self, runs: Sequence[Run]) -> Outcome:
        """Do runs, in their order as far as choices are known.

        Raises:
            TrainingInterrupted: after Ctrl-C; runs are saved and go on with the same command.
        """
        self._todo = []
        for run in runs:
            if self._is_needless(run):
                self._outcome.finished.append(run)
            else:
                self._todo.append(run)
        self._all, self._left = len(runs), list(self._todo)
        if self._outcome.finished:
            self._tell(f"{len(self._outcome.finished)} of {len(runs)} runs are finished already")
        try:
            while self._todo or self._running:
                self._start_more()
                self._wait()
        except KeyboardInterrupt:
            raise self._interrupted() from None
        finally:
            for job in self._running.values():
                job.process.stop(GRACE_S)
        return self._outcome

    def _is_needless(self, run: Run) -> bool:
        if run.trial is not None and self._folder.chosen(self._study, run.row) is not None:
            return True
        return self._folder.is_finished(self._study, run)

    def _start_more(self) -> None:
        """Start runs until there are enough; a run whose choice is not made yet waits for it."""
        todo = self._todo
        for run in list(todo):
            if len(self._running) >= self._jobs:
                return
            chooser = self._study.rows[run.row].chooser
            chosen = None
            if run.trial is None and chooser:
                trials = self._study.trials(self._study.rows[chooser])
                if any(trial in self._running or trial in todo for trial in trials):
                    continue
                chosen = self._folder.decide(self._study, run.row)
                if chosen is None:
                    todo.remove(run)
                    self._fail(run, f"no trial of {chooser} finished")
                    continue
            todo.remove(run)
            self._start(run, chosen)

    def _start(self, run: Run, chosen: float | None) -> None:
        folder, study = self._folder, self._study
        record = folder.check(study, run)
        corruptions = [] if run.trial is not None else missing_corruptions(study, record or {})
        cfg = study.settings(run, chosen)
        job = {
            "run": str(run),
            "config": cfg.model_dump(mode="json"),
            "run_dir": str(folder.run_dir(run)),
            "record": str(folder.record(run)),
            "outputs": str(folder.outputs(run)),
            "corrupted": str(folder.corrupted(run)),
            "trial": run.trial,
            "chosen": chosen,
            "corruptions": corruptions,
            "corruption_seed": study.cfg.robustness.seed if study.cfg.robustness else 0,
            "threads": self._threads,
        }
        self._running[run] = _Job(self._launch(job, folder.log(run)), time.monotonic())

    def _wait(self) -> None:
        """Wait until a run ends, if any goes on, and take note of it."""
        while self._running:
            ended = [run for run, job in self._running.items() if job.process.poll() is not None]
            for run in ended:
                self._end(run, self._running.pop(run))
            if ended:
                return
            time.sleep(_POLL_S)

    def _end(self, run: Run, job: _Job) -> None:
        code, took = job.process.poll(), time.monotonic() - job.began
        assert code is not None
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        if code == 0 and self._folder.is_finished(self._study, run):
            self._folder.failure(run).unlink(missing_ok=True)
            self._outcome.finished.append(run)
            self._took += took
            self._estimated += self._estimate(run)
            self._left.remove(run)
            record = self._folder.check(self._study, run) or {}
            score = record["score"] if run.trial is not None else _headline(record)
            what = "on validation" if run.trial is not None else "on test"
            self._say(run, f"{100 * score:.2f} {what}, {format_seconds(took)}")
        elif code == LOCKED and self._refused[run] < LOCKED_TRIES:
            self._refused[run] += 1  # perhaps the run of a study that was killed, about to end
            self._todo.append(run)
        elif code == LOCKED:
            self._fail(run, "another process is at work on it", keep=False)
        else:
            self._fail(run, _last_words(self._folder.log(run), code))

    def _fail(self, run: Run, error: str, *, keep: bool = True) -> None:
        if keep:
            write_json(self._folder.failure(run), {"run": str(run), "error": error})
        self._outcome.failed[run] = error
        self._left.remove(run)
        self._say(run, f"failed: {error} ({self._folder.log(run)})")

    def _say(self, run: Run, what: str) -> None:
        done = self._all - len(self._left)
        left = ""
        if self._left and self._estimated:
            seconds = sum(map(self._estimate, self._left)) * self._took / self._estimated / self._jobs
            left = f"; left {format_seconds(seconds)}"
        self._tell(f"[{done}/{self._all}] {run}: {what}{left}")

    def _interrupted(self) -> TrainingInterrupted:
        """Say how to go on; the runs save before they end."""
        return TrainingInterrupted(
            f"Stopped; {len(self._outcome.finished)} of {self._all} runs are finished. Run the same command "
            "again to go on."
        )


def _headline(record: Mapping[str, Any]) -> float:
    return float(record["metrics"][headlines(record["task"])[0].key])


def _last_words(log: Path, code: int) -> str:
    """Say why a process ended: the last line that it printed, or the signal."""
    if code < 0:
        return f"ended by signal {-code}" + (" (killed, perhaps for memory)" if code == -9 else "")
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return visible(lines[-1][:500]) if lines else f"ended with code {code}"
