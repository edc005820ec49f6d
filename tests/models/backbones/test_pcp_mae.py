"""PCP-MAE: its own promises; test_as_released.py has its golden outputs."""

import numpy as np
import pytest
import torch

from pcl_clora.models import create_model
from pcl_clora.models.backbones.pcp_mae.network import sin_cos_features
from pcl_clora.report import count_cost
from tests.support.model_cases import (
    TINY,
    count,
    meta_model,
)


@pytest.mark.parametrize(("classes", "expected"), [(15, 22_338_959), (40, 22_345_384)])
def test_parameter_count_is_the_published_one(classes, expected):
    assert count(meta_model("pcp_mae", num_classes=classes)) == (expected, 174)


@pytest.mark.slow
def test_the_layers_of_the_published_form_multiply_as_often_as_published():
    macs = count_cost(create_model("pcp_mae", num_classes=40, num_groups=64), 1024)["macs"]
    assert round(macs["published"] / 1e9, 3) == 2.407


def test_positions_are_the_sines_and_cosines_of_the_formula():
    center = torch.rand(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    omega = 1.0 / 10_000 ** (np.arange(4) / 4)
    angle = center.numpy()[..., None] * omega
    expected = np.concatenate(
        [f(angle[..., axis, :]) for axis in range(3) for f in (np.sin, np.cos)], axis=-1
    )
    np.testing.assert_allclose(sin_cos_features(center, 24), expected, atol=1e-12)


def test_a_width_that_is_no_multiple_of_six_is_refused():
    with pytest.raises(ValueError, match="embed_dim=64 is not a multiple of 6"):
        create_model("pcp_mae", **{**TINY, "embed_dim": 64, "num_heads": 4})
