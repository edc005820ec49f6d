"""Key maps: both directions of one table are inverse, and every rule does what it says."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from pcl_clora.models.backbones.point_mae.network import OFFICIAL_KEYS
from pcl_clora.models.key_map import KeyMap, Rule

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


@given(names("theirs"))
def test_a_key_that_translates_translates_back(case):
    key_map, key = case
    name = key_map.to_ours(key)
    assert name is None or key_map.to_theirs(name) == key


@given(names("ours"))
def test_a_name_that_translates_translates_back(case):
    key_map, name = case
    key = key_map.to_theirs(name)
    assert key is None or key_map.to_ours(key) == name


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
    assert OFFICIAL_KEYS.to_ours(key) == name


def test_a_key_that_would_not_come_back_is_unknown():
    assert SHADOWED.to_ours("a.norm.b") == "a.first.b"
    assert SHADOWED.to_ours("a.first.b") is None


@pytest.mark.parametrize(("conv", "shape"), [(0, (4, 3)), (True, (4, 3, 1)), (2, (4, 3, 1, 1))])
def test_the_kernel_of_a_convolution_goes_and_comes_back(conv, shape):
    key_map = KeyMap((Rule("theirs.", "ours.", conv=conv),))
    weight, bias = torch.arange(12.0).view(shape), torch.ones(4)
    ours = key_map.tensor_to_ours("theirs.weight", weight)
    assert ours.shape == (4, 3)
    assert torch.equal(key_map.tensor_to_theirs("ours.weight", ours), weight)
    assert key_map.tensor_to_ours("theirs.bias", bias) is bias
    assert key_map.tensor_to_theirs("ours.bias", bias) is bias


def test_a_wider_kernel_keeps_its_shape():
    key_map = KeyMap((Rule("theirs.", "ours.", conv=True),))
    assert key_map.tensor_to_ours("theirs.weight", torch.ones(4, 3, 2)).shape == (4, 3, 2)


@pytest.mark.parametrize(
    ("theirs", "ours", "match"),
    [("a.", "b", "prefix on one side"), ("a.*.", "b.", r"another number of '\*'"), ("", "b", "empty side")],
)
def test_a_rule_with_unequal_sides_is_refused(theirs, ours, match):
    with pytest.raises(ValueError, match=match):
        Rule(theirs, ours)
