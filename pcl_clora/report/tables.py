"""One table over several runs, seeds together; it does not put side by side what cannot be compared."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pcl_clora.engine.config import differences, run_identity
from pcl_clora.engine.metrics.spread import mean_and_deviation
from pcl_clora.engine.precision import precision_of
from pcl_clora.engine.run.result import describe_data
from pcl_clora.engine.tasks import Headline, headlines
from pcl_clora.io import refuse_overwriting_inputs, write_text
from pcl_clora.io.text import markdown
from pcl_clora.report import units
from pcl_clora.report.records import RunRecord, read_run, run_cost, task_of
from pcl_clora.report.shapes import ReportError

HEADER = (  # behind the method and the numbers of the task
    "trained params",
    "adapter file",
    "GMACs",
    "GMACs executed",
    "train time",
    "protocol",
    "seeds",
    "augmentation",
)
CLASS_TABLES = (  # metrics of every class: key, what its rows are, what is measured
    ("per_class", "class", "recall"),
    ("per_category", "category", "mIoU"),
    ("per_part", "part", "IoU"),
)
VOTES_HEADER = (
    "GMACs, all votes",
    "test time",
)  # behind those of HEADER, where a cloud is seen several times
WITHOUT_MEANING = ("seed", "data.root")  # settings that differ between runs of one row
SHOTS = "data.shots_seed"  # differs too where every seed draws its own training clouds
COMPARED = {
    "protocol": ("name", "select", "votes", "val_fraction", "vote_augment"),
    "data": ("name", "num_train", "num_test", "num_points"),
}
# Data settings (the last part of their names) that may differ within a table: the test clouds are the same.
FREE_DATA = ("root", "pool_points", "shots_seed", "sampling_seed", "keep", "cache")


@dataclass(frozen=True)
class Row:
    """Runs that differ only in their seed, or in their seed and the training clouds that it draws.

    Attributes:
        label: the method, and what tells it from other rows of the same method.
        runs: in the order of their seeds.
        cost: what `count_cost` says of their model.
        new_shots: whether every seed has training clouds of its own (data.shots_seed is the seed), so that
            the deviation has their choice in it.
    """

    label: str
    runs: tuple[RunRecord, ...]
    cost: Mapping[str, Any]
    new_shots: bool = False

    @property
    def headlines(self) -> tuple[Headline, ...]:
        """The numbers of the task that come first."""
        return headlines(task_of(self.runs[0].result))

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seeds, ascending."""
        return tuple(run.result["seed"] for run in self.runs)

    def metric(self, name: str) -> tuple[float, float | None]:
        """Mean and standard deviation (n - 1) over the seeds, in [0, 1]; no deviation of a single seed."""
        values = [run.result["metrics"][name] for run in self.runs]
        return mean_and_deviation(values)

    def as_json(self) -> dict[str, Any]:
        """Return all numbers of the row, units in the names."""
        first = self.runs[0].result
        numbers: dict[str, Any] = {"method": first["method"], "label": self.label}
        for name in (headline.key for headline in self.headlines):
            numbers[name], numbers[f"{name}_std"] = self.metric(name)
        return numbers | {
            "params": first["params"],
            "adapter_bytes": self.runs[0].adapter_bytes,
            "macs_published": self.cost["macs"]["published"],
            "macs_executed": self.cost["macs"]["executed"],
            "macs_executed_merged": self.cost["macs"]["executed_merged"],
            "train_seconds": statistics.fmean(run.result["train_seconds"] for run in self.runs),
            "epochs": first["epochs"],
            "protocol": first["protocol"],
            "passes_per_cloud": self.votes,
            "macs_all_votes": self.votes * self.cost["macs"]["executed"],
            "test_seconds": self._test_seconds(),
            "seeds": list(self.seeds),
            "new_shots": self.new_shots,
            "augment": first["augment"],
            "runs": [str(run.files.path) for run in self.runs],
            "per_seed": [{"seed": run.result["seed"], **run.result["metrics"]} for run in self.runs],
        }

    @property
    def votes(self) -> int:
        """Forward passes of every test cloud."""
        return int(self.runs[0].result["protocol"]["votes"])

    def _test_seconds(self) -> float | None:
        """Mean time of the evaluation on test; None where a result is older than this number."""
        known = [run.result.get("evaluation") for run in self.runs]
        return None if None in known else statistics.fmean(each["seconds"] for each in known if each)

    def seed_header(self) -> list[str]:
        """Name the columns of `seed_cells`."""
        return ["seed", *(headline.label for headline in self.headlines), "train time"]

    def seed_cells(self) -> list[list[str]]:
        """Return the cells of `seed_header`, one row a seed."""
        return [
            [
                str(run.result["seed"]),
                *(units.percent(run.result["metrics"][headline.key]) for headline in self.headlines),
                units.duration(run.result["train_seconds"]),
            ]
            for run in self.runs
        ]

    def cells(self) -> list[str]:
        """Return the cells of `RunTable.header`."""
        numbers = self.as_json()
        size, seconds = numbers["adapter_bytes"], numbers["test_seconds"]
        votes = [units.giga(numbers["macs_all_votes"]), "?" if seconds is None else units.duration(seconds)]
        return [
            self.label,
            *(_mean_and_deviation(*self.metric(headline.key)) for headline in self.headlines),
            units.count(numbers["params"]["trainable"]),
            "?" if size is None else units.file_size(size),
            units.giga(numbers["macs_published"]),
            units.giga(numbers["macs_executed"]),
            units.duration(numbers["train_seconds"]),
            protocol_name(numbers["protocol"]),
            " ".join(map(str, self.seeds)) + (", own clouds" if self.new_shots else ""),
            numbers["augment"],
            *(votes if self.votes > 1 else ()),
        ]


@dataclass(frozen=True)
class RunTable:
    """Rows that may stand side by side.

    Attributes:
        rows: in the order in which their first run was given.
        data: the data set of all of them, as result.json describes it.
    """

    rows: tuple[Row, ...]
    data: Mapping[str, Any]

    @property
    def header(self) -> tuple[str, ...]:
        """Names of the columns."""
        first = self.rows[0]
        votes = VOTES_HEADER if first.votes > 1 else ()
        return ("method", *(headline.label for headline in first.headlines), *HEADER, *votes)

    @property
    def title(self) -> str:
        """Data set, splits and units."""
        data = self.data
        return (
            f"{data_name(data)}, {data['num_train']:,} training and {data['num_test']:,} test "
            f"{units.samples(data)}; {self._quantity} in percent, mean +- standard deviation over "
            "seeds; GMACs: linear and convolution layers, merged, one cloud (what papers call GFLOPs); "
            f"executed: attention and unmerged adapter included{self._votes}"
        )

    @property
    def _votes(self) -> str:
        votes = self.rows[0].votes
        return f"; all votes: executed, {votes} forward passes a cloud" if votes > 1 else ""

    @property
    def _quantity(self) -> str:
        is_accuracy = self.rows[0].headlines[0].key == "oa"
        return "accuracies" if is_accuracy else "intersection over union"

    def as_json(self) -> dict[str, Any]:
        """Return everything in json types."""
        return {"data": dict(self.data), "rows": [row.as_json() for row in self.rows]}

    def write(self, path: str | Path) -> None:
        """Write the table to a file: .md, .csv or .json says how.

        Raises:
            ReportError: for another ending.
            UserValueError: if that is a file of one of the runs.
        """
        path = Path(path)
        read = [file for row in self.rows for run in row.runs for file in run.files.files]
        refuse_overwriting_inputs([path], read)
        cells = [row.cells() for row in self.rows]
        if path.suffix == ".md":
            text = f"{markdown(self.title)}.\n\n{units.markdown_table(self.header, cells)}\n"
            for row in self.rows:
                if len(row.runs) > 1:
                    table = units.markdown_table(row.seed_header(), row.seed_cells())
                    text += f"\n{markdown(row.label)}, seed by seed:\n\n{table}\n"
        elif path.suffix == ".csv":
            text = units.csv_table(self.header, cells)
        elif path.suffix == ".json":
            text = json.dumps(self.as_json(), indent=2) + "\n"
        else:
            raise ReportError(f"{path} ends in {path.suffix!r}; use .md, .csv or .json.")
        write_text(path, text)


def make_table(folders: Sequence[str | Path]) -> RunTable:
    """Gather finished runs into one table; runs that differ only in the seed become one row.

    So do runs whose seeds also chose their training clouds (`pcl-clora train --seeds ... --new-shots`).

    Args:
        folders: run folders.

    Raises:
        ReportError: if a run is not finished, protocols or data sets differ, a run is given twice, or a
            number was chosen on the test set under the honest protocol.
    """
    if not folders:
        raise ReportError("Give at least one run folder.")
    runs = [read_run(folder) for folder in folders]
    tasks = sorted({task_of(run.result) for run in runs})
    if len(tasks) > 1:
        names = " and ".join(tasks)
        raise ReportError(f"These runs cannot stand in one table, they are of {names}. Make a table of each.")
    for section, keys in COMPARED.items():
        sections = [{key: run.result[section].get(key) for key in keys} for run in runs]
        _refuse_mixture(runs, "protocols" if section == "protocol" else "data sets", sections)
    _refuse_mixture(runs, "data sets", [_test_data(run) for run in runs])
    rows = []
    for members, new_shots in _group(runs):
        _refuse_repeats(members)
        ordered = tuple(sorted(members, key=lambda run: run.result["seed"]))
        label = _label(members[0], runs, new_shots=new_shots)
        rows.append(Row(label, ordered, run_cost(members[0].cfg), new_shots))
    return RunTable(tuple(rows), {**runs[0].result["data"], **describe_data(runs[0].cfg.data)})


def protocol_name(protocol: Mapping[str, Any]) -> str:
    """Say a protocol in a few words: "honest, last epoch", "paper, best on test, 10 votes"."""
    select = protocol["select"]
    chosen = "last epoch" if select == "last" else f"best on {select}"
    votes = f", {protocol['votes']} votes" if protocol["votes"] > 1 else ""
    return f"{protocol['name']}, {chosen}{votes}"


def data_name(data: Mapping[str, Any]) -> str:
    """Name data with their folder, which tells a substitute: "scanobjectnn obj_only (lidar)"."""
    if "source" in data:
        return f"{data['name']} of {data_name(data['source'])}"
    name = " ".join(data[key] for key in ("name", "variant") if key in data)
    return f"{name} ({data['folder']})" if "folder" in data else name


def _mean_and_deviation(mean: float, deviation: float | None) -> str:
    return units.percent(mean) + (f" +- {units.percent(deviation)}" if deviation is not None else "")


def _settings(run: RunRecord) -> dict[str, Any]:
    """Everything that makes a row of its own."""
    bfloat16 = precision_of(run.cfg, run.result) == "bfloat16"  # what train.amp=auto came to
    settings = run_identity(run.cfg, bfloat16=bfloat16, product=run.result.get("product", "torch"))
    return {key: value for key, value in settings.items() if key not in WITHOUT_MEANING}


def _group(runs: Sequence[RunRecord]) -> list[tuple[list[RunRecord], bool]]:
    """Put the runs of a row together, and say whether each of its seeds drew its own training clouds."""
    alike: dict[str, dict[Any, list[RunRecord]]] = {}
    for run in runs:
        settings = _settings(run)
        shots = settings.pop(SHOTS, 0)
        alike.setdefault(json.dumps(settings, sort_keys=True), {}).setdefault(shots, []).append(run)
    groups: list[tuple[list[RunRecord], bool]] = []
    for by_shots in alike.values():
        members = [(shots, run) for shots, those in by_shots.items() for run in those]
        if len(by_shots) > 1 and all(shots == run.result["seed"] for shots, run in members):
            groups.append(([run for _, run in members], True))
        else:
            groups += [(those, False) for those in by_shots.values()]
    return groups


def _test_data(run: RunRecord) -> dict[str, Any]:
    """List the settings that decide which clouds a run was tested on."""
    settings = run_identity(run.cfg)
    return {
        key: value
        for key, value in settings.items()
        if key.startswith("data.") and key.rpartition(".")[2] not in FREE_DATA
    }


def _refuse_mixture(runs: Sequence[RunRecord], what: str, sections: Sequence[Mapping[str, Any]]) -> None:
    """Raise if what is said of the runs is not the same of all of them."""
    first = runs[0]
    for run, now in zip(runs[1:], sections[1:], strict=True):
        different = differences(sections[0], now)
        if different:
            raise ReportError(
                f"These runs cannot stand in one table, their {what} differ: {first.files.path} and "
                f"{run.files.path}: {'; '.join(different)}. Make a table of each."
            )


def _refuse_repeats(members: Sequence[RunRecord]) -> None:
    seen: dict[int, RunRecord] = {}
    for run in members:
        other = seen.setdefault(run.result["seed"], run)
        if other is not run:
            raise ReportError(
                f"{other.files.path} and {run.files.path} have the same settings and seed "
                f"{run.result['seed']}; counting both would make the deviation look small. Leave one out."
            )


def _label(run: RunRecord, runs: Sequence[RunRecord], *, new_shots: bool) -> str:
    """Name the method, and the settings that tell it from other rows of the same method."""
    mine = _settings(run)
    rivals = [_settings(other) for other in runs if other.result["method"] == run.result["method"]]
    telling = [key for key in mine if any(rival.get(key) != mine[key] for rival in rivals)]
    telling = [key for key in telling if key != "augment" and not (new_shots and key == SHOTS)]
    label = str(run.result["method"])
    return f"{label} ({', '.join(f'{key}={mine[key]}' for key in telling)})" if telling else label
