"""Random numbers that are the same on every machine and in every version of numpy.

The bits come from a counter-based generator whose stream is fixed (Philox, keyed by a SHA-256), and are
turned into numbers by plain arithmetic here, because numpy promises stable bits but not stable distributions.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.random import Philox

T = TypeVar("T")

_BLOCK = 96  # single numbers fetched at once; more than most shapes need


class Draw:
    """A private stream of random numbers, decided by the key it is made from.

    Args:
        *key: numbers and names; another key gives an unrelated stream.
    """

    def __init__(self, *key: int | str) -> None:
        digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
        self._bits = Philox(key=int.from_bytes(digest[:16], "big"))
        self._ready: list[float] = []

    def array(self, *shape: int) -> np.ndarray:
        """Draw an array of float64, uniform in [0, 1)."""
        raw = self._bits.random_raw(math.prod(shape))
        drawn: np.ndarray = ((raw >> np.uint64(11)) * 2.0**-53).reshape(shape)
        return drawn

    def normal(self, *shape: int) -> np.ndarray:
        """Draw an array of float64 with mean 0 and standard deviation 1 (Box-Muller)."""
        first, second = self.array(2, *shape)
        drawn: np.ndarray = np.sqrt(-2.0 * np.log1p(-first)) * np.cos(2.0 * np.pi * second)
        return drawn

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """Draw one number between low and high."""
        if not self._ready:
            self._ready = self.array(_BLOCK).tolist()
        return low + (high - low) * self._ready.pop()

    def chance(self, probability: float) -> bool:
        """Say yes with a probability."""
        return self.uniform() < probability

    def integer(self, low: int, high: int) -> int:
        """Draw a whole number between low and high, both included."""
        return low + int(self.uniform() * (high - low + 1))

    def pick(self, options: Sequence[T]) -> T:
        """Draw one of several options."""
        return options[int(self.uniform() * len(options))]
