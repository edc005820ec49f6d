"""Key maps: both directions of one table are inverse, and every rule does what it says."""

import copy
import pickle

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from pcl_clora.models.backbones.point_mae.keys import CLASSIFICATION_KEYS as OFFICIAL_KEYS
from pcl_clora.models.key_map import KeyMap, LeftOut, Rule

SHADOWED = KeyMap((Rule("a.norm.", "a.first."), Rule("a.", "a."), Rule("*.x", "y.*")))
MAPS = {"point_mae": OFFICIAL_KEYS, "shadowed": SHADOWED}

component = st.sampled_from(["a", "norm", "first", "x", "y", "0", "11", "weight", "running_mean"])


@st.composite
def names(draw, side):
    """A name that fits a rule of the map, or one made of arbitrary components."""
    key_map = MAPS[draw(st.sampled_from(sorted(MAPS)))]
    if draw(st.booleans()):
        return key_map, ".".join(draw(st.lists(component, min_size=1, max_size=4)))
    pattern = getattr(draw(st.sampled_from(key_map.rules)), side)
    parts = [draw(component) if part == "*" else part for part in pattern.split(".") if part]
    tail = draw(st.lists(component, min_size=1, max_size=3)) if pattern.endswith(".") else []
    return key_map, ".".join(parts + tail)


@given(names("first"))
def test_a_key_that_translates_translates_back(case):
    key_map, key = case
    name = key_map.translate(key, to="ours")
    assert name is None or key_map.translate(name, to="official") == key


@given(names("second"))
def test_a_name_that_translates_translates_back(case):
    key_map, name = case
    key = key_map.translate(name, to="official")
    assert key is None or key_map.translate(key, to="ours") == name


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("encoder.first_conv.3.weight", "patch_embed.linear2.weight"),
        ("encoder.second_conv.1.running_var", "patch_embed.norm2.running_var"),
        ("blocks.blocks.11.attn.qkv.weight", "blocks.11.attn.qkv.weight"),
        ("norm.bias", "norm.bias"),
        ("cls_token", "prefix.token"),
        ("cls_head_finetune.8.bias", "head.8.bias"),
        ("cls_token.weight", None),
        ("MAE_decoder.norm.weight", None),
        ("blocks.blocks.", None),
    ],
)
def test_official_keys_of_point_mae_translate(key, name):
    assert OFFICIAL_KEYS.translate(key, to="ours") == name


def test_a_key_that_would_not_come_back_is_unknown():
    assert SHADOWED.translate("a.norm.b", to="ours") == "a.first.b"
    assert SHADOWED.translate("a.first.b", to="ours") is None


@pytest.mark.parametrize(("conv", "shape"), [(0, (4, 3)), (True, (4, 3, 1)), (2, (4, 3, 1, 1))])
def test_the_kernel_of_a_convolution_goes_and_comes_back(conv, shape):
    key_map = KeyMap((Rule("theirs.", "ours.", conv=conv),))
    weight, bias = torch.arange(12.0).view(shape), torch.ones(4)
    ours = key_map.translate_tensor("theirs.weight", weight, to="ours")
    assert ours.shape == (4, 3)
    assert torch.equal(key_map.translate_tensor("ours.weight", ours, to="official"), weight)
    assert key_map.translate_tensor("theirs.bias", bias, to="ours") is bias
    assert key_map.translate_tensor("ours.bias", bias, to="official") is bias


def test_a_wider_kernel_keeps_its_shape():
    key_map = KeyMap((Rule("theirs.", "ours.", conv=True),))
    assert key_map.translate_tensor("theirs.weight", torch.ones(4, 3, 2), to="ours").shape == (4, 3, 2)


@pytest.mark.parametrize(
    ("first", "second", "match"),
    [("a.", "b", "prefix on one side"), ("a.*.", "b.", r"another number of '\*'"), ("", "b", "empty side")],
)
def test_a_rule_with_unequal_sides_is_refused(first, second, match):
    with pytest.raises(ValueError, match=match):
        Rule(first, second)


def test_a_map_translates_to_its_own_sides_and_to_no_other():
    hub = KeyMap((Rule("a.", "b."),), sides=("official", "hub"))
    assert hub.translate("a.x", to="hub") == "b.x"
    assert hub.translate("b.x", to="official") == "a.x"
    with pytest.raises(ValueError, match="to='ours' is no side of this map; choose official or hub"):
        hub.translate("a.x", to="ours")
    with pytest.raises(ValueError, match="to='ours' is no side"):
        hub.translate_tensor("a.x", torch.ones(1), to="ours")


def test_a_reason_reads_as_its_text_and_keeps_its_kind_in_copies():
    reason = LeftOut("head", "head of another task")
    for made in (reason, copy.deepcopy(reason), pickle.loads(pickle.dumps(reason))):
        assert made == "head of another task"
        assert made.kind == "head"
