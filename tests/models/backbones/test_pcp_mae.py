"""PCP-MAE against the golden outputs of the official model, and its own promises."""

import numpy as np
import pytest
import torch

from pcl_clora.models import create_model, published_form
from pcl_clora.models.backbones.pcp_mae.network import sin_cos_features
from pcl_clora.report import count_cost
from tests.support.model_cases import (
    TINY,
    assert_checkpoint_gives,
    assert_gradients_match,
    assert_logits_match,
    assert_tokens_match,
    count,
    golden_model,
    meta_model,
)


@pytest.fixture
def archive(shared):
    return np.load(shared / "fixtures" / "pcpmae_cls_tiny.npz")


@pytest.mark.shared_data
@pytest.mark.parametrize("fold", [False, True])
def test_logits_and_tokens_equal_the_official_model(archive, fold):
    model = golden_model("pcp_mae", archive, fold_batchnorm=fold)
    assert_logits_match(model, archive)
    assert_tokens_match(model, archive)


@pytest.mark.shared_data
def test_published_form_gives_the_same_logits(archive):
    model = golden_model("pcp_mae", archive)
    with published_form(model):
        assert_logits_match(model, archive)


@pytest.mark.shared_data
@pytest.mark.parametrize("checkpointing", [False, True])
def test_loss_and_gradient_norms_equal_the_official_model(archive, checkpointing):
    model = golden_model("pcp_mae", archive)
    model.set_grad_checkpointing(checkpointing)
    assert_gradients_match(model, archive)


@pytest.mark.shared_data
def test_an_official_pretrained_file_gives_the_golden_logits(archive, shared):
    file = shared / "fixtures" / "ckpt_pcpmae_pretrain_tiny.pth"
    report = assert_checkpoint_gives("pcp_mae", file, archive, rest=("cls_",))
    assert {name.split(".")[0] for name in report.missing} == {"prefix", "head"}


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
