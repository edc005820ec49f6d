"""Methods on a transformer whose queries, keys and values come from a layer each."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcl_clora.adapters import attach_adapter, load_adapter
from pcl_clora.adapters.paths import find_linears
from tests.support import adapter_cases as cases


class Separate(nn.Module):
    """The attention of the plain transformer, its fused layer cut into three."""

    def __init__(self, fused: cases.Attention) -> None:
        super().__init__()
        self.mix_out = fused.mix_out
        weight, bias = fused.mix_in.weight.chunk(3), fused.mix_in.bias.chunk(3)
        for name, own, shift in zip(("to_q", "to_k", "to_v"), weight, bias, strict=True):
            layer = nn.Linear(own.shape[1], own.shape[0])
            layer.weight.data, layer.bias.data = own.detach().clone(), shift.detach().clone()
            setattr(self, name, layer)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix_out(F.scaled_dot_product_attention(self.to_q(x), self.to_k(x), self.to_v(x)))


def separate() -> nn.Module:
    model = cases.make_backbone("plain")
    for block in model.layers:
        block.attention = Separate(block.attention)
    own = {name: f"attention.to_{name}" for name in ("q", "k", "v")}
    linears = {**own, **{role: path for role, path in model.interface.linears.items() if role != "qkv"}}
    model.interface = replace(model.interface, linears=linears)
    return model.eval()


def test_the_roles_are_the_same() -> None:
    model, fused = separate(), cases.make_backbone("plain")

    assert model.interface.roles() == fused.interface.roles()
    assert [site.path for site in model.interface.sites("k")] == [
        f"layers.{i}.attention.to_k" for i in (0, 1)
    ]
    sites = find_linears(model, model.interface, "qkv")
    assert [site.path.rpartition("_")[2] for site in sites] == ["q", "k", "v"] * 2
    assert {site.rows for site in sites} == {(0, 24)}


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "clora", "rank": 3, "num_spaces": 2, "bias": True},
        {"method": "clora", "rank": 3, "num_spaces": 2, "placement": "both"},
        {"method": "clora", "rank": 3, "num_spaces": 1, "sharing": "none", "targets": ["qkv"]},
        {"method": "arc", "rank": 4},
    ],
    ids=str,
)
def test_what_stands_in_front_of_the_three_is_one_module(settings: dict[str, object]) -> None:
    fused = cases.shake(attach_adapter(cases.make_backbone("plain"), settings)).double()
    model = attach_adapter(separate(), settings).double()
    assert model.parameter_counts() == fused.parameter_counts()

    values = {}
    for key, value in fused.adapter_state().items():
        place = key.partition(".lrms.")[2].partition(".")[0]
        owner = place if place in ("q", "k", "v") else "q"  # the first layer owns what all three share
        values[key.replace("mix_in", f"to_{owner}")] = value
    model.load_adapter_state(values)
    points = cases.make_points().double()

    torch.testing.assert_close(model(points), fused(points), rtol=1e-10, atol=1e-10)
    with model.merged():
        torch.testing.assert_close(model(points), fused(points), rtol=1e-10, atol=1e-10)
    for one in (model, fused):
        one(points).square().sum().backward()
    mine = {key: p.grad for key, p in model.named_parameters() if p.grad is not None}
    theirs = {key: p.grad for key, p in fused.named_parameters() if p.grad is not None}
    assert len(mine) == len(theirs)
    torch.testing.assert_close(
        torch.stack([g.norm() for g in mine.values()]).sort().values,
        torch.stack([g.norm() for g in theirs.values()]).sort().values,
    )
    assert sum(v == 0 for v in model.extra_loss_values().values()) == 0
    torch.testing.assert_close(model.extra_loss_values(), fused.extra_loss_values())


@pytest.mark.parametrize(
    "settings",
    [
        {"method": "lora", "rank": 2}, {"method": "lora", "rank": 2, "targets": ["qkv", "fc1"]},
        {"method": "dora", "rank": 2}, {"method": "vera", "rank": 8}, {"method": "fact", "rank": 2},
        {"method": "ssf"}, {"method": "bitfit"},
    ],
    ids=str,
)  # fmt: skip
def test_methods_of_layers_start_as_the_base_merge_and_are_saved(settings, tmp_path: Path) -> None:
    points, expected = cases.make_points(), separate()(cases.make_points())
    model = attach_adapter(separate(), settings)
    assert torch.equal(model(points), expected)

    cases.shake(model)
    trained = model(points)
    model.save_adapter(tmp_path / "a.safetensors")

    assert not torch.allclose(trained, expected)
    with model.merged():
        torch.testing.assert_close(model(points), trained, rtol=1e-5, atol=1e-5)
    assert torch.equal(load_adapter(tmp_path / "a.safetensors", separate())(points), trained)
