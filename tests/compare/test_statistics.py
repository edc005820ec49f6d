"""The paired bootstrap against its formula written out, and against what is known of it."""

import numpy as np
import pytest

from pcl_clora.compare.statistics import class_weights, paired_difference, resampled_means
from pcl_clora.errors import UserValueError


def made(seeds, clouds, skill, generator):
    return (generator.random((seeds, clouds)) < skill).astype(float)


def test_the_interval_is_that_of_means_over_drawn_seeds_and_clouds():
    generator = np.random.default_rng(1)
    mine, theirs = made(3, 300, 0.8, generator), made(3, 300, 0.6, generator)
    draws = np.random.default_rng(7)
    naive = []
    for _ in range(4000):  # written out, with random numbers of its own
        s, c = draws.integers(3, size=3), draws.integers(300, size=300)
        naive.append((mine - theirs)[np.ix_(s, c)].mean())
    found = paired_difference(mine, theirs, resamples=4000)
    assert found.mean == pytest.approx((mine - theirs).mean(), abs=1e-12)
    assert (found.low, found.high) == pytest.approx(np.quantile(naive, [0.025, 0.975]), abs=0.006)
    assert (found.seeds, found.clouds) == (3, 300)
    assert found.ahead == sum(mine.mean(1) > theirs.mean(1))


def test_with_one_seed_it_is_the_normal_interval_of_a_mean():
    generator = np.random.default_rng(2)
    apart = made(1, 2000, 0.7, generator) - made(1, 2000, 0.6, generator)
    found = paired_difference(apart, np.zeros_like(apart))
    half = 1.96 * apart.std() / np.sqrt(2000)
    assert (found.low, found.high) == pytest.approx((apart.mean() - half, apart.mean() + half), abs=2e-3)


def variance_over(scores):
    """Variance of the mean over draws, against that of the mean over what was measured."""
    return resampled_means(scores).var() / (scores.var() / scores.size)


def test_chance_of_one_seed_and_cloud_counts_almost_thrice_as_in_owens_theorem():
    generator = np.random.default_rng(5)
    for seeds in (1, 3, 5):
        found = np.mean([variance_over(generator.normal(size=(seeds, 400))) for _ in range(20)])
        assert found == pytest.approx(3 - 2 / seeds, rel=0.15)


def test_what_seeds_add_counts_one_seed_too_little():
    of_seeds = np.array([[-1.0], [0.0], [1.0]]) * np.ones((1, 50))  # variance 1 over seeds, 1 / 3 of the mean
    assert resampled_means(of_seeds).var() == pytest.approx((1 - 1 / 3) / 3, rel=0.1)


def test_what_is_the_same_is_not_told_apart_and_what_is_not_is():
    generator = np.random.default_rng(3)
    one = made(3, 500, 0.8, generator)
    assert not paired_difference(one, one).is_told_apart
    worse = one * (generator.random(one.shape) < 0.9)
    assert paired_difference(one, worse).is_told_apart
    assert paired_difference(worse, one).mean == -paired_difference(one, worse).mean


def test_pairs_tell_apart_what_separate_intervals_would_not():
    generator = np.random.default_rng(4)
    mine = made(3, 400, 0.7, generator)
    theirs = mine.copy()
    theirs[:, :16] = 0  # four points worse, on the same clouds
    assert paired_difference(mine, theirs).is_told_apart
    shuffled = np.stack([row[generator.permutation(400)] for row in theirs])
    assert paired_difference(mine, shuffled).high - paired_difference(mine, shuffled).low > 3 * (
        paired_difference(mine, theirs).high - paired_difference(mine, theirs).low
    )


def test_class_weights_turn_the_mean_over_clouds_into_that_over_classes():
    labels = np.array([0, 0, 0, 2, 2, 5])
    right = np.array([1, 0, 0, 1, 0, 1.0])
    assert (class_weights(labels) * right).mean() == pytest.approx((1 / 3 + 1 / 2 + 1) / 3)


@pytest.mark.parametrize("shapes", [((2, 3), (3, 3)), ((0, 3), (0, 3)), ((3,), (3,))])
def test_what_cannot_be_paired_is_refused(shapes):
    with pytest.raises(UserValueError, match="cannot be paired"):
        paired_difference(*map(np.zeros, shapes))
