"""What the files of a run must hold, so that something can be said of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, NonNegativeInt, PositiveInt, ValidationError, model_validator

from pcl_clora.errors import UserValueError
from pcl_clora.io import DataError
from pcl_clora.io.safe import parse_json

SHOWN = 5  # problems of a file that a message names


class ReportError(UserValueError):
    """A report that cannot or must not be made; the message says why and what to do."""


class Shape(BaseModel):
    """A mapping of which some keys are needed; a number is not a text, and the others are not looked at."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class ProtocolShape(Shape):
    """How the number was chosen."""

    name: str
    select: str
    votes: PositiveInt
    val_fraction: float = 0.0
    vote_augment: str = ""


class ChosenShape(Shape):
    """The epoch that counts."""

    epoch: NonNegativeInt
    selected_on: str = "last"


class DataShape(Shape):
    """What was trained and tested on."""

    name: str
    num_train: NonNegativeInt
    num_validation: NonNegativeInt = 0
    num_test: NonNegativeInt
    num_points: PositiveInt
    variant: str = ""
    folder: str = ""
    kind: str = ""


class ParamsShape(Shape):
    """Counts of parameters; there may be others beside them."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, NonNegativeInt]
    trainable: NonNegativeInt


class BinShape(Shape):
    """A bin of a reliability plot."""

    count: NonNegativeInt
    confidence: float | None
    accuracy: float | None


class ReliabilityShape(Shape):
    """Whether confidences are true."""

    unit: str
    ece: float
    bins: list[BinShape]


class MetricsShape(Shape):
    """What was measured on the test split, besides the numbers of the task."""

    loss: float | None  # null where it was not finite
    oa: float | None = None
    macc: float | None = None
    instance_miou: float | None = None
    class_miou: float | None = None
    accuracy: float | None = None
    part_accuracy: float | None = None
    per_class: dict[str, float | None] = {}
    per_category: dict[str, float | None] = {}
    per_part: dict[str, float | None] = {}
    confusion: list[list[NonNegativeInt]] = []
    reliability: ReliabilityShape | None = None

    @model_validator(mode="after")
    def _check(self) -> MetricsShape:
        size = len(self.per_part or self.per_class)
        if self.confusion and [len(row) for row in self.confusion] != [size] * size:
            raise UserValueError(
                f"confusion has {len(self.confusion)} rows, expected {size} of {size} counts"
            )
        return self


class EvaluationShape(Shape):
    """What the evaluation on test cost."""

    seconds: float
    passes_per_cloud: PositiveInt = 1


class ResultShape(Shape):
    """The content of result.json, as reports read it."""

    name: str
    config_hash: str
    protocol: ProtocolShape
    seed: NonNegativeInt
    augment: str
    git: str | None
    versions: dict[str, str]
    model: str
    data: DataShape
    method: str
    metrics: MetricsShape
    params: ParamsShape
    epochs: NonNegativeInt
    steps: NonNegativeInt
    train_seconds: float
    evaluation: EvaluationShape | None = None
    best: ChosenShape
    adapter_bytes: NonNegativeInt | None = None
    task: str = "classification"


class EventShape(Shape):
    """A line of metrics.jsonl that a learning curve is drawn from."""

    epoch: NonNegativeInt
    split: str = "train"
    loss: float | None
    lr: float | None = None
    oa: float | None = None
    instance_miou: float | None = None


def parse_object(where: str | Path, text: str | bytes) -> dict[str, Any]:
    """Read a json object of a run's file.

    Raises:
        ReportError: naming the place, and what was found there.
    """
    try:
        return parse_json(where, text)
    except DataError as error:
        raise ReportError(str(error)) from error


def check_shape(
    shape: type[Shape],
    content: Mapping[str, Any],
    where: str | Path,
    *,
    writer: str = "a run",
    remedy: str = "train again",
) -> None:
    """Refuse what is not of a shape, naming keys with what was found and expected.

    Raises:
        ReportError: naming the file, at most `SHOWN` keys, and the remedy.
    """
    try:
        shape.model_validate(content)
    except ValidationError as error:
        problems = [_say(problem) for problem in error.errors()]
        more = f"; and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
        raise ReportError(
            f"{where} is not as {writer} writes it: {'; '.join(problems[:SHOWN])}{more}. "
            f"Restore the file, or {remedy}."
        ) from error


def _say(problem: Mapping[str, Any]) -> str:
    key = ".".join(map(str, problem["loc"]))
    if problem["type"] == "value_error":
        return f"{key}: {problem['ctx']['error']}"
    if problem["type"] == "missing":
        return f"{key} is missing"
    found = repr(problem["input"])
    found = found if len(found) <= 60 else f"{found[:57]}..."
    expected = str(problem["msg"]).removeprefix("Input should be ").removeprefix("a valid ")
    return f"{key} is {found}, expected {expected}"
