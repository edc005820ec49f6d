"""Settings that every data set has."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import NonNegativeInt, PositiveInt, model_validator

from pcl_clora.config import Config
from pcl_clora.data.input_rule import InputRule, Up
from pcl_clora.errors import UserValueError


class DataConfig(Config):
    """Settings of a data set; a data set's own settings are in a subclass next to its reader."""

    reads_files: ClassVar[bool] = True  # whether `root` must be given
    kind: ClassVar[Literal["points", "images"]] = "points"  # images are neither sampled nor augmented
    # Whether `shots` is a matter of the reader; otherwise build_dataset leaves other training clouds out.
    shots_in_reader: ClassVar[bool] = False
    # What published code draws from numpy's global generator when it reads a cloud: not known, the order
    # of a training cloud's points (added by build_dataset), or something that the reader does itself.
    paper_draws: ClassVar[Literal["unknown", "order", "in_reader"]] = "unknown"

    reads_below: ClassVar[bool] = False  # whether clouds lie in any folder below `root`

    may_turn: ClassVar[bool] = True  # whether `up` means something: not where y points up already

    name: str  # which data set, see list_datasets()
    root: str = ""  # folder of the files; empty where nothing is read from disk
    num_points: PositiveInt = 1024  # N, points of a cloud that the model sees
    pool_points: NonNegativeInt = 0  # points read a cloud, of which num_points are resampled; 0 = num_points
    shots: NonNegativeInt = 0  # training clouds a class, chosen by shots_seed; 0 = all there are
    shots_seed: NonNegativeInt = 0  # decides which ones
    val_shots: NonNegativeInt = 0  # training clouds a class that validation has, none of them among shots
    sampling: Literal["stored", "paper"] = (
        "stored"  # "paper" = draws of published code, see paper_sampling.py
    )
    sampling_seed: NonNegativeInt = 0  # seed of these draws
    allow_empty_classes: bool = False  # train although classes have no training clouds
    up: Up = "y"  # axis of the files that points up; clouds are turned so that it is y
    leave_out: tuple[str, ...] = ()  # classes whose clouds are not read; the others are numbered anew

    def left_out(self) -> frozenset[str]:
        """Name the settings that came later, where they have their default; see `Config.left_out`."""
        later = ("shots", "shots_seed", "val_shots", "sampling", "sampling_seed", "allow_empty_classes", "up")
        return super().left_out() | self.at_default(*later, "leave_out")

    def file_root(self) -> str:
        """Name the folder below which files are named for their draws; "" where that is not known."""
        return self.root

    def listed_files(self) -> list[Path] | None:
        """Name the files of the data where they are not all that lie below `root`; None elsewhere."""
        return None

    @property
    def read_points(self) -> int:
        """Points that a sample of this data set holds."""
        return self.pool_points or self.num_points

    @property
    def has_validation(self) -> bool:
        """Whether the data set has a validation split of its own that is not trained on."""
        return False

    def input_rule(self) -> InputRule:
        """Return the rule by which clouds of this data set are read, and others like them."""
        return self.make_rule()

    def make_rule(self, **settings: Any) -> InputRule:
        """Make a rule of what every data set has and of what one says of itself."""
        sizes = {"num_points": self.num_points, "read_points": self.read_points, "up": self.up}
        return InputRule.model_validate({**sizes, **settings})

    @model_validator(mode="after")
    def _check_pool(self) -> DataConfig:
        if 0 < self.pool_points < self.num_points:
            raise UserValueError(
                f"pool_points={self.pool_points} is less than num_points={self.num_points}; raise it, or set "
                "it to 0 to read num_points."
            )
        if self.up != "y" and not self.may_turn:
            raise UserValueError(
                f"up={self.up} turns the clouds of files, but {self.name} has y up already; leave it "
                "out (packed data are turned when they are packed)."
            )
        if self.sampling == "paper" and self.paper_draws == "unknown":
            raise UserValueError(
                f"sampling=paper is not defined for the data set {self.name}, which published code "
                "does not read; use sampling=stored."
            )
        return self

    @model_validator(mode="after")
    def _check_val_shots(self) -> DataConfig:
        if self.val_shots and (self.shots_in_reader or self.has_validation or not self.shots):
            raise UserValueError(
                f"val_shots={self.val_shots} takes validation clouds from the training clouds that "
                f"shots={self.shots} leaves over; of {self.name} there are none. Set shots, or val_shots=0."
            )
        return self

    def claims(self, folder: Path) -> bool:
        """Tell whether what is written into a folder would stand among the clouds of this data set."""
        root = Path(self.root).resolve()
        inside = folder.resolve().is_relative_to(root) if self.reads_below else folder.resolve() == root
        return bool(self.root) and inside

    def for_one_pass(self) -> DataConfig:
        """Return settings with the same samples that keep none of them in memory, as far as there are any."""
        return self
