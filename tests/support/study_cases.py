"""A study small enough for tests: made shapes, two rows; and a way to run its jobs without new processes."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from pcl_clora.compare import Study, load_study
from pcl_clora.compare.folder import StudyFolder
from pcl_clora.compare.runner import Outcome, StudyRunner
from pcl_clora.compare.work import LOCKED, run_job
from pcl_clora.engine.run.lock import RunLockedError
from pcl_clora.io import save_tensors, write_json
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
            except RunLockedError as error:
                print(error)
                self._code = LOCKED
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


def made_study(
    folder: Path, skills: Mapping[str, float], *, seeds: int = 3, clouds: int = 200, **changes: Any
) -> Path:
    """Write the folder of a study whose numbers are made: row -> share of clouds that are right."""
    generator = np.random.default_rng(0)
    label = generator.integers(5, size=clouds)
    hard = generator.normal(size=(seeds, clouds))  # shared by the rows, which makes pairs worth it
    rows = {}
    for number, (name, skill) in enumerate(skills.items()):
        rows[name] = {
            "settings": {},
            "varied": {},
            "seeds": list(range(seeds)),
            "choice": {"setting": "optim.lr", "value": 0.002, "trials": {}, "seed": 0},
            "counts": {"published": 10**8, "executed": 10**8 + number, "executed_merged": 10**8},
        }
        for seed in range(seeds):
            noisy = hard[seed] + 0.3 * generator.normal(size=clouds)
            said = np.where(noisy <= np.quantile(noisy, skill), label, (label + 1) % 5)
            place = folder / "rows" / name / f"seed{seed}"
            tensors = {"index": torch.arange(clouds).int(), "label": torch.tensor(label).short()}
            tensors |= {"said": torch.tensor(said).short(), "logits": torch.zeros(clouds, 5).half()}
            save_tensors(place.with_suffix(".safetensors"), tensors, {"run": f"{name}/seed{seed}"})
            right = float((said == label).mean())
            write_json(place.with_suffix(".json"), made_record(name, seed, right, 1000 * (number + 1)))
    content = {
        "study": "made",
        "title": "Made numbers & <more>",
        "baseline": next(iter(skills)),
        "base": {"optim.lr": 0.1},
        "settings": {"pairs": [], "rows": {}},
        "rows": rows,
    }
    write_json(folder / "study.json", {**content, **changes})
    return folder


def made_record(name: str, seed: int, right: float, size: int) -> dict[str, Any]:
    """A record as a run writes it, with made numbers."""
    return {
        "run": f"{name}/seed{seed}",
        "seed": seed,
        "chosen": 0.002,
        "metrics": {"oa": right, "macc": right - 0.01, "loss": 1.0, "ece": 0.1},
        "task": "classification",
        "method": name,
        "precision": "float32",
        "product": "torch",
        "git": "a" * 40,
        "versions": {"torch": "2"},
        "processor": "made",
        "params": {"trainable": size + 60, "head": 50, "tokens": 10, "adapter": size, "total": 10**6},
        "adapter_bytes": 4 * size,
        "train_seconds": 10.0,
        "epochs": 2,
        "robustness": {"seed": 0, "oa": {"modelnet40_c.gaussian": {"3": right - 0.1}}},
        "curve": [{"epoch": epoch, "loss": 1.0, "score": 0.4 + 0.1 * epoch} for epoch in range(2)],
        "settings": {},
    }
