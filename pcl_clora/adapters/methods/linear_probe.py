"""Linear probing: the backbone is frozen, only the head learns."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import model_validator

from pcl_clora.adapters.base import AdapterMethod
from pcl_clora.adapters.config import AdapterConfig
from pcl_clora.errors import UserValueError
from pcl_clora.models.interface import Part


class LinearProbeConfig(AdapterConfig):
    """Settings of linear probing."""

    method: Literal["linear_probe"] = "linear_probe"
    train: tuple[Part, ...] = ("head",)  # "head" alone is the usual probe

    @model_validator(mode="after")
    def _train_something(self) -> LinearProbeConfig:
        if not self.train:
            raise UserValueError(
                "linear_probe with an empty train has nothing to learn; name at least 'head'."
            )
        return self


class LinearProbe(AdapterMethod):
    """Train the parts that the config names and nothing else.

    No layer is changed, so merging changes nothing. The name is the field's: the family's head has three
    linear layers.
    """

    config_type: ClassVar[type[AdapterConfig]] = LinearProbeConfig
    linear: ClassVar[bool] = True
