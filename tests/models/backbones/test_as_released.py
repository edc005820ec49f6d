"""Backbones with golden files of one form: outputs, losses and files of the official model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pcl_clora.models import published_form
from tests.support.model_cases import (
    assert_checkpoint_gives,
    assert_gradients_match,
    assert_logits_match,
    assert_tokens_match,
    golden_model,
)

CASES = {  # what its fixtures are called, the keys that its loader leaves, and the parts that stay random
    "pcp_mae": ("pcpmae", "cls_", {"prefix", "head"}),
    "recon": ("recon", "cls_head", {"head"}),
}
pytestmark = [pytest.mark.shared_data, pytest.mark.parametrize("name", CASES)]


@pytest.fixture
def archive(shared: Path, name: str) -> Any:
    return np.load(shared / "fixtures" / f"{CASES[name][0]}_cls_tiny.npz")


@pytest.mark.parametrize("fold", [False, True])
def test_logits_and_tokens_equal_the_official_model(name: str, archive: Any, fold: bool) -> None:
    model = golden_model(name, archive, fold_batchnorm=fold)
    assert_logits_match(model, archive)
    assert_tokens_match(model, archive)


def test_published_form_gives_the_same_logits(name: str, archive: Any) -> None:
    model = golden_model(name, archive)
    with published_form(model):
        assert_logits_match(model, archive)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_loss_and_gradient_norms_equal_the_official_model(
    name: str, archive: Any, checkpointing: bool
) -> None:
    model = golden_model(name, archive)
    model.set_grad_checkpointing(checkpointing)
    assert_gradients_match(model, archive)


def test_an_official_pretrained_file_gives_the_golden_logits(name: str, archive: Any, shared: Path) -> None:
    short, rest, missing = CASES[name]
    file = shared / "fixtures" / f"ckpt_{short}_pretrain_tiny.pth"
    report = assert_checkpoint_gives(name, file, archive, rest=(rest,))
    assert {key.split(".")[0] for key in report.missing} == missing
