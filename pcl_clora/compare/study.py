"""A study: base settings, the differences of its rows, seeds; and the runs that it consists of."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, NonNegativeInt, PositiveInt, field_validator

from pcl_clora.config import (
    Config,
    ConfigError,
    build,
    merge,
    parse_overrides,
    read_yaml,
    unknown_name,
)
from pcl_clora.data.corruptions import FAMILIES, SEVERITIES, list_corruptions
from pcl_clora.engine import RunConfig
from pcl_clora.engine.config import differences, flatten, run_identity
from pcl_clora.engine.several_seeds import with_seed
from pcl_clora.errors import UserValueError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+=,-]{0,79}")
_NOT_ITS_OWN = ("data.root", "data.source.root")  # where clouds lie says nothing of what they are


def _check_name(name: str) -> str:
    if not _NAME.fullmatch(name) or name.endswith("."):
        raise UserValueError(
            f"row {name!r} must begin with a letter or a digit, go on with those or _ . + = , - and have at "
            "most 80 of them: it is the name of a folder too"
        )
    return name


class ChooseConfig(Config):
    """How a setting of every row is chosen: a trial for each value, judged on held-out clouds of train."""

    setting: str = "optim.lr"  # which; dotted
    values: tuple[float, ...] = Field(min_length=1)  # tried in every row that names no others
    seed: NonNegativeInt = 0  # of all trials; it draws their shots where those of the seeds are drawn
    settings: dict[str, Any] = Field({})  # of the trials besides, such as data.val_shots


class RobustnessConfig(Config):
    """Which corruptions of the test clouds a run is measured on."""

    corruptions: tuple[str, ...] = Field(min_length=1)  # families, or single ones
    severities: tuple[PositiveInt, ...] = (3,)  # 1 (weak) to 5 (strong)
    seed: NonNegativeInt = 0  # decides the corruptions, the same for every run

    @field_validator("corruptions")
    @classmethod
    def _name_them(cls, given: tuple[str, ...]) -> tuple[str, ...]:
        names: list[str] = []
        for name in given:
            if name not in (*FAMILIES, *list_corruptions()):
                raise UserValueError(
                    unknown_name(name, (*FAMILIES, *list_corruptions()), what="corruption or family")
                )
            names += list_corruptions(name) if name in FAMILIES else [name]
        return tuple(dict.fromkeys(names))

    @field_validator("severities")
    @classmethod
    def _check_severities(cls, given: tuple[int, ...]) -> tuple[int, ...]:
        wrong = [severity for severity in given if severity not in SEVERITIES]
        if wrong:
            raise UserValueError(f"severity {wrong[0]} does not exist; corruptions have 1 to 5")
        return given


class RowConfig(Config):
    """What tells a row from the base settings."""

    settings: dict[str, Any] = Field({})  # over those of base and study, nested as in a run's yaml file
    seeds: tuple[NonNegativeInt, ...] = ()  # none named = those of the study
    choose: tuple[float, ...] = ()  # values tried here; none named = those of the study
    chosen_by: str = ""  # the row whose choice is taken, without trials of its own
    each: dict[str, tuple[Any, ...]] = Field({})  # dotted setting -> values; one row for every combination


class StudyConfig(Config):
    """Settings of a study, as its yaml file has them."""

    title: str = ""  # of tables and page
    base: str  # yaml file of a run, relative to the study's file
    settings: dict[str, Any] = Field({})  # of all runs, over those of base
    seeds: tuple[NonNegativeInt, ...] = (0, 1, 2)
    new_shots: bool = False  # each seed draws its own training clouds, see data.shots
    choose: ChooseConfig | None = None  # not set = the settings are taken as they are
    robustness: RobustnessConfig | None = None  # not set = clean clouds only
    baseline: str = ""  # the row that others are tested against; none named = the first
    pairs: tuple[tuple[str, str], ...] = ()  # further comparisons that are asked for: this row against that
    rows: dict[str, RowConfig] = Field(min_length=1)  # by name, the most important first

    @field_validator("rows")
    @classmethod
    def _check_rows(cls, rows: dict[str, RowConfig]) -> dict[str, RowConfig]:
        for name in rows:
            _check_name(name)
        return rows


@dataclass(frozen=True)
class Run:
    """One training of a study.

    Attributes:
        row: name of its row.
        seed: of the run.
        trial: the value that is tried; None where the run counts.
    """

    row: str
    seed: int
    trial: float | None = None

    @property
    def name(self) -> str:
        """Name inside its row: "seed0", "trial0.002"."""
        return f"seed{self.seed}" if self.trial is None else f"trial{self.trial:g}"

    def __str__(self) -> str:
        return f"{self.row}/{self.name}"


@dataclass(frozen=True)
class Row:
    """A row with everything resolved.

    Attributes:
        name: as the study calls it.
        cfg: settings of its runs, of no seed yet.
        seeds: that count.
        values: that are tried; empty for none.
        chooser: the row whose choice it takes; its own name, or "" where nothing is chosen.
        varied: value of every setting that `each` of it goes through.
    """

    name: str
    cfg: RunConfig
    seeds: tuple[int, ...]
    values: tuple[float, ...]
    chooser: str
    varied: Mapping[str, Any]

    def identity(self) -> dict[str, Any]:
        """List the settings that decide its numbers, without the seeds."""
        settings = identity(self.cfg.model_copy(update={"adapter": self.cfg.adapter.effective()}))
        return {key: value for key, value in settings.items() if key not in ("seed", "data.shots_seed")}


def identity(cfg: RunConfig) -> dict[str, Any]:
    """List the settings that decide the numbers of a run, wherever its clouds lie."""
    return {key: value for key, value in run_identity(cfg).items() if key not in _NOT_ITS_OWN}


@dataclass(frozen=True)
class Study:
    """A study with all rows resolved.

    Attributes:
        name: of its file.
        cfg: its settings.
        base: settings that all rows start from.
        rows: in the order of the file.
    """

    name: str
    cfg: StudyConfig
    base: RunConfig
    rows: Mapping[str, Row]

    @property
    def baseline(self) -> str:
        """The row that others are tested against."""
        return self.cfg.baseline or next(iter(self.rows))

    @property
    def corruptions(self) -> list[tuple[str, int]]:
        """(corruption, severity) of every evaluation besides the clean one."""
        robust = self.cfg.robustness
        return [] if robust is None else list(itertools.product(robust.corruptions, robust.severities))

    def runs(self, rows: Sequence[str] = ()) -> list[Run]:
        """List all runs: a seed of every row, with its trials before, then the next seed.

        Args:
            rows: only these; all by default. Trials of the rows whose choice they take are among them.

        Raises:
            ConfigError: if a row is not known.
        """
        for name in rows:
            self.row(name)
        chosen = [row for name, row in self.rows.items() if not rows or name in rows]
        runs: list[Run] = []
        for turn in range(max(len(row.seeds) for row in chosen)):
            for row in chosen:
                if turn == 0 and row.chooser:
                    runs += self.trials(self.rows[row.chooser])
                if turn < len(row.seeds):
                    runs.append(Run(row.name, row.seeds[turn]))
        return list(dict.fromkeys(runs))

    def trials(self, row: Row) -> list[Run]:
        """List the trials of a row."""
        if not row.values:
            return []
        assert self.cfg.choose is not None
        return [Run(row.name, self.cfg.choose.seed, value) for value in row.values]

    def row(self, name: str) -> Row:
        """Return a row.

        Raises:
            ConfigError: if there is none of this name.
        """
        if name not in self.rows:
            raise ConfigError(unknown_name(name, self.rows, what="row", owner=f"study {self.name}"))
        return self.rows[name]

    def settings(self, run: Run, chosen: float | None = None) -> RunConfig:
        """Return the settings of a run.

        Args:
            run: which.
            chosen: the value that its row, or the row it takes its choice from, has chosen.
        """
        row, choose = self.rows[run.row], self.cfg.choose
        cfg = with_seed(row.cfg, run.seed, new_shots=self.cfg.new_shots)
        value = run.trial if run.trial is not None else chosen
        changes: dict[str, Any] = {"name": run.name}
        if value is not None:
            assert choose is not None
            changes = merge(changes, parse_overrides([f"{choose.setting}={value!r}"]))
        if run.trial is not None:
            assert choose is not None
            wanted = {
                "protocol": {"name": "honest", "select": "validation"},
                "train": {"eval_every_epochs": cfg.optim.epochs, "test_curve": False},
            }
            changes = merge(merge(changes, wanted), choose.settings)
        return build(
            RunConfig, merge(cfg.model_dump(mode="json"), changes), source=f"study {self.name}, {run}"
        )


def load_study(path: str | Path, overrides: Sequence[str] = ()) -> Study:
    """Read a study and resolve its rows.

    Args:
        path: the yaml file.
        overrides: key=value settings of all runs, which come last, for example data.root=/data/modelnet40.

    Raises:
        ConfigError: if a setting is wrong or unknown, two rows are the same run, or a row names one that is
            not there; the message names the row.
    """
    path = Path(path)
    cfg = build(StudyConfig, read_yaml(path), source=str(path))
    own = {"train": {"novelty": 0}}  # nobody predicts with the runs of a study, unless its files say so
    values = merge(own, merge(read_yaml(path.parent / cfg.base), cfg.settings))
    last = parse_overrides(overrides)
    base = build(RunConfig, merge(values, last), source=f"{path}, base {cfg.base}")
    if cfg.robustness is not None and base.model.task != "classification":
        raise ConfigError(f"{path}: robustness is measured for classification, not for {base.model.task}.")
    rows: dict[str, Row] = {}
    for name, given in cfg.rows.items():
        for row in _resolve(cfg, name, given, values, last, f"{path}, row {name!r}"):
            if row.name in rows:
                raise ConfigError(f"{path}: there are two rows {row.name!r}; give one another name.")
            rows[row.name] = row
    study = Study(path.stem, cfg, base, rows)
    _check(study, path)
    return study


def _resolve(
    cfg: StudyConfig,
    name: str,
    row: RowConfig,
    values: Mapping[str, Any],
    last: Mapping[str, Any],
    where: str,
) -> Iterator[Row]:
    """Resolve a row, or every row of its combinations."""
    if cfg.choose is None and (row.choose or row.chosen_by):
        raise ConfigError(f"{where} chooses, but the study has no section `choose`; add it.")
    if row.choose and row.chosen_by:
        raise ConfigError(f"{where} has both choose and chosen_by; leave one out.")
    tried = () if cfg.choose is None or row.chosen_by else row.choose or cfg.choose.values
    seeds = row.seeds or cfg.seeds
    for given, what in ((tried, "value"), (seeds, "seed")):
        if len(set(given)) < len(given):
            raise ConfigError(f"{where} names a {what} twice; a run counts once.")
    for combination in itertools.product(*row.each.values()):
        varied = dict(zip(row.each, combination, strict=True))
        label = ",".join(f"{key.rpartition('.')[2]}={value}" for key, value in varied.items())
        settings: dict[str, Any] = dict(row.settings)
        for key, value in varied.items():
            nested: Any = value
            for part in reversed(key.split(".")):
                nested = {part: nested}
            settings = merge(settings, nested)
        full = _check_name(f"{name},{label}" if label else name)
        one = build(RunConfig, merge(merge(values, settings), last), source=where)
        yield Row(full, one, seeds, tried, row.chosen_by or (full if tried else ""), varied)


def _check(study: Study, path: Path) -> None:
    """Refuse rows that are the same run, settings that no run can have, and rows that are not there."""
    seen: dict[str, str] = {}
    for name, row in study.rows.items():
        other = seen.setdefault(repr(sorted(row.identity().items())), name)
        if other != name:
            raise ConfigError(
                f"{path}: rows {other!r} and {name!r} are the same run, their settings come to the same; "
                "leave one out."
            )
        if row.chooser and not study.row(row.chooser).values:
            raise ConfigError(
                f"{path}: row {name!r} takes the choice of {row.chooser!r}, which makes none itself; name "
                "a row with trials."
            )
        for run in study.runs([name]):
            values = study.rows[row.chooser].values if row.chooser else (None,)
            study.settings(run, values[0])  # refuses what no run can have
    for name in (study.baseline, *itertools.chain(*study.cfg.pairs)):
        study.row(name)


def describe(study: Study) -> dict[str, Any]:
    """Say what a study is, for study.json: everything in json types."""
    return {
        "study": study.name,
        "title": study.cfg.title or study.name,
        "baseline": study.baseline,
        "base": identity(study.base),
        "settings": study.cfg.model_dump(mode="json"),
    }


def base_differences(there: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """List the base settings in which two studies differ, as `describe` has them.

    The setting that every row chooses is none of them: what the base has there decides nothing.
    """
    chosen = {(told["settings"].get("choose") or {}).get("setting") for told in (there, now)}
    bases = [{k: v for k, v in told["base"].items() if chosen != {k}} for told in (there, now)]
    return differences(*bases)


def differing(study: Study, row: Row) -> dict[str, Any]:
    """List the settings in which a row differs from the base: dotted key -> value."""
    base, own = flatten(study.base), flatten(row.cfg)
    return {key: value for key, value in own.items() if base.get(key) != value}
