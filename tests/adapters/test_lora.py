"""LoRA against the peft library, and against its formula where peft cannot cut q, k, v."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from pcl_clora.adapters import attach_adapter, parse_adapter_config
from pcl_clora.adapters.paths import tuner_layers
from pcl_clora.config import ConfigError, config_hash
from tests.adapters.test_as_peft import ROLES
from tests.support import adapter_cases as cases


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


@pytest.mark.slow
def test_pissa_starts_at_the_singular_vectors_and_computes_what_peft_computes() -> None:
    peft = pytest.importorskip("peft", reason="the library is the oracle; pip install peft")
    base = cases.make_backbone("plain")
    settings = {"method": "lora", "rank": 3, "alpha": 3**0.5, "targets": list(ROLES), "train": []}
    ours = attach_adapter(
        copy.deepcopy(base).double(), {**settings, "rank_stabilized": True, "init": "pissa"}
    )
    config = peft.LoraConfig(
        r=3, lora_alpha=3**0.5, use_rslora=True, init_lora_weights="pissa",
        target_modules=list(ROLES.values()),
    )  # fmt: skip
    theirs = peft.get_peft_model(copy.deepcopy(base), config).double().eval()  # it starts in float32 only
    base.double()
    modules = dict(theirs.base_model.model.named_modules())
    points = cases.make_points().double()
    start = ours(points)
    for path, tuner in tuner_layers(ours.base).items():
        (update,) = tuner.deltas["default"].updates.values()
        layer = modules[path]
        found = layer.lora_B["default"].weight @ layer.lora_A["default"].weight
        # Theirs is taken in float32, where near singular values turn the vectors of each other.
        torch.testing.assert_close(update.up @ update.down, found, rtol=0, atol=5e-5)
    cases.shake(ours)
    with torch.no_grad():
        for path, tuner in tuner_layers(ours.base).items():
            (update,) = tuner.deltas["default"].updates.values()
            layer = modules[path]
            residue = base.get_submodule(path).weight - update.first_up @ update.first_down
            layer.base_layer.weight.copy_(residue)
            layer.lora_A["default"].weight.copy_(update.down)
            layer.lora_B["default"].weight.copy_(update.up)

    assert torch.equal(start, base(points))
    torch.testing.assert_close(ours(points), theirs(points), rtol=1e-11, atol=1e-11)


@pytest.mark.slow
def test_rank_patterns_and_the_stabilized_scale_are_those_of_peft() -> None:
    peft = pytest.importorskip("peft")
    base = cases.make_backbone("plain").double()
    pattern = {"fc1": 2, "blocks.1": 5, "blocks.1.fc1": 1}
    settings = {"method": "lora", "rank": 3, "alpha": 4, "targets": list(ROLES), "train": []}
    ours = cases.shake(
        attach_adapter(copy.deepcopy(base), {**settings, "rank_stabilized": True, "rank_pattern": pattern})
    )
    config = peft.LoraConfig(
        r=3, lora_alpha=4, use_rslora=True, target_modules=list(ROLES.values()),
        rank_pattern={r"layers.1.ffn.0": 1, r"layers.0.ffn.0": 2, r"layers.1.*": 5},
    )  # fmt: skip
    theirs = peft.get_peft_model(base, config).eval()
    modules = dict(theirs.base_model.model.named_modules())
    with torch.no_grad():
        for path, tuner in tuner_layers(ours.base).items():
            (update,) = tuner.deltas["default"].updates.values()
            modules[path].lora_A["default"].weight.copy_(update.down)
            modules[path].lora_B["default"].weight.copy_(update.up)
    points = cases.make_points().double()

    torch.testing.assert_close(ours(points), theirs(points), rtol=1e-12, atol=1e-12)


def test_the_most_specific_rank_wins() -> None:
    settings = {"method": "lora", "rank": 2, "rank_pattern": {"v": 3, "blocks.1": 4, "blocks.1.v": 5}}
    model = attach_adapter(cases.make_backbone("plain"), settings)
    ranks = {
        (path.split(".")[1], role): len(update.down)
        for path, tuner in tuner_layers(model.base).items()
        for role, update in tuner.deltas["default"].updates.items()
    }

    assert ranks == {("0", "q"): 2, ("0", "v"): 3, ("1", "q"): 4, ("1", "v"): 5}


@pytest.mark.parametrize("scale", [0.7, 3.0])
def test_pissa_scales_the_difference_to_its_start(scale: float) -> None:
    settings = {"method": "lora", "rank": 3, "alpha": 3 * scale, "init": "pissa", "targets": ["v"]}
    model = attach_adapter(cases.make_backbone("bare").double(), settings)
    tuner = tuner_layers(model.base)["layers.0.attention.mix_in"]
    left, values, right = torch.linalg.svd(tuner.base_layer.weight[32:])
    best = left[:, :3] @ values[:3].diag() @ right[:3]
    cases.shake(model)
    down, up = (
        model.adapter_state()[f"layers.layers.0.attention.mix_in.updates.v.{name}"] for name in ("down", "up")
    )
    x = torch.randn(4, 16, dtype=torch.float64)

    expected = tuner.base_layer(x).clone()
    expected[:, 32:] += scale * x @ (up @ down - best).t()

    torch.testing.assert_close(tuner(x), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank_pattern": {"fc1": 2}}, "'fc1', but the targets are q, v"),
        ({"rank_pattern": {"blocks.x": 2}}, "a role .q., a block .blocks.3."),
        ({"rank_pattern": {"blocks.7": 2}}, "'blocks.7', but the adapted blocks are 0, 1"),
        ({"rank_pattern": {"blocks.0": 2}, "blocks": [1]}, "the adapted blocks are 1"),
        ({"rank_pattern": {"q": 0}}, "rank_pattern"),
        ({"rank": 25}, "rank=25 is more than layers.0.attention.mix_in has"),
    ],
    ids=str,
)
def test_ranks_that_cannot_be_say_why(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attach_adapter(cases.make_backbone("plain"), {"method": "lora", **settings})


def test_options_that_are_not_used_change_no_hash() -> None:
    written = parse_adapter_config({"method": "lora"}).model_dump(mode="json")

    assert set(written) == {"method", "train", "freeze", "rank", "alpha", "targets", "dropout"}
    assert config_hash(parse_adapter_config({"method": "lora"})) == "143c6a4da267"
    assert config_hash(parse_adapter_config({"method": "clora"})) == "68dddf5f4479"
