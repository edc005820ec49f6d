"""Numbers in text, quickly."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np


def numbers_of(text: bytes) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Read all numbers of a text, split by blanks and line ends.

    Raises:
        ValueError: if something else stands there; it does not say where.
    """
    if not text.strip():
        return np.empty(0)
    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)  # how numpy says that it stopped at a word
        try:
            return np.fromstring(text, dtype=np.float64, sep=" ")
        except DeprecationWarning as error:
            raise ValueError(str(error)) from None
