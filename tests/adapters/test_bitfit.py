"""BitFit: which biases are trained, how many there are, and what they compute."""

from __future__ import annotations

import copy

import pytest
import torch

from pcl_clora.adapters import attach_adapter
from pcl_clora.adapters.paths import base_tensors
from tests.support import adapter_cases as cases


def trained(backbone: str, **settings: object) -> set[str]:
    model = attach_adapter(cases.make_backbone(backbone), {"method": "bitfit", "train": [], **settings})
    return {key.removeprefix("model.") for key in model.adapter_state()}


def test_every_bias_of_the_blocks_and_the_last_norm_is_trained() -> None:
    base = cases.make_backbone("plain")

    expected = {name for name in base.state_dict() if name.startswith(("layers.", "ln.")) and "bias" in name}

    assert trained("plain") == expected
    assert trained("plain", blocks=[0]) == {name for name in expected if name.startswith("layers.0.")}


def test_new_biases_of_qkv_and_those_of_the_embedding_are_options() -> None:
    plain = trained("point_mae")

    assert trained("point_mae", new_qkv_bias=True) - plain == {
        f"layers.blocks.{i}.attn.qkv.bias" for i in range(3)
    }
    assert {name.split(".")[0] for name in trained("point_mae", embed=True) - plain} == {
        "patch_embed",
        "pos_embed",
    }


@pytest.mark.parametrize("backbone", ["plain", "point_mae", "recon", "pointgpt_s"])
def test_it_computes_what_the_backbone_computes_with_these_biases(backbone: str) -> None:
    base = cases.make_backbone(backbone).double()
    other = copy.deepcopy(base)
    model = cases.shake(attach_adapter(base, {"method": "bitfit"}))

    other.load_state_dict(base_tensors(model.base))

    points = cases.make_points().double()
    assert torch.equal(model(points), other(points))


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({}, 37_248),
        ({"new_qkv_bias": True}, 37_248 + 13_824),
        ({"embed": True}, 37_248 + 512 + 1_920),
        ({"blocks": [0, -1]}, 2 * 3_072),
    ],
    ids=str,
)
def test_trained_numbers_on_point_mae(settings: dict[str, object], count: int) -> None:
    model = attach_adapter(cases.full_size_without_values(), {"method": "bitfit", **settings})
    counts = model.parameter_counts()

    assert counts["trainable"] - counts["head"] - counts["tokens"] == count
    assert counts["head"] + counts["tokens"] == 268_303


@pytest.mark.slow
def test_trained_numbers_on_an_image_transformer() -> None:
    timm = pytest.importorskip("timm")
    from pcl_clora.models.backbones.timm_vit.network import describe_timm

    with torch.device("meta"):
        vit = timm.create_model("vit_base_patch16_224")
    vit.interface = describe_timm(vit)

    counts = attach_adapter(vit, {"method": "bitfit", "train": []}).parameter_counts()

    assert counts["trainable"] == 102_144
