"""What a study found, read from its folder alone: rows with their runs, compared in pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pcl_clora.compare.corrupted import read_right
from pcl_clora.compare.folder import StudyFolder
from pcl_clora.compare.statistics import Difference, class_weights, paired_difference
from pcl_clora.compare.study import Run
from pcl_clora.config import unknown_name
from pcl_clora.engine.metrics.spread import mean_and_deviation
from pcl_clora.engine.tasks import Headline, headlines
from pcl_clora.report.shapes import ReportError


@dataclass(frozen=True)
class RowResult:
    """The runs of a row that were computed in one precision.

    Attributes:
        name: of the row; with the precision, where the row has runs of several.
        row: name of the row in the study.
        settings: in which it differs from the base, dotted.
        records: of its finished runs, by seed.
        states: run -> "finished", "failed: ..." or "missing".
        choice: what its trials led to; None where nothing was chosen.
        counts: multiply-adds and parameters, see `count_cost`; empty where they are not known.
        measured: what `pcl-clora compare cost` measured; empty where it did not.
        scores: (S, n) of every seed and test cloud: right or not, or the IoU.
        labels: (n,) classes of the test clouds.
        right: seed -> "corruption, severity" -> (n,) whether a cloud was right; runs of older versions have
            none.
    """

    name: str
    row: str
    settings: Mapping[str, Any]
    records: Mapping[int, Mapping[str, Any]]
    states: Mapping[str, str]
    choice: Mapping[str, Any] | None
    counts: Mapping[str, Any]
    measured: Mapping[str, Any]
    scores: np.ndarray = field(repr=False)
    labels: np.ndarray = field(repr=False)
    right: Mapping[int, Mapping[str, np.ndarray]] = field(repr=False)

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds of the finished runs."""
        return tuple(self.records)

    @property
    def failed(self) -> dict[str, str]:
        """The runs that failed, with the reason."""
        return {run: state for run, state in self.states.items() if state.startswith("failed")}

    @property
    def first(self) -> Mapping[str, Any]:
        """The record of the first seed; all have the same settings, sizes and precision."""
        return next(iter(self.records.values()))

    @property
    def state(self) -> str:
        """Say in a few words what is there of the row."""
        missing = sum(state == "missing" for state in self.states.values())
        parts = [f"failed: {', '.join(self.failed)}"] if self.failed else []
        return "; ".join([*parts, *([f"{missing} missing"] if missing else [])]) or "complete"

    def metric(self, name: str) -> tuple[float, float | None] | None:
        """Mean and standard deviation (n - 1) over the seeds; None where a record lacks it."""
        values = [record["metrics"].get(name) for record in self.records.values()]
        return None if None in values or not values else mean_and_deviation(values)

    def last_values(self) -> dict[str, float]:
        """Mean over seeds of what the terms beside the task loss were at the end, such as "value_sade"."""
        last = [record["curve"][-1] for record in self.records.values() if record["curve"]]
        names = [key for key in (last[0] if last else {}) if key.startswith("value_")]
        return {name: float(np.mean([point[name] for point in last])) for name in names}

    def errors(self) -> dict[str, tuple[float, float | None]]:
        """Error rate under what all its runs were measured on: "corruption, severity" -> mean, deviation."""
        tables = [record.get("robustness", {}).get("oa", {}) for record in self.records.values()]
        found = {}
        for name, values in (tables[0] if tables else {}).items():
            for severity in values:
                errors = [1 - table[name][severity] for table in tables if severity in table.get(name, {})]
                if len(errors) == len(tables):
                    found[f"{name}, {severity}"] = mean_and_deviation(errors)
        return found

    def mean_errors(self) -> dict[str, tuple[float, float | None]]:
        """Mean error rate of every family over what was measured of it: mean and deviation over the seeds."""
        by_family: dict[str, list[tuple[str, str]]] = {}
        for name in self.errors():
            corruption, severity = name.split(", ")
            by_family.setdefault(name.partition(".")[0], []).append((corruption, severity))
        tables = [record["robustness"]["oa"] for record in self.records.values()] if by_family else []
        return {
            family: mean_and_deviation(
                [float(np.mean([1 - table[name][at] for name, at in pairs])) for table in tables]
            )
            for family, pairs in by_family.items()
        }

    @property
    def sizes(self) -> dict[str, int]:
        """Trained parameters: all, and those that are neither head nor tokens."""
        params = self.first["params"]
        return {
            "trained": params["trainable"],
            "without_head": params["trainable"] - params["head"] - params["tokens"],
        }


@dataclass(frozen=True)
class StudyResults:
    """What a study found.

    Attributes:
        path: its folder.
        title: of the study.
        baseline: name of the row that others are tested against.
        pairs: further comparisons that were asked for.
        rows: in the order of the study; those without a finished run among them.
        content: of study.json.
    """

    path: Path
    title: str
    baseline: str
    pairs: tuple[tuple[str, str], ...]
    rows: tuple[RowResult, ...]
    content: Mapping[str, Any] = field(repr=False)

    @property
    def finished(self) -> tuple[RowResult, ...]:
        """The rows with at least one finished run."""
        return tuple(row for row in self.rows if row.records)

    @property
    def task(self) -> str:
        """What the runs did."""
        return str(self.finished[0].first["task"]) if self.finished else "classification"

    @property
    def headlines(self) -> tuple[Headline, ...]:
        """The numbers that come first."""
        return headlines(self.task)

    def row(self, name: str) -> RowResult:
        """Return a row that has finished runs.

        Raises:
            ReportError: if there is none of this name, or no run of it is finished.
        """
        found = {row.name: row for row in self.rows} | {row.row: row for row in reversed(self.rows)}
        if name not in found:
            raise ReportError(unknown_name(name, found, what="row", owner=str(self.path)))
        if not found[name].records:
            raise ReportError(
                f"No run of row {name!r} in {self.path} is finished ({found[name].state}); finish one, or "
                "name another row."
            )
        return found[name]

    def like(self, row: RowResult, other: RowResult) -> RowResult:
        """Return the row of the same name and of the precision of another one; itself where there is none."""
        same = [one for one in self.finished if one.row == row.row and other.records]
        alike = [one for one in same if one.first["precision"] == other.first["precision"]]
        return alike[0] if alike else row

    def compare(self, mine: RowResult, theirs: RowResult, *, by_class: bool = False) -> Difference | None:
        """Compare two rows by the seeds that both have; None where there are none.

        Args:
            mine: the row.
            theirs: the row it is tested against.
            by_class: compare means over classes, of which the clouds of a class are the samples.

        Raises:
            ReportError: if the rows were tested on other clouds.
        """
        common = [seed for seed in mine.seeds if seed in theirs.seeds]
        if not common:
            return None
        if not np.array_equal(mine.labels, theirs.labels):
            raise ReportError(
                f"Rows {mine.name!r} and {theirs.name!r} in {self.path} were tested on other clouds and "
                "cannot be paired; leave one of them out."
            )
        weights = class_weights(mine.labels) if by_class else np.ones(len(mine.labels))
        pick = [[row.seeds.index(seed) for seed in common] for row in (mine, theirs)]
        return paired_difference(mine.scores[pick[0]] * weights, theirs.scores[pick[1]] * weights)

    def compare_errors(self, mine: RowResult, theirs: RowResult, family: str) -> Difference | None:
        """Compare the mean errors of two rows under a family, by the seeds of which both know every cloud.

        Returns:
            The difference mine - theirs, below zero where the row errs less; None where no seed is in both.
        """
        names = [name for name in mine.errors() if name.startswith(f"{family}.")]
        common = [
            seed
            for seed in mine.seeds
            if seed in theirs.seeds and mine.right[seed].keys() & theirs.right[seed].keys() >= {*names}
        ]
        if not common or not names:
            return None
        wrong = [
            np.stack([np.mean([~row.right[seed][name] for name in names], axis=0) for seed in common])
            for row in (mine, theirs)
        ]
        return paired_difference(*wrong)

    @cached_property
    def best(self) -> RowResult | None:
        """The row with the highest mean of the first headline."""
        key = self.headlines[0].key
        return max(self.finished, key=lambda row: (row.metric(key) or (0.0, None))[0], default=None)

    def near_best(self, *, by_class: bool = False) -> frozenset[str]:
        """Name the rows that are not told apart from the best one, the best one among them."""
        if self.best is None:
            return frozenset()
        best = self.best
        if by_class and len(self.headlines) > 1:
            key = self.headlines[1].key
            best = max(self.finished, key=lambda row: (row.metric(key) or (0.0, None))[0])
        near = {best.name}
        for row in self.finished:
            apart = self.compare(best, row, by_class=by_class) if row is not best else None
            if apart is not None and not apart.is_told_apart:
                near.add(row.name)
        return frozenset(near)


def read_results(folder: str | Path, *, partial: bool = False, baseline: str = "") -> StudyResults:
    """Read what a study found.

    Args:
        folder: of the study; its run folders need not be there.
        partial: take rows of which no run is there yet, too.
        baseline: another row to test against than the study names.

    Raises:
        ReportError: if the folder holds no study, or a row has neither a finished nor a failed run and
            `partial` is not set.
        DataError: if a file is damaged.
    """
    files = StudyFolder(Path(folder))
    content = files.read(files.study)
    if content is None or "rows" not in content:
        raise ReportError(f"{folder} holds no study: {files.study} is missing; check the path.")
    costs = (files.read(files.cost) or {}).get("rows", {})
    rows: list[RowResult] = []
    for name, told in content["rows"].items():
        rows += _read_row(files, name, told, costs.get(name, {}))
    for row in rows:
        if not (row.records or row.failed or partial):
            raise ReportError(
                f"No run of row {row.name!r} in {folder} is finished; carry the study out first."
            )
    names = list(dict.fromkeys(name for row in rows for name in (row.name, row.row)))
    if baseline and baseline not in names:
        raise ReportError(unknown_name(baseline, names, what="row", owner=str(folder)))
    wanted = baseline or str(content["baseline"])
    pairs = tuple((str(one), str(other)) for one, other in content["settings"]["pairs"])
    return StudyResults(Path(folder), str(content["title"]), wanted, pairs, tuple(rows), content)


def _read_row(
    files: StudyFolder, name: str, told: Mapping[str, Any], measured: Mapping[str, Any]
) -> list[RowResult]:
    """Read a row: once for every precision that its runs were computed in."""
    seeds = [int(seed) for seed in told["seeds"]]
    records = {seed: files.read(files.record(Run(name, seed))) for seed in seeds}
    found = {seed: record for seed, record in records.items() if record is not None}
    precisions = list(dict.fromkeys(str(record["precision"]) for record in found.values()))
    rows = []
    for precision in precisions or [""]:
        own = {seed: record for seed, record in found.items() if record["precision"] == precision}
        scores, labels = _read_scores(files, name, list(own))
        states = {
            f"seed{seed}": _state(files, Run(name, seed), is_there=seed in found)
            for seed in seeds
            if seed in own or seed not in found
        }
        label = f"{name} ({precision})" if len(precisions) > 1 else name
        rows.append(
            RowResult(
                label,
                name,
                told["settings"],
                own,
                states,
                told["choice"] or files.read(files.choice(name)),  # of a study that goes on
                told.get("counts", {}),
                measured,
                scores,
                labels,
                {seed: _read_right(files, Run(name, seed), record) for seed, record in own.items()},
            )
        )
    return rows


def _state(files: StudyFolder, run: Run, *, is_there: bool) -> str:
    if is_there:
        return "finished"
    failure = files.read(files.failure(run))
    return f"failed: {failure['error']}" if failure else "missing"


def _read_right(files: StudyFolder, run: Run, record: Mapping[str, Any]) -> dict[str, np.ndarray]:
    robustness = record.get("robustness")
    return read_right(files.corrupted(run), str(run), robustness["seed"]) if robustness else {}


def _read_scores(files: StudyFolder, name: str, seeds: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Read what every run scored on every test cloud: (S, n) and the classes (n,)."""
    scores, labels = [], np.zeros(0, dtype=np.int64)
    for seed in seeds:
        outputs = files.read_outputs(Run(name, seed))
        mine = outputs["label"].numpy()
        if len(labels) and not np.array_equal(labels, mine):
            raise ReportError(
                f"{files.outputs(Run(name, seed))} is of other test clouds than the seeds before."
            )
        labels = mine
        if "said" in outputs:
            scores.append((outputs["said"].numpy() == mine).astype(np.float64))
        else:
            scores.append(outputs["score"].double().numpy())
    return (np.stack(scores) if scores else np.zeros((0, 0))), labels
