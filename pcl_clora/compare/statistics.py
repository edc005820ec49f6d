"""Is one row better than another? A paired bootstrap over seeds and test clouds.

Two runs of the same seed had the same training clouds and saw the same test clouds, so what is compared is
the difference cloud by cloud. Seeds and clouds are drawn anew, with replacement and independently of one
another; the middle 95 % of the differences of the means is the interval.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from pcl_clora.errors import UserValueError

RESAMPLES, LEVEL = 4000, 0.95


@dataclass(frozen=True)
class Difference:
    """How far one row is above another.

    Attributes:
        mean: of the differences, in the unit of the scores.
        low: lower end of the interval.
        high: upper end.
        seeds: that both rows have.
        clouds: of the test split.
        ahead: in how many of the seeds the row is above the other.
    """

    mean: float
    low: float
    high: float
    seeds: int
    clouds: int
    ahead: int

    @property
    def is_told_apart(self) -> bool:
        """Whether the interval is clear of zero."""
        return self.low > 0 or self.high < 0


def paired_difference(
    mine: np.ndarray, theirs: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0
) -> Difference:
    """Compare two rows by a bootstrap over seeds and clouds, crossed.

    Of the variance of the mean, the draws have 1 - 1 / S times what seeds add, once what clouds add, and
    3 - 2 / S times what belongs to one seed and one cloud alone: the interval is too wide where the last
    prevails and too narrow where seeds differ much. With one seed only clouds are drawn, and it says nothing
    of other seeds.

    Args:
        mine: (S, n) scores of every seed and cloud: 1 where a cloud is right and 0 where not, or its IoU.
        theirs: (S, n), the same seeds and clouds in the same order.
        resamples: how often is drawn.
        seed: of the draws.

    Returns:
        The mean of mine - theirs, with its interval.

    Raises:
        ValueError: if the shapes differ, or there is nothing to compare.

    Source: the crossed bootstrap of Owen, The pigeonhole bootstrap, Annals of Applied Statistics 2007.
    """
    if mine.shape != theirs.shape or mine.ndim != 2 or not mine.size:
        raise UserValueError(
            f"scores of {mine.shape} and {theirs.shape} cannot be paired; give (S, n) of each."
        )
    apart = resampled_means(mine, resamples, seed) - resampled_means(theirs, resamples, seed)
    outside = (1 - LEVEL) / 2
    low, high = np.quantile(apart, [outside, 1 - outside])
    of_seeds = mine.mean(axis=1, dtype=np.float64) - theirs.mean(axis=1, dtype=np.float64)
    seeds, clouds = mine.shape
    ahead = int((of_seeds > 0).sum())
    return Difference(float(of_seeds.mean()), float(low), float(high), seeds, clouds, ahead)


def resampled_means(scores: np.ndarray, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """Compute the mean of (S, n) scores in every draw of seeds and clouds: (resamples,).

    Equal shapes get equal draws, so that the differences of two such means are paired.
    """
    of_seeds, of_clouds = _draws(*scores.shape, resamples, seed)
    means: np.ndarray = ((of_clouds @ scores.astype(np.float64).T) * of_seeds).sum(axis=1)
    return means


@lru_cache(maxsize=4)
def _draws(seeds: int, clouds: int, resamples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw how often every seed and every cloud counts, as shares: (resamples, S) and (resamples, n)."""
    generator = np.random.default_rng(seed)

    def draw(count: int) -> np.ndarray:
        chosen = generator.integers(count, size=(resamples, count))
        cells = chosen + count * np.arange(resamples)[:, None]
        counts: np.ndarray = np.bincount(cells.ravel(), minlength=resamples * count)
        shares: np.ndarray = counts.reshape(resamples, count) / count
        return shares

    return draw(seeds), draw(clouds)


def class_weights(labels: np.ndarray) -> np.ndarray:
    """Return weights with which the mean over clouds becomes the mean over the classes that occur: (n,)."""
    counts = np.bincount(labels)
    weights: np.ndarray = len(labels) / (np.count_nonzero(counts) * counts[labels])
    return weights
