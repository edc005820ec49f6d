"""DoRA against the peft library, and against its formula where peft cannot cut q, k, v."""

from __future__ import annotations

import pytest
import torch

from pcl_clora.adapters import attach_adapter
from pcl_clora.adapters.paths import tuner_layers
from tests.support import adapter_cases as cases


@pytest.mark.parametrize("backbone", ["bare", "plain"])
@pytest.mark.parametrize("roles", [["q", "v"], ["qkv"], ["fc1"]], ids=str)
def test_rows_have_the_length_that_they_are_given(backbone: str, roles: list[str]) -> None:
    settings = {"method": "dora", "rank": 3, "alpha": 6, "targets": roles}
    model = cases.shake(attach_adapter(cases.make_backbone(backbone).double(), settings))
    path, tuner = next(iter(tuner_layers(model.base).items()))
    weight, bias = tuner.base_layer.weight.clone(), tuner.base_layer.bias
    width = weight.shape[1]
    for role in roles:
        down, up, magnitude = (
            model.adapter_state()[f"layers.{path}.updates.{role}.{name}"]
            for name in ("down", "up", "magnitude")
        )
        start = {"q": 0, "v": 2 * width}.get(role, 0)
        rows = slice(start, start + len(magnitude))
        direction = weight[rows] + 6 / 3 * up @ down
        weight[rows] = magnitude[:, None] * direction / direction.square().sum(1, keepdim=True).sqrt()
    x = torch.randn(2, 5, width, dtype=torch.float64)

    expected = x @ weight.t() + (0 if bias is None else bias)

    torch.testing.assert_close(tuner(x), expected, rtol=1e-12, atol=1e-12)


def test_dropout_acts_on_the_low_rank_term_only() -> None:
    model = cases.shake(attach_adapter(cases.make_backbone("plain"), {"method": "dora", "dropout": 0.9}))
    tuner = tuner_layers(model.base)["layers.0.attention.mix_in"].train()
    with torch.no_grad():
        for update in tuner.deltas["default"].updates.values():
            update.up.zero_()
    x = torch.randn(2, 5, 24)

    assert torch.equal(tuner(x), tuner(x))  # the base is scaled without dropout


def test_trained_numbers_on_point_mae() -> None:
    model = attach_adapter(cases.full_size_without_values(), {"method": "dora"})

    assert model.parameter_counts()["adapter"] == 156_672


def test_a_row_of_zeros_has_no_direction() -> None:
    base = cases.make_backbone("plain")
    torch.nn.init.zeros_(base.layers[1].attention.mix_in.weight[:2])

    with pytest.raises(ValueError, match="2 rows of zeros for role 'q'"):
        attach_adapter(base, {"method": "dora"})
