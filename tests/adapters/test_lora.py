"""LoRA against the peft library, and against its formula where peft cannot cut q, k, v."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pcl_clora.adapters import attach_adapter
from pcl_clora.adapters.paths import tuner_layers
from pcl_clora.config import ConfigError
from tests.support import adapter_cases as cases

ROLES = {"qkv": "mix_in", "proj": "mix_out", "fc1": "ffn.0", "fc2": "ffn.2"}


@pytest.fixture(scope="module")
def pair():
    """Our model and peft's with the same tensors, in float64."""
    peft = pytest.importorskip("peft", reason="the library is the oracle; pip install peft")
    base = cases.make_backbone("plain").double()
    ours = attach_adapter(
        copy.deepcopy(base),
        {"method": "lora", "rank": 3, "alpha": 5, "targets": list(ROLES), "train": []},
    )
    cases.shake(ours)
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=list(ROLES.values()), lora_dropout=0.0)
    theirs = peft.get_peft_model(base, config)
    modules = dict(theirs.base_model.model.named_modules())
    with torch.no_grad():
        for path, tuner in tuner_layers(ours.base).items():
            (update,) = tuner.deltas["default"].updates.values()
            modules[path].lora_A["default"].weight.copy_(update.down)
            modules[path].lora_B["default"].weight.copy_(update.up)
    return ours.eval(), theirs.eval()


@pytest.mark.slow
def test_outputs_are_those_of_peft(pair) -> None:
    ours, theirs = pair
    points = cases.make_points().double()

    torch.testing.assert_close(ours(points), theirs(points), rtol=1e-12, atol=1e-12)


@pytest.mark.slow
def test_gradients_are_those_of_peft(pair) -> None:
    ours, theirs = (copy.deepcopy(model) for model in pair)
    points = cases.make_points().double()
    ours(points).square().sum().backward()
    theirs(points).square().sum().backward()
    modules = dict(theirs.base_model.model.named_modules())

    pairs = [
        (getattr(update, ours_name).grad, getattr(modules[path], theirs_name)["default"].weight.grad)
        for path, tuner in tuner_layers(ours.base).items()
        for update in tuner.deltas["default"].updates.values()
        for ours_name, theirs_name in (("down", "lora_A"), ("up", "lora_B"))
    ]

    assert len(pairs) == 16
    torch.testing.assert_close(*zip(*pairs, strict=True), rtol=1e-10, atol=1e-12)


@pytest.mark.slow
def test_merged_weights_are_those_of_peft(pair) -> None:
    ours, theirs = (copy.deepcopy(model) for model in pair)

    plain, other = ours.merge_and_unload(), theirs.merge_and_unload()

    expected = other.state_dict()
    assert plain.state_dict().keys() == expected.keys()
    torch.testing.assert_close(dict(plain.state_dict()), dict(expected), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("roles", [["q"], ["v"], ["q", "v"], ["v", "k", "q"], ["qkv"]], ids=str)
def test_roles_change_their_rows_only(roles: list[str]) -> None:
    settings = {"method": "lora", "rank": 3, "alpha": 6, "targets": roles}
    model = cases.shake(attach_adapter(cases.make_backbone("bare").double(), settings))
    tuner = tuner_layers(model.base)["layers.1.attention.mix_in"]
    state = model.adapter_state()
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    expected = tuner.base_layer(x).clone()
    for role in roles:
        prefix = f"layers.layers.1.attention.mix_in.updates.{role}"
        rows = slice(0, 48) if role == "qkv" else slice("qkv".index(role) * 16, "qkv".index(role) * 16 + 16)
        expected[..., rows] += 2 * (x @ state[f"{prefix}.down"].t() @ state[f"{prefix}.up"].t())

    torch.testing.assert_close(tuner(x), expected, rtol=1e-12, atol=1e-12)


def test_the_start_is_the_papers() -> None:
    model = attach_adapter(cases.make_backbone("plain"), {"method": "lora"})
    updates = [u for t in tuner_layers(model.base).values() for u in t.deltas["default"].updates.values()]

    assert all(torch.count_nonzero(update.up) == 0 for update in updates)
    bound = 1 / 24**0.5  # Kaiming uniform with a = sqrt(5), as nn.Linear
    assert all(0.8 * bound < update.down.abs().max() <= bound for update in updates)


def test_dropout_acts_on_the_update_only_and_in_training_only() -> None:
    model = cases.shake(attach_adapter(cases.make_backbone("plain"), {"method": "lora", "dropout": 0.9}))
    tuner = tuner_layers(model.base)["layers.0.attention.mix_in"]
    x = torch.randn(2, 5, 24)
    quiet, bare = tuner(x), tuner.base_layer(x)
    tuner.train()
    noisy = tuner(x)

    assert not torch.equal(noisy, quiet)
    assert torch.equal(noisy[..., 24:48], bare[..., 24:48])  # k is not a target


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"targets": []}, "targets is empty"),
        ({"targets": ["qkv", "q"]}, "qkv and its part q"),
        ({"targets": ["q", "q"]}, "q more than once"),
        ({"targets": ["query"]}, "targets"),
        ({"alpha": 0}, "alpha"),
        ({"rnk": 4}, "did you mean 'rank'"),
    ],
    ids=str,
)
def test_settings_that_cannot_work_say_why(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        attach_adapter(nn.Module(), {"method": "lora", **settings})
