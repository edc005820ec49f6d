"""Low-rank methods compute, learn and merge as the peft library does, with the same tensors in float64."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pcl_clora.adapters import AdaptedModel, attach_adapter
from pcl_clora.adapters.paths import tuner_layers
from tests.support import adapter_cases as cases

ROLES = {"qkv": "mix_in", "proj": "mix_out", "fc1": "ffn.0", "fc2": "ffn.2"}
SHARED = {"targets": list(ROLES), "train": []}
RANKED = {"r": 3, "lora_alpha": 5, "lora_dropout": 0.0}
LOW_RANK = {"down": "lora_A.default.weight", "up": "lora_B.default.weight"}
MAGNITUDE = {"magnitude": "lora_magnitude_vector.default.weight"}
METHODS: dict[str, tuple[dict[str, Any], str, dict[str, Any], dict[str, str]]] = {
    # settings, peft's config and its settings, tensors: our name -> theirs
    "lora": ({"rank": 3, "alpha": 5}, "LoraConfig", RANKED, LOW_RANK),
    "dora": ({"rank": 3, "alpha": 5}, "LoraConfig", {**RANKED, "use_dora": True}, {**LOW_RANK, **MAGNITUDE}),
    "vera": ({"rank": 7}, "VeraConfig", {"r": 7}, {name: f"vera_lambda_{name}.default" for name in "db"}),
}
pytestmark = pytest.mark.slow
Pair = tuple[AdaptedModel, nn.Module, dict[str, str]]


@pytest.fixture(scope="module", params=METHODS)
def pair(request: pytest.FixtureRequest) -> Pair:
    """Our model and peft's with the same tensors, and what peft calls them."""
    peft = pytest.importorskip("peft", reason="the library is the oracle; pip install peft")
    settings, kind, theirs_settings, names = METHODS[request.param]
    base = cases.make_backbone("plain").double()
    ours = cases.shake(attach_adapter(copy.deepcopy(base), {"method": request.param, **SHARED, **settings}))
    config = getattr(peft, kind)(target_modules=list(ROLES.values()), **theirs_settings)
    theirs = peft.get_peft_model(base, config)
    with torch.no_grad():
        for own, other in tensors(ours, theirs, names):
            other.copy_(own)
        if request.param == "vera":
            theirs.base_model.vera_A["default"].copy_(ours.method.spaces.down)
            theirs.base_model.vera_B["default"].copy_(ours.method.spaces.up)
    return ours.eval(), theirs.eval(), names


def tensors(
    ours: AdaptedModel, theirs: nn.Module, names: dict[str, str]
) -> Iterator[tuple[Tensor, nn.Parameter]]:
    """Pairs of the same tensor, ours and peft's."""
    modules = dict(theirs.base_model.model.named_modules())
    for path, tuner in tuner_layers(ours.base).items():
        (update,) = tuner.deltas["default"].updates.values()
        for own, other in names.items():
            yield getattr(update, own), modules[path].get_parameter(other)


def test_outputs_and_gradients_are_those_of_peft(pair: Pair) -> None:
    ours, theirs = copy.deepcopy(pair[0]), copy.deepcopy(pair[1])
    points = cases.make_points().double()

    found, expected = ours(points), theirs(points)
    found.square().sum().backward()
    expected.square().sum().backward()
    gradients = [(own.grad, other.grad) for own, other in tensors(ours, theirs, pair[2])]

    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert len(gradients) == 8 * len(pair[2])
    torch.testing.assert_close(*zip(*gradients, strict=True), rtol=1e-10, atol=1e-12)


def test_merged_weights_are_those_of_peft(pair: Pair) -> None:
    plain = copy.deepcopy(pair[0]).merge_and_unload().state_dict()
    expected = copy.deepcopy(pair[1]).merge_and_unload().state_dict()

    assert plain.keys() == expected.keys()
    torch.testing.assert_close(dict(plain), dict(expected), rtol=1e-12, atol=1e-12)
