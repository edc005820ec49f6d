"""What weights are loaded into: the tensors of a plain backbone, also of one that lies below adapters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, cast

from torch import Tensor, nn

from pcl_clora.models.errors import WeightsError


class CarriesAdapters(Protocol):
    """A model around a backbone with adapters, known by `backbone_tensors`: what loading asks of it.

    Attributes:
        base: the backbone.
    """

    base: nn.Module

    @property
    def active(self) -> str | None:
        """Name of the adapter that runs, None for the bare backbone."""
        ...

    def backbone_tensors(self) -> dict[str, Tensor]:
        """List the live tensors of the bare backbone by the names it has without adapters."""
        ...

    def owned_paths(self, name: str) -> Mapping[str, str]:
        """Say what of the backbone an adapter has copies of: dotted path -> reason."""
        ...


@dataclass(frozen=True)
class Target:
    """What is filled.

    Attributes:
        model: the plain backbone: its settings, interface and key map.
        tensors: name -> live tensor.
        copies: dotted paths that the active adapter has copies of, which are not filled.
    """

    model: nn.Module
    tensors: Mapping[str, Tensor]
    copies: tuple[str, ...] = ()

    @property
    def config(self) -> object:
        """Settings of the backbone; None for a model without."""
        return getattr(self.model, "config", None)

    def kept(self, filled: Mapping[str, object]) -> tuple[str, ...]:
        """Name the copies below which something was filled."""
        return tuple(
            path
            for path in self.copies
            if any(name == path or name.startswith(f"{path}.") for name in filled)
        )


def target_of(model: nn.Module) -> Target:
    """Find what of a model is filled.

    Raises:
        WeightsError: if it carries adapters, and is not the model around them.
        AdapterStateError: if an adapter is merged into it.
    """
    if hasattr(model, "backbone_tensors"):
        adapted = cast(CarriesAdapters, model)
        copies = () if adapted.active is None else tuple(adapted.owned_paths(adapted.active))
        return Target(adapted.base, adapted.backbone_tensors(), copies)
    tensors = model.state_dict()
    if any(".base_layer." in name for name in tensors):
        raise WeightsError(
            f"The model ({type(model).__name__}) carries an adapter, and its layers are called differently; "
            "load weights into the AdaptedModel around it, or before attach_adapter()."
        )
    return Target(model, tensors)
