"""What a search is: base settings, what varies and how far, a budget, and how long it goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, NonNegativeInt, PositiveInt, model_validator

from pcl_clora.config import Config, ConfigError, build, merge, parse_overrides, read_yaml
from pcl_clora.engine import RunConfig
from pcl_clora.errors import UserValueError

if TYPE_CHECKING:
    from optuna.trial import Trial


class DimensionConfig(Config):
    """Values that a setting may have: a list, or everything from low to high."""

    choices: tuple[Any, ...] = ()  # in place of the others
    low: int | float | None = None
    high: int | float | None = None  # included
    step: int | float | None = None  # of whole numbers 1 where none is given
    log: bool = False  # low to high by factors and not by differences

    @model_validator(mode="after")
    def _check(self) -> DimensionConfig:
        ends = (self.low, self.high)
        if self.choices:
            if ends != (None, None) or self.step is not None or self.log:
                raise UserValueError("choices stand alone; leave low, high, step and log out")
            if len(set(map(_label, self.choices))) < len(self.choices):
                raise UserValueError(f"choices={list(self.choices)} name a value twice")
            return self
        if self.low is None or self.high is None or not self.low < self.high:
            raise UserValueError(f"low={ends[0]}, high={ends[1]}: give choices, or low below high")
        if self.log and (self.low <= 0 or self.step is not None):
            raise UserValueError(f"low={self.low:g}, step={self.step}: log needs low above 0 and no step")
        if self.step is not None and not 0 < self.step <= self.high - self.low:
            raise UserValueError(f"step={self.step:g} must be above 0 and at most high - low")
        return self

    @property
    def is_whole(self) -> bool:
        """Whether the values between low and high are whole numbers."""
        return all(isinstance(value, int) for value in (self.low, self.high, self.step or 1))

    @property
    def corners(self) -> tuple[Any, ...]:
        """All choices, or low and high."""
        return self.choices or (self.low, self.high)

    def suggest(self, trial: Trial, key: str) -> Any:
        """Let a trial choose a value for the setting `key`."""
        if self.choices:
            labels = {_label(value): value for value in self.choices}
            return labels[trial.suggest_categorical(key, list(labels))]
        assert self.low is not None
        assert self.high is not None
        if self.is_whole:
            low, high, step = int(self.low), int(self.high), int(self.step or 1)
            return trial.suggest_int(key, low, high, step=step, log=self.log)
        return trial.suggest_float(key, self.low, self.high, step=self.step, log=self.log)


def _label(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


class BudgetConfig(Config):
    """What an adapter may take at most; 0 = no limit. A trial beyond it is refused before it trains."""

    adapter_parameters: NonNegativeInt = 0  # that the method adds, without head and tokens
    file_kib: NonNegativeInt = 0  # size of the adapter file with everything in it


class HalvingConfig(Config):
    """Successive halving: at min_epochs, and at every factor times as many, the best 1/factor go on."""

    min_epochs: PositiveInt = 4
    factor: PositiveInt = Field(3, ge=2)


class SearchConfig(Config):
    """Settings of a search, as its yaml file has them."""

    title: str = ""
    base: str  # yaml file of a run, relative to the file of the search
    settings: dict[str, Any] = Field({})  # over those of base, of the trials and of what they lead to
    trial_settings: dict[str, Any] = Field({})  # of the trials besides, such as data.val_shots
    space: dict[str, DimensionConfig] = Field(min_length=1)  # dotted setting -> its values
    budget: BudgetConfig = BudgetConfig()
    trials: PositiveInt = 40  # that are trained; refused ones do not count
    startup: PositiveInt = 10  # drawn evenly, before the sampler has something to go by
    halving: HalvingConfig | None = HalvingConfig()  # null = every trial is trained to its end
    seed: NonNegativeInt = 0  # of the sampler


@dataclass(frozen=True)
class Search:
    """A search with its base settings resolved.

    Attributes:
        name: of its file.
        cfg: its settings.
        values: of base and search, nested.
        last: of the command line, which win over everything.
    """

    name: str
    cfg: SearchConfig
    values: Mapping[str, Any]
    last: Mapping[str, Any]

    def chosen(self, params: Mapping[str, Any]) -> RunConfig:
        """Return the settings of a run with these values: what `train` takes."""
        return self._build(params, {"name": f"{self.name}_best"})

    def trial(self, params: Mapping[str, Any]) -> RunConfig:
        """Return the settings of a trial: judged on held-out clouds of train, after every epoch."""
        judged = {
            "name": "trial",
            "protocol": {"name": "honest", "select": "validation"},
            "train": {"eval_every_epochs": 1, "test_curve": False},
        }
        return self._build(params, merge(judged, self.cfg.trial_settings))

    def _build(self, params: Mapping[str, Any], besides: Mapping[str, Any]) -> RunConfig:
        values = merge(self.values, parse_overrides([f"{key}={_label(params[key])}" for key in params]))
        source = f"search {self.name}, {dict(params)}" if params else f"search {self.name}"
        return build(RunConfig, merge(merge(values, besides), self.last), source=source)


def load_search(path: str | Path, overrides: Sequence[str] = ()) -> Search:
    """Read a search.

    Args:
        path: the yaml file.
        overrides: key=value settings of all runs, which come last, for example data.root=/data/modelnet40.

    Raises:
        ConfigError: if a setting is wrong or unknown, or a value of the space is one that no run can have.
    """
    path = Path(path)
    cfg = build(SearchConfig, read_yaml(path), source=str(path))
    last = parse_overrides(overrides)
    search = Search(path.stem, cfg, merge(read_yaml(path.parent / cfg.base), cfg.settings), last)
    for key in cfg.space:
        if any(key == given.partition("=")[0].strip() for given in overrides):
            raise ConfigError(f"{key} is given on the command line, but {path} searches it; leave it out.")
    usable = {key: _usable(search, key, dimension) for key, dimension in cfg.space.items()}
    search.trial({key: values[0] for key, values in usable.items()})
    return search


def _usable(search: Search, key: str, dimension: DimensionConfig) -> list[Any]:
    """List the ends of a dimension that the base settings allow.

    Raises:
        ConfigError: if they allow none; what may go with other values of the rest is left to the trials.
    """
    usable: list[Any] = []
    problems: list[ConfigError] = []
    for value in dimension.corners:
        try:
            search.trial({key: value})
        except ConfigError as error:
            problems.append(error)
        else:
            usable.append(value)
    if not usable:
        raise problems[0]
    return usable
