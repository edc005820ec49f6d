"""Full fine-tuning, as an adapter: it owns a copy of every tensor of the backbone."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import model_validator
from torch import nn

from pcl_clora.adapters.base import AdapterMethod, TunerLayer
from pcl_clora.adapters.config import AdapterConfig, FreezeConfig
from pcl_clora.adapters.paths import at_or_inside, join, walk
from pcl_clora.adapters.plan import tracks_statistics
from pcl_clora.errors import UserValueError
from pcl_clora.models.interface import PARTS, ModelInterface, Part


class FullConfig(AdapterConfig):
    """Settings of full fine-tuning."""

    method: Literal["full"] = "full"
    train: tuple[Part, ...] = PARTS  # everything; cannot be less
    freeze: FreezeConfig = FreezeConfig(norm_stats="track")  # nothing is frozen

    @model_validator(mode="after")
    def _train_everything(self) -> FullConfig:
        if set(self.train) != set(PARTS):
            raise UserValueError(
                f"full trains every part; leave train out, or use linear_probe with train={self.train}."
            )
        if self.freeze.norm_stats != "track":
            raise UserValueError(
                "full trains every part, and a trained part's normalisation moves; leave freeze out."
            )
        return self


class Full(AdapterMethod):
    """Train everything that the network runs, on a copy.

    The base's own tensors are kept, so `disabled()` works and the memory for weights doubles. Merging changes
    nothing; `merge_and_unload()` returns the trained backbone.
    """

    config_type: ClassVar[type[AdapterConfig]] = FullConfig
    linear: ClassVar[bool] = True

    def owned_paths(self, model: nn.Module, interface: ModelInterface) -> dict[str, str]:
        """Name everything in the backbone: the parts it publishes by their name, the rest by layer."""
        paths = {path: f"part {part}" for part in self.config.train for path in interface.parts.get(part, ())}
        for node in walk(model):
            module = node.module
            if isinstance(module, TunerLayer):
                continue
            parameters = [name for name, _ in module.named_parameters(recurse=False)]
            if not any(True for _ in module.children()) and (parameters or tracks_statistics(module)):
                paths.setdefault(node.path, "full")
            else:
                paths.update(
                    {
                        join(node.path, name): "full"
                        for name in parameters
                        if join(node.path, name) not in paths
                    }
                )
        return {path: why for path, why in paths.items() if not at_or_inside(path, interface.unused)}
