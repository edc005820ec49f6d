"""A study small enough for tests: made shapes, two rows; and a way to run its jobs without new processes."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import yaml

from pcl_clora.compare import Study, load_study
from pcl_clora.compare.folder import StudyFolder
from pcl_clora.compare.runner import Outcome, StudyRunner
from pcl_clora.compare.work import run_job
from tests.support.cli_cases import write_config

STUDY: dict[str, Any] = {
    "title": "Two methods",
    "base": "tiny.yaml",
    "settings": {
        "data": {"num_points": 64, "train_size": 30},
        "optim": {"epochs": 1},
        "train": {"checkpoint_every_steps": 1},
    },
    "seeds": [0, 1],
    "choose": {"values": [0.001, 0.004], "settings": {"protocol": {"val_fraction": 0.3}}},
    "rows": {"lora": {"settings": {"adapter": {"method": "lora", "rank": 1}}}, "clora": {}},
}
FAILING = {"rows": {**STUDY["rows"], "broken": {"settings": {"optim": {"lr": 1e30}}, "seeds": [0]}}}


def write_study(folder: Path, **changes: Any) -> Path:
    """Write the study and its base, sections replaced, and return the study's file."""
    write_config(folder)
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump({**STUDY, **changes}, sort_keys=False))
    return path


def tiny_study(folder: Path, *overrides: str, **changes: Any) -> Study:
    """Write and load the study."""
    return load_study(write_study(folder, **changes), overrides)


class Here:
    """Does jobs in this process; a stand-in for `LaunchedProcess`.

    Attributes:
        started: the runs that were begun, in order.
    """

    def __init__(self) -> None:
        self.started: list[str] = []

    def __call__(self, job: Mapping[str, Any], log: Path) -> Here:
        """Do a job."""
        self.started.append(job["run"])
        log.parent.mkdir(parents=True, exist_ok=True)
        self._code = 0
        with log.open("a") as file, redirect_stdout(file):
            try:
                run_job(job)
            except Exception as error:
                print(error)
                self._code = 1
        return self

    def poll(self) -> int:
        """Return how it ended."""
        return self._code

    def stop(self, seconds: float) -> None:
        """Do nothing: it has ended."""


def carry_out(study: Study, folder: Path, launch: Here | None = None) -> tuple[Outcome, list[str]]:
    """Carry out a study in a folder: how it went, and the lines of progress."""
    files, lines = StudyFolder(folder), []
    files.open(study)
    runner = StudyRunner(study, files, tell=lines.append, launch=launch or Here())
    return runner.run(study.runs()), lines
