"""Settings that every adapter method has."""

from __future__ import annotations

from typing import Literal, TypeVar

from pydantic import field_validator

from pcl_clora.config import Config
from pcl_clora.errors import UserValueError
from pcl_clora.models.interface import Part


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
