"""Several measurements of one thing as one number, and how far they lie apart."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def mean_and_deviation(values: Sequence[float]) -> tuple[float, float | None]:
    """Return mean and standard deviation (n - 1); there is no deviation of a single value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None
