"""Adapters combined, renamed and mixed in a batch, on a live model."""

from __future__ import annotations

import copy

import pytest
import torch

from pcl_clora.adapters import AdapterStateError, attach_adapter, load_adapter
from pcl_clora.errors import UserTypeError, UserValueError
from tests.support import adapter_cases as cases

EXACT = {"rtol": 1e-10, "atol": 1e-12}  # float64, sums in another order
LINEAR = (
    "lora", "lora_everywhere", "lora_options", "lora_pissa", "clora", "clora_parallel", "clora_sharp",
    "clora_per_role_diagonal", "clora_full_core", "vera", "fact", "fact_tk", "bitfit", "ssf", "full",
)  # fmt: skip


def pair(setting, backbone="point_mae"):
    """Two shaken adapters "a" and "b" of one method, in float64; "b" is active."""
    model = attach_adapter(cases.make_backbone(backbone), cases.SETTINGS[setting], name="a")
    cases.shake(model, seed=1)
    attach_adapter(model, cases.SETTINGS[setting], name="b")
    return cases.shake(model.double(), seed=2).eval()


def merged_tensors(model, name):
    """All tensors of the plain network that an adapter makes."""
    model.set_active(name)
    return copy.deepcopy(model).merge_and_unload().state_dict()


def in_layers(model, key):
    """Whether a name is of what is combined: not head, not class token."""
    return not key.startswith(("head.", "prefix."))


@pytest.mark.parametrize(
    ("setting", "factors"),
    [(setting, (0.7, 0.3)) for setting in LINEAR]
    + [(setting, factors) for setting in ("lora", "clora", "ssf") for factors in ((1.0, -1.0), (1.0, 1.0))],
)
def test_a_combination_changes_every_weight_by_the_weighted_sum(setting, factors):
    model = pair(setting)
    bare = copy.deepcopy(model).unload().state_dict()
    a, b = merged_tensors(model, "a"), merged_tensors(model, "b")

    model.combine_adapters({"a": factors[0], "b": factors[1]}, "mix")
    mix = merged_tensors(model, "mix")

    assert model.active == "mix"
    for key in filter(lambda key: in_layers(model, key) and bare.get(key, a[key]).is_floating_point(), a):
        start = bare.get(key, torch.zeros_like(a[key]))  # ssf gives qkv a bias
        expected = start + factors[0] * (a[key] - start) + factors[1] * (b[key] - start)
        torch.testing.assert_close(mix[key], expected, **EXACT)
    assert all(torch.equal(mix[key], a[key]) for key in mix if not in_layers(model, key))


def test_stacked_updates_have_the_sum_of_the_ranks_and_run_unmerged():
    model, points = pair("lora"), cases.make_points().double()
    model.combine_adapters({"a": 1.0, "b": 1.0})

    with torch.no_grad():
        unmerged = model(points)
        with model.merged():
            merged = model(points)

    assert (model.active, model.config.method, model.config.rank) == ("combined", "lora", 16)
    torch.testing.assert_close(unmerged, merged, **EXACT)


def test_a_combination_is_saved_and_loaded_like_any_adapter(tmp_path):
    model, points = pair("clora").float(), cases.make_points()
    model.combine_adapters({"a": 0.5, "b": 0.5}, head_of="b")
    model.save_adapter(tmp_path / "mix.safetensors")

    loaded = load_adapter(tmp_path / "mix.safetensors", cases.make_backbone("point_mae"))

    with torch.no_grad():
        assert torch.equal(loaded(points), model(points))


def test_head_and_tokens_are_those_of_the_adapter_that_is_asked_for():
    model = pair("lora")
    model.set_active("b")
    expected = copy.deepcopy(model.base.head.state_dict())

    model.combine_adapters({"a": 0.5, "b": 0.5}, head_of="b")

    found = model.base.head.state_dict()
    assert all(torch.equal(found[key], expected[key]) for key in found)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({}, "Nothing to combine"),
        ({"a": 0.5, "c": 0.5}, "There is no adapter 'c'"),
        ({"a": float("nan"), "b": 1.0}, "factor of adapter 'a' is nan"),
        ({"a": True, "b": 1.0}, "factor of adapter 'a' is True"),
        ({"a": "0.5", "b": 1.0}, "factor of adapter 'a' is '0.5'"),
    ],
)
def test_what_cannot_be_combined_is_refused_and_nothing_is_attached(weights, message):
    model = pair("lora")

    with pytest.raises(UserValueError, match=message):
        model.combine_adapters(weights)

    assert (model.adapter_names, model.active) == (("a", "b"), "b")


@pytest.mark.parametrize("setting", ["dora", "dapt", "clora_both_bias", "adapter"])
def test_methods_without_a_sum_say_so(setting):
    model = pair(setting)

    with pytest.raises(AdapterStateError, match=r"no low-rank update|does not fold|has a bias"):
        model.combine_adapters({"a": 0.5, "b": 0.5})

    assert (model.adapter_names, model.active) == (("a", "b"), "b")


def test_adapters_of_two_methods_or_settings_are_not_combined():
    model = attach_adapter(cases.make_backbone("point_mae"), {"method": "lora"}, name="a")
    attach_adapter(model, {"method": "clora"}, name="b")
    with pytest.raises(UserValueError, match=r"one method can be combined, not a \(lora\), b \(clora\)"):
        model.combine_adapters({"a": 0.5, "b": 0.5})
    with pytest.raises(UserValueError, match="head_of='b' is not among the combined: a"):
        model.combine_adapters({"a": 0.5}, head_of="b")
    attach_adapter(model, {"method": "ssf"}, name="c")
    attach_adapter(model, {"method": "ssf", "blocks": [0]}, name="d")
    with pytest.raises(UserValueError, match="ssf can be combined only with the same settings"):
        model.combine_adapters({"c": 0.5, "d": 0.5})
    with pytest.raises(UserValueError, match="named 'a' is attached already"):
        model.combine_adapters({"a": 0.5}, "a")
    model.merge()
    with pytest.raises(AdapterStateError, match="is merged"):
        model.combine_adapters({"a": 0.5})


@pytest.mark.parametrize("name", ["a", "b"])
def test_a_renamed_adapter_keeps_its_place_its_values_and_its_file(name, tmp_path):
    model, points = pair("lora"), cases.make_points().double()
    model.set_active(name)
    with torch.no_grad():
        before = model(points)
    model.save_adapter(tmp_path / "before.safetensors")
    frozen = next(parameter for key, parameter in model.named_parameters() if key in model.plan)
    frozen.requires_grad_(False)

    model.rename_adapter(name, "global")

    model.save_adapter(tmp_path / "after.safetensors")
    assert model.active == "global"
    assert model.adapter_names == tuple("global" if each == name else each for each in ("a", "b"))
    assert (tmp_path / "before.safetensors").read_bytes() == (tmp_path / "after.safetensors").read_bytes()
    assert not frozen.requires_grad
    with torch.no_grad():
        assert torch.equal(model(points), before)
    model.set_active(None)
    model.set_active("global")
    model.remove_adapter("global")
    assert model.active is None


def test_names_that_cannot_be_are_refused_in_renaming():
    model = pair("lora")
    for new, message in (("a", "is attached already"), ("no good", "cannot name"), ("items", "cannot name")):
        with pytest.raises(UserValueError, match=message):
            model.rename_adapter("b", new)
    with pytest.raises(UserTypeError, match="named by a string"):
        model.rename_adapter("b", 3)
    with pytest.raises(UserValueError, match="There is no adapter 'x'"):
        model.rename_adapter("x", "y")
    model.rename_adapter("b", "b")
    assert model.adapter_names == ("a", "b")


def test_samples_of_one_batch_run_with_methods_of_their_own():
    model, points = cases.make_backbone("point_mae"), cases.make_points(6)
    names = {"low": "lora", "spaces": "clora", "scales": "ssf", "biases": "bitfit", "turned": "dora"}
    for seed, (name, method) in enumerate(names.items()):
        model = cases.shake(attach_adapter(model, {"method": method}, name=name), seed=seed)
    model.eval()
    route = [*names, None]

    with torch.no_grad():
        mixed = model(points, adapters=route)
        for row, name in enumerate(route):
            model.set_active(name)
            torch.testing.assert_close(mixed[row], model(points)[row], rtol=1e-5, atol=1e-5)  # batch sizes


def test_status_says_of_every_layer_what_is_there():
    model = pair("lora")
    model.set_active("a")
    rows = {row.name: row for row in model.status()}

    row = rows["blocks.0.attn.qkv"]
    assert (row.available, row.active, row.merged, row.module_type) == (("a", "b"), "a", None, "Linear")
    assert row.dtypes == {"a": ("torch.float64",), "b": ("torch.float64",)}
    assert row.devices == {"a": ("cpu",), "b": ("cpu",)}
    assert (row.trainable["a"][0], row.trainable["b"][0]) == (row.trainable["a"][1], 0)
