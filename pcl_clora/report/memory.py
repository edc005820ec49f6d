"""Measure the peak of live tensors: the same number on every machine, unlike the memory of the process."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

METHOD = (
    "peak of the bytes in live tensors that are made while it runs (a dispatch mode follows every storage "
    "from its creation to its release); weights and input are not in it, nor is scratch memory in a kernel"
)


class LiveTensors(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the bytes of all tensor storages that come into being inside the context.

    Args:
        known: tensors that exist already and are not to be counted (weights, buffers, input).

    Attributes:
        live_bytes: bytes alive now.
        peak_bytes: the most that were alive at once.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.live_bytes = 0
        self.peak_bytes = 0
        self._seen: dict[int, weakref.ref[Any]] = {}
        self._known = [
            tensor.untyped_storage() for tensor in known
        ]  # kept alive, so that no address is used again
        self._known_addresses = {storage._cdata for storage in self._known}

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._follow(leaf)
        return result

    def _follow(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        address = storage._cdata
        if address in self._seen or address in self._known_addresses:
            return
        size = storage.nbytes()

        def released(_: object) -> None:
            self._seen.pop(address, None)
            self.live_bytes -= size

        self._seen[address] = weakref.ref(storage, released)
        self.live_bytes += size
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)


def peak_bytes(run: Callable[[], object], known: Iterable[Tensor] = ()) -> int:
    """Run something once and return the peak of the bytes in tensors that it made.

    Args:
        run: called without arguments; what it returns counts as alive until the end.
        known: tensors that exist already: weights, buffers, input.
    """
    mode = LiveTensors(known)
    with mode:
        result = run()
    del result
    return mode.peak_bytes


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """Sum the bytes of the storages behind some tensors, each storage once."""
    storages = {storage._cdata: storage for storage in (tensor.untyped_storage() for tensor in tensors)}
    return sum(storage.nbytes() for storage in storages.values())


def mib(num_bytes: int) -> float:
    """Bytes -> MiB, rounded to two digits."""
    return round(num_bytes / 2**20, 2)


__all__ = ["METHOD", "LiveTensors", "mib", "peak_bytes", "storage_bytes"]
