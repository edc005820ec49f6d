"""Several threads on one model: a forward pass that overlaps a switch of adapters is found out."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from pcl_clora.adapters.base import AdapterStateError


class Watch:
    """Counts the switches of a model, so that a forward pass can tell whether one came in between.

    The count goes up when a switch begins and when it ends: it is odd in between. A forward pass compares it
    before and after and takes no lock; switches of two threads exclude each other by one.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._depth = 0
        self.count = 0

    def __reduce__(self) -> tuple[type[Watch], tuple[()]]:
        return Watch, ()  # a copy watches another model

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other threads from switching inside the block; forward passes go on.

        Raises:
            AdapterStateError: if another thread is at it.
        """
        if not self._lock.acquire(blocking=False):
            raise AdapterStateError(
                "Another thread routes samples or switches adapters on this model; let one thread at a "
                "time do so, or give every thread a copy.deepcopy() of the model."
            )
        try:
            yield
        finally:
            self._lock.release()

    @contextmanager
    def switching(self) -> Iterator[None]:
        """Switch adapters inside the block, again if need be; forward passes that it overlaps raise.

        Raises:
            AdapterStateError: if another thread is at it.
        """
        with self.alone():
            self._depth += 1
            self.count += self._depth == 1
            try:
                yield
            finally:
                self.count += self._depth == 1
                self._depth -= 1

    def run(self, call: Callable[..., Any], *inputs: Any, **named: Any) -> Any:
        """Call a forward pass of the model; compiled and exported programs have read their tensors before.

        Raises:
            AdapterStateError: if another thread switches adapters meanwhile, whatever came out.
        """
        if torch.compiler.is_compiling():
            return call(*inputs, **named)
        before = self.count
        try:
            result = call(*inputs, **named)
        except Exception as error:
            if before % 2 or self.count != before:
                raise _overlap() from error
            raise
        if before % 2 or self.count != before:
            raise _overlap()
        return result


def _overlap() -> AdapterStateError:
    return AdapterStateError(
        "Another thread routed samples or switched adapters while this forward pass ran, so its output would "
        "mix adapters; run the pass again, and let threads take turns or give each a copy.deepcopy() of the "
        "model."
    )
