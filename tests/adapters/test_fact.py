"""FacT against formulas written piece by piece, its counts and start, and the CLoRA that it can be."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pcl_clora.adapters import AdaptedModel, attach_adapter
from pcl_clora.adapters.paths import tuner_layers
from tests.support import adapter_cases as cases

DIM, RANK = 24, 3
LAYERS = {"proj": "attention.mix_out", "fc1": "ffn.0", "fc2": "ffn.2"}
ORDER = ("q", "k", "v", "proj", "fc1", "fc1", "fc2", "fc2")  # the hidden width of this backbone is 2 d


def make(**settings: object) -> AdaptedModel:
    values = {"method": "fact", "rank": RANK, "scale": 0.7, **settings}
    return cases.shake(attach_adapter(cases.make_backbone("plain").double(), values))


def pieces(model: AdaptedModel, block: int, role: str) -> list[Tensor]:
    """The r x r matrices S of a place, in order, as the paper writes them."""
    state = model.adapter_state()
    if "method.factors.core" not in state:
        path = f"layers.{block}.{LAYERS.get(role, 'attention.mix_in')}"
        middle = state[f"layers.{path}.updates.{role}.middle"]
        return list(middle.split(RANK, dim=0 if role == "fc2" else 1))
    core, places = state["method.factors.core"], state["method.factors.places"]
    columns = [index + block * len(ORDER) for index, name in enumerate(ORDER) if name == role]
    return [sum(core[:, :, k] * places[k, j] for k in range(RANK)) for j in columns]


def update(model: AdaptedModel, block: int, role: str, x: Tensor) -> Tensor:
    """F_j(x), one piece after another."""
    state = model.adapter_state()
    down, up = state["method.factors.down"], state["method.factors.up"]
    found = pieces(model, block, role)
    if role == "fc2":
        chunks = x.split(DIM, dim=-1)
        return 0.7 * sum(chunk @ down @ s for chunk, s in zip(chunks, found, strict=True)) @ up
    return torch.cat([0.7 * (x @ down @ s) @ up for s in found], dim=-1)


@pytest.mark.parametrize("form", ["tt", "tk"])
@pytest.mark.parametrize("block", [0, 1])
@pytest.mark.parametrize("role", list(LAYERS))
def test_a_layer_gets_the_update_of_its_formula(form: str, block: int, role: str) -> None:
    model = make(form=form)
    tuner = tuner_layers(model.base)[f"layers.{block}.{LAYERS[role]}"]
    x = torch.randn(2, 5, tuner.in_features, dtype=torch.float64)

    expected = tuner.base_layer(x) + update(model, block, role, x)

    torch.testing.assert_close(tuner(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", ["tt", "tk"])
@pytest.mark.parametrize("block", [0, 1])
def test_queries_keys_and_values_get_their_own(form: str, block: int) -> None:
    model = make(form=form)
    tuner = tuner_layers(model.base)[f"layers.{block}.attention.mix_in"]
    x = torch.randn(2, 5, DIM, dtype=torch.float64)

    expected = tuner.base_layer(x) + torch.cat([update(model, block, role, x) for role in "qkv"], dim=-1)

    torch.testing.assert_close(tuner(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({}, 49_152),
        ({"rank": 8}, 15_360),
        ({"form": "tk"}, 18_688),
        ({"form": "tk", "rank": 32}, 61_952),
        ({"targets": ["qkv", "proj", "fc1", "fc2"]}, 49_152),
    ],
    ids=str,
)
def test_trained_numbers_on_point_mae(settings: dict[str, object], count: int) -> None:
    model = attach_adapter(cases.full_size_without_values(), {"method": "fact", **settings})

    assert model.parameter_counts()["adapter"] == count


def test_the_start_is_that_of_the_paper() -> None:
    torch.manual_seed(0)
    model = attach_adapter(cases.make_backbone("plain"), {"method": "fact", "rank": 8})
    state = model.adapter_state()

    assert torch.count_nonzero(state["method.factors.up"]) == 0
    for key, inputs in (("method.factors.down", 24), ("layers.layers.0.ffn.2.updates.fc2.middle", 16)):
        assert 0.8 * inputs**-0.5 < state[key].abs().max() <= inputs**-0.5


def test_on_square_places_it_is_a_clora_of_one_space() -> None:
    roles = ["q", "v", "proj"]
    fact = make(targets=roles, scale=1.0)
    settings = {"method": "clora", "rank": RANK, "num_spaces": 1, "core": "full", "sade": {"weight": 0}}
    base = cases.make_backbone("plain").double()
    clora = attach_adapter(base, {**settings, "placement": "parallel", "parallel_targets": roles})
    renamed = {"factors": "spaces.global", "updates": "lrms", "middle": "core.weight"}
    state = {}
    for key, value in fact.adapter_state().items():
        for ours, theirs in renamed.items():
            key = key.replace(f".{ours}", f".{theirs}")
        state[key] = value
    clora.load_adapter_state(state)
    points = cases.make_points().double()

    torch.testing.assert_close(fact(points), clora(points), rtol=1e-11, atol=1e-11)


def test_dropout_stands_behind_s_and_acts_in_training_only() -> None:
    model = make(dropout=0.5, targets=["proj"])
    tuner = tuner_layers(model.base)["layers.0.attention.mix_out"]
    x = torch.randn(1, DIM, dtype=torch.float64)
    (change,) = tuner.deltas["default"].updates.values()
    narrow = x @ model.method.factors.down @ change.inner()
    tuner.train()
    torch.manual_seed(5)
    noisy = tuner(x) - tuner.base_layer(x)
    torch.manual_seed(5)
    mask = torch.nn.functional.dropout(torch.ones_like(narrow), 0.5)

    torch.testing.assert_close(noisy, 0.7 * (narrow * mask) @ model.method.factors.up)


def test_a_width_that_is_no_multiple_is_refused() -> None:
    base = cases.make_backbone("plain")
    base.layers[0].ffn[0] = torch.nn.Linear(24, 40)

    with pytest.raises(ValueError, match="24 to 40 features for role 'fc1', which are no multiples of 24"):
        attach_adapter(base, {"method": "fact"})
