"""What is made of weights once and kept until they change: folded norms, turned matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

MadeT = TypeVar("MadeT")


class Prepared:
    """Keeps what was made of tensors, and makes it anew when one of them is another one or was edited.

    An edit is seen by the tensor's version counter, a replacement (`parameter.data = ...`, `.to()`) by its
    place in memory, which is not used again while it is kept here. Not seen is an edit through `.data`, which
    has a counter of its own: call `clear` after that. Copies and pickles of an owner start empty, and a
    state_dict knows nothing of it.
    """

    def __init__(self) -> None:
        self._kept: dict[str, tuple[tuple[tuple[Tensor, int], ...], Any]] = {}

    def get(self, name: str, sources: tuple[Tensor, ...], make: Callable[[], MadeT]) -> MadeT:
        """Return what `make` makes of the sources; without a gradient, and in common with later calls.

        Args:
            name: of the result.
            sources: all tensors that it depends on.
            make: makes it.
        """
        if not all(
            type(source) in (Tensor, nn.Parameter) and not source.is_inference() for source in sources
        ):
            return make()
        found = self._kept.get(name)
        if found is not None and _are_unchanged(found[0], sources):
            made: MadeT = found[1]
            return made
        with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
            made = make()
            self._kept[name] = (tuple((source.detach(), source._version) for source in sources), made)
        return made

    def clear(self) -> None:
        """Forget everything."""
        self._kept.clear()

    def __deepcopy__(self, memo: dict[int, Any]) -> Prepared:
        return Prepared()

    def __reduce__(self) -> tuple[type[Prepared], tuple[()]]:
        return Prepared, ()


def _are_unchanged(known: tuple[tuple[Tensor, int], ...], sources: tuple[Tensor, ...]) -> bool:
    return len(known) == len(sources) and all(
        old.data_ptr() == new.data_ptr()
        and version == new._version
        and old.dtype == new.dtype
        and old.shape == new.shape
        and old.stride() == new.stride()
        for (old, version), new in zip(known, sources, strict=True)
    )
