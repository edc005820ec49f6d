"""How much a server takes on at once: requests, and points in memory."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from pcl_clora.serve.refusals import Refusal

SMOOTHING = 0.05  # weight of the newest request in the mean time of one
LONGEST_WAIT_S = 60  # that a client is told to wait


class Admission:
    """Counts requests that are worked on or wait, and turns down those beyond a number.

    Args:
        most: requests at once.
    """

    def __init__(self, most: int) -> None:
        self.most, self.count = most, 0
        self._seconds_each = 0.1  # from one answer to the next
        self._last_answer: float | None = None
        self._lock = threading.Lock()

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Hold one of the places.

        Raises:
            Refusal: 429, with the seconds in which a place should be free.
        """
        with self._lock:
            if self.count >= self.most:
                wait = min(max(math.ceil(self._seconds_each * self.most), 1), LONGEST_WAIT_S)
                raise Refusal(
                    429, "queue_full", f"{self.most} requests wait already", f"try again in {wait} s",
                    retry_after_s=wait,
                )  # fmt: skip
            self.count += 1
        try:
            yield
        finally:
            with self._lock:
                self.count -= 1
                self._note(time.monotonic())

    def _note(self, now: float) -> None:
        """Learn how quickly answers follow one another while there is work."""
        if self._last_answer is not None and self.count:
            self._seconds_each += SMOOTHING * (now - self._last_answer - self._seconds_each)
        self._last_answer = now


class PointBudget:
    """Bounds the points of all clouds in memory.

    Args:
        most: points; a cloud of more has it alone.
    """

    def __init__(self, most: int) -> None:
        self.most, self.used = most, 0
        self._changed = threading.Condition()

    def hold(self) -> Held:
        """Begin a share of nothing."""
        return Held(self)


class Held:
    """A share of a budget; once given back it takes no more, so that a request leaves nothing."""

    def __init__(self, budget: PointBudget) -> None:
        self._budget, self._points, self._over = budget, 0, False

    def take(self, points: int, seconds: float) -> bool:
        """Wait until there is room for points; False if that lasts too long or the request is over."""
        budget = self._budget

        def fits() -> bool:
            return self._over or not budget.used or budget.used + points <= budget.most

        with budget._changed:
            if not budget._changed.wait_for(fits, timeout=max(seconds, 0.0)) or self._over:
                return False
            self._points += points
            budget.used += points
            return True

    def release(self) -> None:
        """Give all back; may be called again."""
        with self._budget._changed:
            self._budget.used -= self._points
            self._points, self._over = 0, True
            self._budget._changed.notify_all()
