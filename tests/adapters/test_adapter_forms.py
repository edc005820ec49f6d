"""Bottleneck adapters against formulas of float64, their counts and starts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcl_clora.adapters import AdaptedModel, attach_adapter
from pcl_clora.adapters.paths import tuner_layers
from pcl_clora.config import ConfigError
from pcl_clora.models.interface import Tokens
from tests.support import adapter_cases as cases


def make(backbone: str = "point_mae", **settings: object) -> AdaptedModel:
    values = {"method": "adapter", "bottleneck": 6, **settings}
    return cases.shake(attach_adapter(cases.make_backbone(backbone).double(), values))


def tensors(model: AdaptedModel, path: str) -> list[Tensor]:
    names = ("down.weight", "down.bias", "up.weight", "up.bias")
    return [model.adapter_state()[f"layers.{path}.{name}"] for name in names]


@pytest.mark.parametrize(
    ("form", "places"),
    [("houlsby", ("attention.mix_out", "ffn.2")), ("pfeiffer", ("ffn.2",))],
)
def test_a_serial_adapter_stands_behind_its_layers(form: str, places: tuple[str, ...]) -> None:
    model = make("plain", form=form)
    layers = tuner_layers(model.base)

    assert set(layers) == {f"layers.{block}.{name}" for block in (0, 1) for name in places}
    for path, tuner in layers.items():
        down, c, up, e = tensors(model, path)
        x = torch.randn(2, 3, tuner.in_features, dtype=torch.float64)
        y = tuner.base_layer(x)
        expected = y + F.gelu(y @ down.t() + c) @ up.t() + e
        torch.testing.assert_close(tuner(x), expected, rtol=1e-12, atol=1e-12)


def middle_and_rest(block: nn.Module, x: Tensor, backbone: str) -> tuple[Tensor, Tensor]:
    """u, the tokens between attention and MLP, and u + MLP(LN2 u), from the published formulas."""
    normed = block.norm1(x)
    start = x if backbone == "point_mae" else normed  # PointGPT's residual starts from the normalised input
    middle = start + block.attn(normed)
    return middle, middle + block.mlp(block.norm2(middle))


@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("backbone", ["point_mae", "pointgpt_s"])
def test_a_parallel_adapter_reads_the_tokens_before_the_second_norm(backbone: str, layer_norm: bool) -> None:
    model = make(backbone, scale=0.3, layer_norm=layer_norm)
    dim = model.interface.embed_dim
    for path in model.interface.blocks:
        tuner = model.base.get_submodule(path)
        x, pos = torch.randn(2, 2, 7, dim, dtype=torch.float64).unbind(0)
        down, c, up, e = tensors(model, path)
        middle, rest = middle_and_rest(tuner.base_layer, x + pos, backbone)
        seen = middle
        if layer_norm:
            weight, bias = (
                model.adapter_state()[f"layers.{path}.norm.{name}"] for name in ("weight", "bias")
            )
            seen = F.layer_norm(middle, (dim,), weight, bias)

        expected = rest + 0.3 * (F.relu(seen @ down.t() + c) @ up.t() + e)

        found = tuner(x, pos, Tokens(x, pos, x[..., :3], 1))
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({}, 595_200),
        ({"bottleneck": 16}, 152_256),
        ({"form": "houlsby"}, 1_190_400),
        ({"form": "pfeiffer"}, 595_200),
        ({"layer_norm": True}, 595_200 + 12 * 768),
        ({"blocks": [0, 11]}, 99_200),
    ],
    ids=str,
)
def test_trained_numbers_on_point_mae(settings: dict[str, object], count: int) -> None:
    model = attach_adapter(cases.full_size_without_values(), {"method": "adapter", **settings})

    assert model.parameter_counts()["adapter"] == count


@pytest.mark.parametrize("form", ["parallel", "houlsby"])
def test_the_start_is_that_of_the_paper(form: str) -> None:
    torch.manual_seed(0)
    model = attach_adapter(cases.make_backbone("point_mae"), {"method": "adapter", "form": form})
    state = {key: value for key, value in model.adapter_state().items() if key.startswith("layers.")}
    downs = torch.stack([value for key, value in state.items() if key.endswith("down.weight")])

    assert all(torch.count_nonzero(value) == 0 for key, value in state.items() if "down.weight" not in key)
    if form == "parallel":
        assert 0.9 * 48**-0.5 < downs.abs().max() <= 48**-0.5  # Kaiming uniform with a = sqrt(5)
    else:
        assert downs.std().sub(0.01).abs() < 0.001


def test_dropout_stands_in_the_branch_and_acts_in_training_only() -> None:
    model = make(dropout=0.5)
    points = cases.make_points().double()
    quiet = model(points)
    tuner = model.base.get_submodule(model.interface.blocks[0])
    x = torch.randn(2, 7, 48, dtype=torch.float64)
    tokens = Tokens(x, x, x[..., :3], 1)
    tuner.deltas["default"].train()

    assert not torch.equal(tuner(x, x, tokens), tuner(x, x, tokens))
    tuner.eval()
    assert torch.equal(model(points), quiet)


def test_a_setting_of_the_other_form_is_refused() -> None:
    with pytest.raises(ConfigError, match="scale, layer_norm has no effect with form='pfeiffer'"):
        attach_adapter(
            nn.Module(), {"method": "adapter", "form": "pfeiffer", "scale": 0.5, "layer_norm": True}
        )
