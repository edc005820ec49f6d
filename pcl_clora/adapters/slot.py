"""What an adapted model holds of one adapter."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from pcl_clora.adapters.base import AdapterMethod, module_key
from pcl_clora.adapters.files import AdapterHeader


class Shelf(nn.Module):
    """Modules and tensors that are not in the live model at the moment, by their path in it.

    They are registered, so that they move between devices, are copied and are part of the state_dict.
    """

    def put(self, path: str, item: nn.Module | Tensor) -> None:
        """Lay an item down."""
        key = path.replace(".", "/")
        if isinstance(item, nn.Module):
            self._modules[key] = item
        elif isinstance(item, nn.Parameter):
            self._parameters[key] = item
        else:
            self._buffers[key] = item

    def take(self, path: str) -> Any:
        """Pick an item up; it is on the shelf no longer."""
        key = path.replace(".", "/")
        for place in (self._modules, self._parameters, self._buffers):
            if key in place:
                return place.pop(key)
        raise KeyError(path)


class Slot(nn.Module):
    """One adapter of an adapted model.

    Args:
        name: what the user calls it.
        method: the owner of what its layers share.
        copies: what it has copies of: path in the backbone -> copy.
        owned: what of these it trains: path -> why.
        carried: the others: tensors that its base's weights left random when it was trained.
        num_classes: logits of its head; None if the backbone does not say.
        header: of the file it came from; None if it was attached.

    Attributes:
        copies: the copies, while the adapter is not active; while it is, they are in the backbone.
        frozen: names in its file of parameters that the user has switched gradients off for.
    """

    def __init__(
        self,
        name: str,
        method: AdapterMethod,
        copies: dict[str, Any],
        owned: dict[str, str],
        carried: tuple[str, ...],
        num_classes: int | None,
        header: AdapterHeader | None = None,
    ) -> None:
        super().__init__()
        self.name, self.owned, self.num_classes, self.header = name, owned, num_classes, header
        self.carried, self.frozen = carried, set[str]()
        self.method = method
        self.copies = Shelf()
        for path, item in copies.items():
            self.copies.put(path, item)

    @property
    def copied(self) -> tuple[str, ...]:
        """Paths in the backbone that it has copies of."""
        return (*self.owned, *self.carried)

    @property
    def key(self) -> str:
        """The key of its modules, in the model and in every layer that it changes."""
        return module_key(self.name)
