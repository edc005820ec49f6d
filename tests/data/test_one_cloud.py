"""Measures of one cloud against what they abbreviate."""

import numpy as np
import pytest
import torch

from pcl_clora.data.norms import measure
from pcl_clora.data.one_cloud import (
    CLOSE,
    count_distinct,
    crowded_share,
    has_distinct,
    is_line,
    radius_and_offset,
)

RANDOM = np.random.default_rng(0)
BALL = RANDOM.normal(size=(999, 3))
LINE = np.linspace(0, 1, 999)[:, None] * [[1.0, 2.0, 3.0]]
CLOUDS = {
    "ball": BALL,
    "far off": BALL * 1e-3 + 5,
    "one point": np.ones((40, 3)),
    "two": np.repeat(BALL[:2], 20, axis=0),
    "copies": np.repeat(BALL[:40], 20, axis=0),
    "crowd": np.vstack([BALL * 1e-4, BALL[:900]]),
    "no crowd": np.vstack([BALL[:499] * 1e-4, BALL[:501]]),
    "crowd of half": np.vstack([np.zeros((500, 3)), BALL[:499]]),
    "one far point": np.vstack([BALL * 1e-5, [[5.0, 5.0, 5.0]]]),
    "zeros of both signs": np.stack([RANDOM.choice([0.0, -0.0], 60)] * 3, axis=1),
    "line": LINE,
    "nearly a line": LINE + RANDOM.normal(size=LINE.shape) * 5e-4,
    "no line": LINE + RANDOM.normal(size=LINE.shape) * 5e-2,
}


@pytest.fixture(params=CLOUDS.values(), ids=CLOUDS)
def points(request):
    return torch.from_numpy(request.param.astype(np.float32))


def test_radius_and_offset_are_those_of_training(points):
    wanted = [float(value) for value in measure(points.double())]
    assert radius_and_offset(points) == pytest.approx(wanted, rel=1e-9, abs=1e-12)


def test_a_crowd_of_half_the_points_is_found(points):
    distance = (points.double() - points.double().median(dim=0).values).norm(dim=-1)
    share = float((distance <= CLOSE * distance.max()).double().mean())
    found = crowded_share(points)
    assert found == share if share >= 0.5 else found < 0.5
    assert (found == 1) == (not float(distance.max()))


@pytest.mark.parametrize("count", [1, 2, 30, 500])
def test_many_values_along_an_axis_mean_many_points(points, count):
    distinct = len(np.unique(points.numpy() + np.float32(0), axis=0))
    assert count_distinct(points) == distinct
    assert distinct >= count or not has_distinct(points, count)


def test_a_line_is_told_by_its_singular_values(points):
    spread = torch.linalg.svdvals(points.double() - points.double().mean(dim=0))
    assert is_line(points) == bool(spread[1] <= CLOSE * spread[0])
