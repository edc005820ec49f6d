"""Settings that every adapter method has."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeVar

from pydantic import field_validator
from typing_extensions import Self

from pcl_clora.config import Config
from pcl_clora.errors import UserValueError
from pcl_clora.models.interface import Part

Task = Literal["classification", "part_segmentation"]


@dataclass(frozen=True)
class Recipe:
    """How a method was trained when it was published; the defaults are Point-MAE's own fine-tuning.

    Attributes:
        lr, weight_decay, epochs, warmup_epochs, batch_size, clip_norm, double_step: of `optim`.
        augment: name of the training augmentation.
        drop_path: of the backbone.
        num_points, num_groups: points of a cloud, and its patches.
        note: what these names do not say.
    """

    lr: float = 5e-4
    weight_decay: float = 0.05
    epochs: int = 300
    warmup_epochs: int = 10
    batch_size: int = 32
    clip_norm: float = 10.0
    augment: str = "scale_shift"
    drop_path: float = 0.1
    num_points: int = 2048
    num_groups: int = 128
    double_step: bool = False
    note: str = ""


class FreezeConfig(Config):
    """What "frozen" means for layers that change without a gradient."""

    norm_stats: Literal["frozen", "track"] = "frozen"  # "track": BatchNorm statistics of frozen parts move


class AdapterConfig(Config):
    """Settings of an adapter; the settings of a method are in a subclass next to its code."""

    method: str  # which method, see list_adapters()
    train: tuple[Part, ...] = ("head", "tokens")  # parts of the backbone that are trained besides
    freeze: FreezeConfig = FreezeConfig()  # what happens to the statistics of frozen parts

    def effective(self) -> AdapterConfig:
        """Return settings that train the same adapter, with those that change nothing at their defaults."""
        return self

    @cached_property
    def recipe(self) -> Recipe | None:
        """How the method was trained with these settings when they were published; None for all others.

        It is no setting: in no dump, hash or comparison.
        """
        return None

    def with_recipe(self, recipe: Recipe) -> Self:
        """Return the same settings, with a recipe."""
        config = self.model_copy()
        vars(config)["recipe"] = recipe
        return config

    @field_validator("train")
    @classmethod
    def _name_parts_once(cls, train: tuple[Part, ...]) -> tuple[Part, ...]:
        return unique(train, "train")


class LayerwiseConfig(AdapterConfig):
    """Settings of an adapter that changes the layers of blocks, of all of them or of some."""

    blocks: tuple[int, ...] = ()  # which blocks, from 0, or from the end with -1; none named = all

    @field_validator("blocks")
    @classmethod
    def _name_blocks_once(cls, blocks: tuple[int, ...]) -> tuple[int, ...]:
        return unique(blocks, "blocks")

    def left_out(self) -> frozenset[str]:
        """Leave out `blocks` while it says all."""
        return super().left_out() | self.at_default("blocks")


NameT = TypeVar("NameT", bound=str | int)


def unique(names: tuple[NameT, ...], setting: str) -> tuple[NameT, ...]:
    """Return the names.

    Raises:
        ValueError: if a name is given twice.
    """
    repeated = sorted({str(name) for name in names if names.count(name) > 1})
    if repeated:
        raise UserValueError(f"{setting} names {', '.join(repeated)} more than once; name each only once.")
    return names
