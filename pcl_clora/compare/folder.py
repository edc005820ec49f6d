"""The folder of a study: a small file for every finished run, from which all else follows.

study.json                   what the study is, what its rows chose, which runs are there
rows/<row>/seed0.json        a finished run: numbers, settings, precision, processor, versions
rows/<row>/seed0.safetensors what it said of every test cloud
rows/<row>/seed0.corrupted.safetensors which of them it had right under every corruption, see `corrupted`
rows/<row>/trial0.002.json   a trial: accuracy on validation clouds
rows/<row>/choice.json       the value that the trials led to; from then on it stands
rows/<row>/seed0.failed.json why a run failed; it is tried again by the next call
runs/<row>/seed0/            run folders, which a copy of a study may leave out
logs/<row>/seed0.log         what the run printed
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pcl_clora.compare.study import Run, Study, base_differences, describe, identity
from pcl_clora.config import ConfigError
from pcl_clora.engine.config import differences
from pcl_clora.io import DataError, explained, load_tensors, read_json, write_json


@dataclass(frozen=True)
class StudyFolder:
    """Paths and files of a study.

    Attributes:
        path: the folder.
    """

    path: Path

    @property
    def study(self) -> Path:
        """What the study is."""
        return self.path / "study.json"

    @property
    def cost(self) -> Path:
        """What `pcl-clora compare cost` measured."""
        return self.path / "cost.json"

    def record(self, run: Run) -> Path:
        """The file of a finished run."""
        return self.path / "rows" / run.row / f"{run.name}.json"

    def outputs(self, run: Run) -> Path:
        """What a finished run said of every test cloud."""
        return self.path / "rows" / run.row / f"{run.name}.safetensors"

    def corrupted(self, run: Run) -> Path:
        """Which test clouds a finished run had right under every corruption."""
        return self.path / "rows" / run.row / f"{run.name}.corrupted.safetensors"

    def failure(self, run: Run) -> Path:
        """Why a run failed."""
        return self.path / "rows" / run.row / f"{run.name}.failed.json"

    def choice(self, row: str) -> Path:
        """What the trials of a row led to."""
        return self.path / "rows" / row / "choice.json"

    def run_dir(self, run: Run) -> Path:
        """The folder of a run."""
        return self.path / "runs" / run.row / run.name

    def log(self, run: Run) -> Path:
        """What a run printed."""
        return self.path / "logs" / run.row / f"{run.name}.log"

    def read(self, path: Path) -> dict[str, Any] | None:
        """Read a json file of the study; None where it is not there.

        Raises:
            DataError: if it is damaged.
        """
        with explained(path, "read"):
            return read_json(path) if path.is_file() else None

    def read_outputs(self, run: Run) -> dict[str, Tensor]:
        """Read what a finished run said of the test clouds, in the order of their indices.

        Returns:
            "index" (n,) and "label" (n,), int64; and "said" (n,), int64, with "logits" (n, C), float32, or
            "score" (n,), float32.

        Raises:
            DataError: if the file is missing or damaged, or is of another run.
        """
        tensors, header = load_tensors(self.outputs(run))
        if header.get("run") != str(run) or "index" not in tensors:
            raise DataError(
                self.outputs(run), f"is not of {run}", "copy it again from where the study was made"
            )
        order = tensors["index"].argsort()
        found = {name: tensor[order] for name, tensor in tensors.items()}
        return {
            name: tensor.float() if tensor.is_floating_point() else tensor.to(torch.int64)
            for name, tensor in found.items()
        }

    def open(self, study: Study) -> None:
        """Begin a study here, or go on with it.

        Raises:
            ConfigError: if the folder holds a study of other base settings, or a run of a row that has others
                now; the message names the differences.
        """
        now = describe(study)
        before = self.read(self.study)
        if before is not None:
            different = base_differences(before, now)
            if different:
                raise ConfigError(
                    f"{self.path} holds study {before['study']!r} of another base config. There -> now:\n  "
                    + "\n  ".join(different)
                    + "\nGo back to that one, or choose another folder with --out."
                )
        for run in study.runs():
            self.check(study, run)
        write_json(self.study, {**(before or {}), **now})

    def check(self, study: Study, run: Run) -> dict[str, Any] | None:
        """Read the record of a run; None where it is not finished.

        Raises:
            ConfigError: if it was made with other settings than its row has now.
        """
        record = self.read(self.record(run))
        if record is None:
            return None
        chosen = self.chosen(study, run.row)
        if run.trial is None and study.rows[run.row].chooser and chosen is None:
            chosen = record.get("chosen")  # a copy without choices
        different = differences(record["settings"], identity(study.settings(run, chosen)))
        if different:
            raise ConfigError(
                f"{self.record(run)} has other settings than row {run.row!r} has now. There -> now:\n  "
                + "\n  ".join(different)
                + "\nRemove the files of this row there, or choose another folder with --out."
            )
        return record

    def chosen(self, study: Study, row: str) -> float | None:
        """Return the value that the trials of a row, or of the one it takes its choice from, led to."""
        chooser = study.rows[row].chooser
        choice = self.read(self.choice(chooser)) if chooser else None
        return None if choice is None else float(choice["value"])

    def is_finished(self, study: Study, run: Run) -> bool:
        """Tell whether a run is there with all that the study asks of it."""
        record = self.check(study, run)
        if record is None:
            return False
        return run.trial is not None or not missing_corruptions(study, record)

    def decide(self, study: Study, row: str) -> float | None:
        """Choose the value of a row, once all its trials are finished or failed; from then on it stands.

        Returns:
            The value; None while trials are missing, or where all of them failed.
        """
        chosen = self.chosen(study, row)
        if chosen is not None:
            return chosen
        chooser = study.rows[study.rows[row].chooser]
        trials: dict[str, Any] = {}
        scores: dict[float, float] = {}
        for run in study.trials(chooser):
            record, failure = self.check(study, run), self.read(self.failure(run))
            if record is not None:
                scores[run.trial or 0.0] = trials[f"{run.trial:g}"] = record["score"]
            elif failure is not None:
                trials[f"{run.trial:g}"] = f"failed: {failure['error']}"
            else:
                return None
        if not scores:
            return None
        assert study.cfg.choose is not None
        best = max(scores, key=lambda value: scores[value])  # the first of equal ones
        content = {"setting": study.cfg.choose.setting, "value": best, "trials": trials}
        write_json(self.choice(chooser.name), {**content, "seed": study.cfg.choose.seed})
        return best


def missing_corruptions(study: Study, record: Mapping[str, Any]) -> list[tuple[str, int]]:
    """List the corruptions that a record lacks."""
    robust = study.cfg.robustness
    found = record.get("robustness") or {}
    if robust is not None and found and found["seed"] != robust.seed:
        found = {}
    done = found.get("oa", {})
    return [
        (name, severity) for name, severity in study.corruptions if str(severity) not in done.get(name, {})
    ]
