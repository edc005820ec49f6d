"""SSF against a forward pass of float64 formulas, its places, counts and published start."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pcl_clora.adapters import AdaptedModel, attach_adapter
from pcl_clora.adapters.paths import tuner_layers
from pcl_clora.config import ConfigError
from tests.support import adapter_cases as cases


def make(**settings: object) -> AdaptedModel:
    return cases.shake(attach_adapter(cases.make_backbone("plain").double(), {"method": "ssf", **settings}))


def naive(model: AdaptedModel, points: Tensor) -> Tensor:
    """The whole network, written from the formulas: an operation, then its scale and shift."""
    state, base = model.adapter_state(), dict(model.backbone_tensors())
    base |= {key.removeprefix("model."): value for key, value in state.items() if key.startswith("model.")}

    def after(name: str, y: Tensor) -> Tensor:
        return y * state[f"layers.{name}.gamma"] + state[f"layers.{name}.beta"]

    def linear(name: str, x: Tensor) -> Tensor:
        return after(name, x @ base[f"{name}.weight"].t() + base[f"{name}.bias"])

    def norm(name: str, x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        y = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return after(name, y * base[f"{name}.weight"] + base[f"{name}.bias"])

    patches = points.reshape(points.shape[0], -1, 8, 3)
    center = patches.mean(2)
    x = (patches - center[:, :, None]).reshape(-1, 24) @ base["embed.weight"].t() + base["embed.bias"]
    x = (x - base["embed_norm.running_mean"]) / (base["embed_norm.running_var"] + 1e-5).sqrt()
    x = after("embed_norm", x * base["embed_norm.weight"] + base["embed_norm.bias"])
    x = x.view(*center.shape[:2], -1)
    x = torch.cat([base["cls_token"].expand(len(points), -1, -1), x], 1)
    where = center @ base["where.weight"].t() + base["where.bias"]
    pos = torch.cat([base["cls_pos"].expand(len(points), -1, -1), where], 1)
    for block in ("layers.0", "layers.1"):
        q, k, v = linear(f"{block}.attention.mix_in", norm(f"{block}.ln1", x + pos)).chunk(3, dim=-1)
        mixed = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v
        x = x + linear(f"{block}.attention.mix_out", mixed)
        hidden = F.gelu(linear(f"{block}.ffn.0", norm(f"{block}.ln2", x)))
        x = x + linear(f"{block}.ffn.2", hidden)
    return norm("ln", x)[:, 0] @ base["classifier.weight"].t() + base["classifier.bias"]


def test_the_network_is_the_one_of_the_formulas() -> None:
    model, points = make(tokens=True), cases.make_points().double()
    expected = naive(model, points)
    torch.testing.assert_close(model(points), expected, rtol=1e-11, atol=1e-11)


def test_the_places_are_those_of_the_paper() -> None:
    places = set(tuner_layers(make().base))

    inside = ("ln1", "attention.mix_in", "attention.mix_out", "ln2", "ffn.0", "ffn.2")
    assert places == {f"layers.{block}.{name}" for block in (0, 1) for name in inside} | {"ln"}
    assert set(tuner_layers(make(norms=False, targets=["qkv"]).base)) == {
        "layers.0.attention.mix_in", "layers.1.attention.mix_in",
    }  # fmt: skip


@pytest.mark.parametrize(("settings", "count"), [({}, 102_144), ({"tokens": True}, 102_912)], ids=str)
def test_trained_numbers_on_point_mae(settings: dict[str, object], count: int) -> None:
    model = attach_adapter(cases.full_size_without_values(), {"method": "ssf", **settings})

    assert model.parameter_counts()["adapter"] == count


def test_the_published_start_is_random_around_the_identity() -> None:
    torch.manual_seed(0)
    model = attach_adapter(cases.make_backbone("point_mae"), {"method": "ssf", "mode": "paper"})
    state = model.adapter_state()

    for name, mean in (("gamma", 1.0), ("beta", 0.0)):
        values = torch.cat([value for key, value in state.items() if key.endswith(f".{name}")])
        assert values.mean().sub(mean).abs() < 0.003
        assert values.std().sub(0.02).abs() < 0.002


def test_merged_norms_carry_scale_and_shift() -> None:
    model = make(targets=["fc1"])
    state = model.adapter_state()
    weight, bias = (model.base.ln.base_layer.get_parameter(name).clone() for name in ("weight", "bias"))

    model.merge()

    gamma, beta = (state[f"layers.ln.{name}"] for name in ("gamma", "beta"))
    torch.testing.assert_close(model.base.ln.base_layer.weight, gamma * weight)
    torch.testing.assert_close(model.base.ln.base_layer.bias, gamma * bias + beta)


def test_a_part_of_a_layer_is_refused() -> None:
    with pytest.raises(ConfigError, match="names q, a part of a layer"):
        attach_adapter(cases.make_backbone("plain"), {"method": "ssf", "targets": ["q"]})
