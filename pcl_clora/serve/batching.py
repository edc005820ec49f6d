"""One thread that asks the models, several clouds at a time."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass
class _Waiting(Generic[Key, Item, Result]):
    key: Key
    item: Item
    future: Future[Result] = field(default_factory=Future)


class Batcher(Generic[Key, Item, Result]):
    """Collects what is asked alike and has it answered together.

    While a batch is answered the next one fills. A lone item waits for others at most `wait_s`; its answer
    is cancelled by cancelling its future, if it has not begun.

    Args:
        answer: gives the results of some items of one key, in their order; called in one thread.
        size: items of a batch.
        wait_s: see above.
        on_batch: called with the number of items and the seconds of every batch.
    """

    def __init__(
        self,
        answer: Callable[[Key, Sequence[Item]], Sequence[Result]],
        size: int,
        wait_s: float,
        on_batch: Callable[[int, float], None] = lambda count, seconds: None,
    ) -> None:
        self._answer, self._size, self._wait_s, self._on_batch = answer, size, wait_s, on_batch
        self._waiting: deque[_Waiting[Key, Item, Result]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="models", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether items are answered."""
        return self._thread.is_alive() and not self._closed

    def put(self, key: Key, item: Item) -> Future[Result]:
        """Hand in an item.

        Raises:
            RuntimeError: if it is closed.
        """
        waiting: _Waiting[Key, Item, Result] = _Waiting(key, item)
        with self._changed:
            if self._closed:
                raise RuntimeError("the batcher is closed")
            self._waiting.append(waiting)
            self._changed.notify()
        return waiting.future

    def close(self) -> None:
        """Answer what waits, then end."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while batch := self._next():
            batch = [one for one in batch if one.future.set_running_or_notify_cancel()]
            if batch:
                self._run(batch)

    def _run(self, batch: list[_Waiting[Key, Item, Result]]) -> None:
        """Answer a batch; where that fails, each alone, so that one item fails none of the others."""
        began = time.perf_counter()
        try:
            results = self._answer(batch[0].key, [one.item for one in batch])
            for one, result in zip(batch, results, strict=True):
                one.future.set_result(result)
        except Exception as error:  # whatever it is, those who wait must hear of it
            if len(batch) == 1:
                batch[0].future.set_exception(error)
            else:
                for one in batch:
                    self._run([one])
                return
        self._on_batch(len(batch), time.perf_counter() - began)

    def _next(self) -> list[_Waiting[Key, Item, Result]]:
        """Wait for a batch: the first item and those of its key, of any place; empty at the end."""
        with self._changed:
            while not self._waiting:
                if self._closed:
                    return []
                self._changed.wait()
            until = time.monotonic() + self._wait_s
            while len(self._waiting) < self._size and not self._closed:
                left = until - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    break
            key = self._waiting[0].key
            batch: list[_Waiting[Key, Item, Result]] = []
            rest: deque[_Waiting[Key, Item, Result]] = deque()
            for one in self._waiting:
                (batch if one.key == key and len(batch) < self._size else rest).append(one)
            self._waiting = rest
            return batch
