"""ARC against its formula, its counts and start; what it shares with CLoRA is tested there."""

from __future__ import annotations

import pytest
import torch

from pcl_clora.adapters import AdaptedModel, attach_adapter
from pcl_clora.adapters.paths import tuner_layers
from tests.support import adapter_cases as cases

PLACES = {"attention": "layers.1.attention.mix_in", "ffn": "layers.1.ffn.0"}


def make(**settings: object) -> AdaptedModel:
    values = {"method": "arc", "rank": 5, **settings}
    return cases.shake(attach_adapter(cases.make_backbone("plain").double(), values))


@pytest.mark.parametrize("kind", list(PLACES))
def test_a_place_gets_the_input_of_the_formula_and_merges_as_it_says(kind: str) -> None:
    model, path = make(), PLACES[kind]
    tuner, state = tuner_layers(model.base)[path], model.adapter_state()
    projection = state[f"method.spaces.{kind}.down"]
    diagonal, shift = (state[f"layers.{path}.lrms.input.{name}"] for name in ("core.weight", "bias"))
    weight, bias = tuner.base_layer.weight, tuner.base_layer.bias
    x = torch.randn(2, 3, 24, dtype=torch.float64)

    adapted = x + ((x @ projection) * diagonal[0]) @ projection.t() + shift
    inside = torch.eye(24, dtype=torch.float64) + projection @ diagonal[0].diag() @ projection.t()
    merged = tuner.deltas["default"].merged_weight(weight, bias)

    torch.testing.assert_close(tuner(x), tuner.base_layer(adapted), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(merged[0], weight @ inside.t(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(merged[1], bias + weight @ shift, rtol=1e-12, atol=1e-12)


def test_trained_numbers_on_point_mae() -> None:
    model = attach_adapter(cases.full_size_without_values(), {"method": "arc"})

    assert model.parameter_counts()["adapter"] == 48_816


def test_the_start_is_that_of_the_paper() -> None:
    state = attach_adapter(cases.make_backbone("plain"), {"method": "arc"}).adapter_state()
    bound = (6 / (24 + 50)) ** 0.5  # Xavier uniform

    assert all(torch.count_nonzero(state[key]) == 0 for key in state if ".lrms." in key)
    assert all(0.8 * bound < state[f"method.spaces.{kind}.down"].abs().max() <= bound for kind in PLACES)


def test_it_computes_what_the_clora_with_its_settings_computes() -> None:
    arc = make(dropout=0.0)
    settings = {"method": "clora", "rank": 5, "num_spaces": 1, "core": "diagonal", "tied": True, "bias": True}
    clora = attach_adapter(cases.make_backbone("plain").double(), {**settings, "sharing": "per_role"})
    clora.load_adapter_state(arc.adapter_state())
    points = cases.make_points().double()

    assert torch.equal(arc(points), clora(points))
    assert arc.extra_losses() == {}
