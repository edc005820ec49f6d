"""The adapted model beyond the contract: attaching, modes, the plan, whole blocks, errors."""

from __future__ import annotations

import copy
from typing import ClassVar, Literal

import pytest
import torch
from torch import Tensor, nn

from pcl_clora.adapters import (
    AdaptedModel,
    AdapterConfig,
    AdapterMethod,
    AdapterStateError,
    Delta,
    attach_adapter,
    format_plan,
    list_adapters,
    parse_adapter_config,
    register_adapter,
    trainable_plan,
)
from pcl_clora.adapters.methods.linear_probe import LinearProbe
from pcl_clora.adapters.plan import tracks_statistics
from pcl_clora.config import ConfigError
from pcl_clora.models import create_model
from pcl_clora.models.interface import ModelInterface
from tests.support import adapter_cases as cases
from tests.support.engine_cases import FITTING

CLORA = {"method": "clora", "rank": 4, "num_spaces": 3}


def make(**settings: object) -> AdaptedModel:
    return cases.shake(attach_adapter(cases.make_backbone("point_mae"), {**CLORA, **settings}))


# Registry


def test_the_matrix_of_tests_covers_every_method() -> None:
    assert {case["method"] for case in cases.SETTINGS.values()} == set(list_adapters())


def test_a_method_registered_twice_raises() -> None:
    with pytest.raises(ValueError, match=r"linear_probe.*registered already"):
        register_adapter(LinearProbe)


@pytest.mark.parametrize("values", [{"method": "clara"}, {"method": "loras", "rank": 3}], ids=str)
def test_an_unknown_method_names_the_nearest(values: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=r"did you mean .*Valid: .*clora, .*full, .*linear_probe, lora"):
        parse_adapter_config(values)


@pytest.mark.parametrize("name", list(cases.SETTINGS))
def test_settings_survive_being_written_out(name: str) -> None:
    config = parse_adapter_config(cases.SETTINGS[name])

    assert parse_adapter_config(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "full", "train": ["head"]}, "full trains every part"),
        ({"method": "full", "freeze": {"norm_stats": "frozen"}}, "leave freeze out"),
        ({"method": "linear_probe", "train": []}, "nothing to learn"),
    ],
    ids=str,
)
def test_settings_without_effect_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_adapter_config(settings)


# Attaching


@pytest.mark.parametrize(
    ("name", "message"),
    [("", "cannot name"), ("a.b", "cannot name"), ("items", "cannot name"), ("default", "attached already")],
)
def test_names_that_cannot_be_used_are_refused(name: str, message: str) -> None:
    model = make()

    with pytest.raises(ValueError, match=message):
        attach_adapter(model, CLORA, name)

    assert model.adapter_names == ("default",)


def test_a_backbone_inside_an_adapted_model_is_not_adapted_again() -> None:
    with pytest.raises(ValueError, match="carries adapters already"):
        attach_adapter(make().base, CLORA)


def test_a_model_without_interface_is_refused() -> None:
    with pytest.raises(TypeError, match="publishes no ModelInterface"):
        attach_adapter(nn.Linear(3, 3), CLORA)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "lora", "targets": ["fc2"]}, "no layer for role 'fc2'; it has qkv, proj, fc1, q, k, v"),
        ({"method": "lora", "train": ["patch_embed"]}, "part 'patch_embed'.*it has head, tokens"),
    ],
    ids=str,
)
def test_what_does_not_match_raises_before_anything_changes(
    settings: dict[str, object], message: str
) -> None:
    base = cases.make_backbone("bare")
    modules = [id(module) for module in base.modules()]

    with pytest.raises(ValueError, match=message):
        attach_adapter(base, settings)

    assert [id(module) for module in base.modules()] == modules
    assert all(parameter.requires_grad for parameter in base.parameters())


def break_interface(base: nn.Module, **changes: object) -> None:
    base.interface = ModelInterface(
        **{
            "embed_dim": 16,
            "blocks": base.interface.blocks,
            "linears": base.interface.linears,
            "parts": base.interface.parts,
            **changes,
        }
    )


@pytest.mark.parametrize(
    ("changes", "settings", "error", "message"),
    [
        ({"blocks": ()}, CLORA, ValueError, "No layer matches role 'qkv'"),
        ({"blocks": ("layers.7",)}, CLORA, ValueError, "nothing at 'layers.7"),
        ({"blocks": ("layers.0", "layers.0")}, CLORA, ValueError, "role 'qkv' twice"),
        (
            {"linears": {"qkv": "ln1", "fc1": "ffn.0"}},
            CLORA,
            TypeError,
            "expected an nn.Linear, found LayerNorm",
        ),
        ({"linears": {"qkv": "ffn.0", "fc1": "ffn.0"}}, CLORA, ValueError, "Two roles name layers.0.ffn.0"),
        ({"embed_dim": 8}, CLORA, ValueError, "maps 16 to 48 features.*8 x 8"),
        ({"embed_dim": 8}, {"method": "lora"}, ValueError, "48 output rows, not 3 x 8"),
        ({"parts": {"head": ("layers",), "tokens": ()}}, CLORA, ValueError, "trained as a whole"),
        ({"parts": {"head": ("nowhere",), "tokens": ()}}, CLORA, ValueError, "nothing at 'nowhere'"),
    ],
    ids=lambda value: "" if isinstance(value, type) else str(value)[:40],
)
def test_an_interface_that_is_wrong_is_found_before_anything_changes(
    changes: dict[str, object], settings: dict[str, object], error: type[Exception], message: str
) -> None:
    base = cases.make_backbone("bare")
    break_interface(base, **changes)
    before = list(base.state_dict())

    with pytest.raises(error, match=message):
        attach_adapter(base, settings)

    assert list(base.state_dict()) == before


def test_layers_that_share_one_weight_cannot_carry_two_changes() -> None:
    base = cases.make_backbone("bare")
    base.layers[1].attention.mix_in.weight = base.layers[0].attention.mix_in.weight

    with pytest.raises(ValueError, match="share one weight"):
        attach_adapter(base, CLORA)


# Modes


def test_frozen_batchnorms_evaluate_while_those_of_the_head_train() -> None:
    model = make().train()

    modes = {name: m.training for name, m in model.base.named_modules() if tracks_statistics(m)}

    assert modes == {
        "patch_embed.norm1": False,
        "patch_embed.norm2": False,
        "head.1": True,
        "head.5": True,
    }
    assert model.base.blocks[2].drop_path.training


def test_tracked_batchnorms_all_train() -> None:
    model = make(freeze={"norm_stats": "track"}).train()

    assert all(m.training for m in model.base.modules() if tracks_statistics(m))


def test_a_trained_part_brings_its_batchnorms_along() -> None:
    model = make(train=["patch_embed", "norms"])
    before = cases.snapshot(model)

    cases.train_steps(model)

    changed = cases.changed_names(model, before)
    assert changed == set(model.saved_names())
    assert "base.patch_embed.norm1.running_var" in changed
    assert "base.blocks.1.norm2.weight" in changed
    assert not any(name.startswith("base.head") for name in changed)


@pytest.mark.parametrize("training", [False, True])
def test_attaching_and_merging_keep_the_mode(training: bool) -> None:
    model = attach_adapter(cases.make_backbone("point_mae").train(training), CLORA)

    with model.merged():
        inside = model.training

    assert not inside
    assert model.training == training
    assert model.base.blocks[0].training == training
    assert model.merge_and_unload().training == training


def test_evaluation_mode_is_allowed_while_merged() -> None:
    model = make()
    with model.merged():
        assert not model.eval().training


def test_a_state_dict_of_merged_weights_is_refused() -> None:
    model = make()
    state = model.state_dict()
    with model.merged():
        with pytest.raises(AdapterStateError, match="unmerge"):
            model.base.state_dict()
        with pytest.raises(AdapterStateError, match="unmerge"):
            model.load_state_dict(state)


def test_a_deep_copy_of_a_merged_model_unmerges_by_itself() -> None:
    model = make(bias=True)
    before = cases.snapshot(model)
    model.merge()
    twin = copy.deepcopy(model)
    model.unmerge()

    twin.unmerge()

    assert cases.changed_names(twin, before) == set()
    assert twin.state_dict().keys() == before.keys()


def test_a_model_that_was_unloaded_says_so() -> None:
    model = make()
    model.merge_and_unload()

    with pytest.raises(AdapterStateError, match="used this model up"):
        model.set_active(None)


def test_merging_without_an_active_adapter_says_which_there_are() -> None:
    model = make()
    model.set_active(None)

    with pytest.raises(AdapterStateError, match=r"call set_active\(\) with one of: default"):
        model.merge()


@pytest.mark.slow
def test_merged_equals_unmerged_on_the_full_size_model() -> None:
    torch.manual_seed(0)
    base = create_model("point_mae", num_classes=15).eval()
    model = cases.shake(attach_adapter(base, {"method": "clora"}), size=0.02)
    points = torch.rand(2, 2048, 3, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        unmerged = model(points)
        with model.disabled():
            bare = model(points)
        with model.merged():
            merged = model(points)

    assert (unmerged - bare).abs().max() > 0.05  # the adapter does something
    assert (merged - unmerged).abs().max() <= 1e-5


# The plan


def test_the_plan_says_why() -> None:
    model = make(freeze={"norm_stats": "track"})
    plan = trainable_plan(model, model.config)

    assert plan["slots.default.method.spaces.global/.down"] == "clora, shared by all layers"
    assert plan["base.blocks.0.mlp.fc1.deltas.default.lrms.input.core.weight"] == "clora, one layer's own"
    assert plan["base.head.0.weight"] == "part head"
    assert plan["base.head.1.num_batches_tracked"] == "part head, normalisation statistics"
    assert plan["base.prefix.pos"] == "part tokens"
    assert plan["base.patch_embed.norm1.running_mean"] == "normalisation statistics of frozen layers"
    assert set(plan) <= set(model.state_dict())


def test_the_plan_of_other_settings_is_refused() -> None:
    model = make()

    with pytest.raises(ValueError, match="other settings"):
        trainable_plan(model, parse_adapter_config({"method": "lora"}))


def test_the_plan_is_printed_by_reason_with_counts() -> None:
    model = make()

    lines = format_plan(model.plan, model).splitlines()

    assert len(lines) == 6
    assert lines[-1].startswith("everything else: frozen")
    assert lines[0].split()[:8] == [
        "clora,",
        "shared",
        "by",
        "all",
        "layers",
        "2",
        "tensors",
        f"{2 * 48 * 12:,}",
    ]
    assert format_plan({}) == "nothing is trained"


def test_weight_decay_spares_what_the_backbone_names() -> None:
    assert make().no_weight_decay() == {"base.prefix.token"}


# Whole blocks: how methods that need tokens and positions get at them


class ShiftConfig(AdapterConfig):
    method: Literal["shift"] = "shift"


class ShiftDelta(Delta):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.amount = nn.Parameter(torch.zeros(dim))

    def forward(self, block: nn.Module, x: Tensor, pos: Tensor, tokens: object) -> Tensor:
        return block(x + self.amount * tokens.center.mean(), pos, tokens)


class Shift(AdapterMethod):
    config_type: ClassVar[type[AdapterConfig]] = ShiftConfig

    def make_deltas(self, model: nn.Module, interface: ModelInterface) -> dict[str, Delta]:
        return {path: ShiftDelta(interface.embed_dim) for path in interface.blocks}


@pytest.fixture
def shifted() -> AdaptedModel:
    """CLoRA inside the blocks, and around them a method that adapts whole blocks."""
    model = make()
    model.add_adapter("shift", Shift(ShiftConfig()))
    return model


def test_a_method_can_wrap_whole_blocks_around_adapted_layers(shifted: AdaptedModel) -> None:
    points = cases.make_points()
    expected = cases.make_backbone("point_mae")(points)
    start = shifted(points)
    before = cases.snapshot(shifted)

    cases.train_steps(shifted)

    assert torch.equal(start, expected)
    assert cases.changed_names(shifted, before) == set(shifted.saved_names())
    assert "layers.blocks.0.amount" in shifted.key_map().values()
    shifted.set_active("default")
    assert torch.equal(shifted(points), make()(points))


def test_layers_inside_a_wrapped_block_can_be_adapted_later(shifted: AdaptedModel) -> None:
    points = cases.make_points()
    expected = attach_adapter(cases.make_backbone("point_mae"), {"method": "lora", "targets": ["fc2"]})

    attach_adapter(shifted, {"method": "lora", "targets": ["fc2"]}, "late")
    cases.shake(shifted)
    expected.load_adapter_state(shifted.adapter_state())

    assert torch.equal(shifted(points), expected(points))
    shifted.remove_adapter("shift")
    assert torch.equal(shifted(points), expected(points))
    assert shifted.base_hash() == expected.base_hash()


def test_a_change_that_is_no_weight_cannot_be_merged_and_changes_nothing(shifted: AdaptedModel) -> None:
    before = cases.snapshot(shifted)

    with pytest.raises(AdapterStateError, match=r"ShiftDelta changes a Block.*cannot be merged"):
        shifted.merge()

    assert not shifted.is_merged
    assert cases.changed_names(shifted, before) == set()


def test_methods_are_listed_by_what_they_promise() -> None:
    mergeable, other = list_adapters(mergeable=True), list_adapters(mergeable=False)

    assert {"clora", "lora", "ssf", "bitfit"} <= set(mergeable)
    assert sorted(mergeable + other) == list_adapters()
    assert set(list_adapters(mergeable=True, batch_independent=True)) <= set(mergeable)


@pytest.mark.parametrize("blocks", [[2], [-3], [0, 7]], ids=str)
def test_a_block_that_is_not_there_is_named_with_those_that_are(blocks: list[int]) -> None:
    with pytest.raises(ValueError, match=r"has 2 blocks: name 0 to 1, or -1 to -2"):
        attach_adapter(cases.make_backbone("plain"), {"method": "clora", "blocks": blocks})


BESIDE = {"dapt", "gft", "idpt", "point_peft", "pointlora", "ppt", "stag"}  # they need all blocks
WITH_BLOCKS = [
    name
    for name in list_adapters()
    if "blocks" in type(parse_adapter_config({"method": name})).model_fields and name not in BESIDE
]


@pytest.mark.parametrize("method", WITH_BLOCKS)
def test_a_subset_of_blocks_is_all_that_changes(method: str) -> None:
    settings = {"method": method, **FITTING.get(method, {}), "blocks": [-1], "train": []}
    model = attach_adapter(cases.make_backbone("point_mae"), settings)

    changed = [name for name in model.plan if ".method." not in name]

    assert changed
    assert all(name.startswith("base.blocks.2.") for name in changed)
    assert parse_adapter_config({"method": method}).model_dump().keys().isdisjoint({"blocks"})
