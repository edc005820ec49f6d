"""What weights are loaded into: the tensors of a plain backbone, also of one that lies below adapters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol, cast

from torch import Tensor, nn

from pcl_clora.models.errors import WeightsError
from pcl_clora.models.key_map import KeyMap
from pcl_clora.models.method_files import NO_KEYS, MethodFiles, is_own_tensor, title_of
from pcl_clora.models.weights._containers import Checkpoint
from pcl_clora.models.weights._left_out import unwrap
from pcl_clora.models.weights._naming import key_map_of


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

    @property
    def released_files(self) -> MethodFiles | None:
        """How released files of the active adapter's method look."""
        ...

    @property
    def official_keys(self) -> KeyMap:
        """What official files call the tensors of the network that runs."""
        ...

    def network_tensors(self) -> dict[str, Tensor]:
        """List the live tensors of the network that runs: backbone, the adapter's copies, what it adds."""
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
        key_map: what official files call the tensors.
        aliases: further names, in files of the method whose tensors are among them.
        method: what the authors of that method call it; "" if only the backbone is filled.
    """

    model: nn.Module
    tensors: Mapping[str, Tensor]
    copies: tuple[str, ...] = ()
    key_map: KeyMap = NO_KEYS
    aliases: KeyMap = NO_KEYS
    method: str = ""

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


def target_of(model: nn.Module, checkpoint: Checkpoint) -> Target:
    """Find what of a model a file fills.

    Of an adapted model the backbone below the adapter; if the file holds tensors of the active adapter's
    method, the network that runs, with the adapter and its copies.

    Raises:
        WeightsError: if it carries adapters, and is not the model around them.
        AdapterStateError: if an adapter is merged into it.
    """
    if hasattr(model, "backbone_tensors"):
        return _target_of_adapted(cast(CarriesAdapters, model), checkpoint)
    tensors = model.state_dict()
    if any(".base_layer." in name for name in tensors):
        raise WeightsError(
            f"The model ({type(model).__name__}) carries an adapter, and its layers are called differently; "
            "load weights into the AdaptedModel around it, or before attach_adapter()."
        )
    return Target(model, tensors, key_map=key_map_of(model))


def _target_of_adapted(adapted: CarriesAdapters, checkpoint: Checkpoint) -> Target:
    if adapted.active is None:
        return Target(adapted.base, adapted.backbone_tensors(), key_map=key_map_of(adapted.base))
    keys, whole, files = [unwrap(key) for key in checkpoint.tensors], adapted.network_tensors(), None
    if adapted.released_files is not None and title_of(keys) == adapted.released_files.title:
        files = adapted.released_files
    if files is None and not any(is_own_tensor(key) and key in whole for key in keys):
        copies = tuple(adapted.owned_paths(adapted.active))
        return Target(adapted.base, adapted.backbone_tensors(), copies, key_map_of(adapted.base))
    aliases = NO_KEYS if files is None else files.twins
    title = "the adapter" if files is None else files.title
    return Target(adapted.base, whole, (), adapted.official_keys, aliases, title)
