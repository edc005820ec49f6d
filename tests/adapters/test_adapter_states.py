"""States that were silently wrong: names, disabled(), state_dicts, flags, values that are not finite."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pcl_clora.adapters import (
    AdaptedModel,
    AdapterFileError,
    AdapterStateError,
    attach_adapter,
    load_adapter,
)
from pcl_clora.adapters.paths import tuner_layers
from pcl_clora.errors import UserTypeError
from tests.support import adapter_cases as cases

CLORA, LORA = cases.SETTINGS["clora"], cases.SETTINGS["lora"]


def make(first: str = "clora", second: str | None = "lora", backbone: str = "plain") -> AdaptedModel:
    """Adapters a and b with tensors of their own; b is active."""
    model = cases.shake(attach_adapter(cases.make_backbone(backbone), cases.SETTINGS[first], "a"))
    return (
        model if second is None else cases.shake(attach_adapter(model, cases.SETTINGS[second], "b"), seed=4)
    )


# Names


@pytest.mark.parametrize(
    "name",
    [
        "training",
        "items",
        "forward",
        "_modules",
        "state_dict",
        "__class__",
        "call_super_init",
        "a/",
        "a\n",
        "\u00e9",
    ],
)
def test_a_name_that_collides_is_refused_and_the_active_adapter_stays(name: str) -> None:
    model = make()
    expected = model(cases.make_points())

    with pytest.raises(ValueError, match="cannot name an adapter"):
        attach_adapter(model, CLORA, name)

    assert (model.active, model.adapter_names) == ("b", ("a", "b"))
    assert torch.equal(model(cases.make_points()), expected)


def test_a_name_that_is_no_string_is_refused() -> None:
    with pytest.raises(TypeError, match="named by a string"):
        attach_adapter(make(), CLORA, 3)


# Wrapping


class Around(nn.Module):
    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside, self.interface = inside, inside.interface


@pytest.mark.parametrize("setting", cases.ON_PLAIN)
@pytest.mark.parametrize(
    "take", [AdaptedModel, lambda m: attach_adapter(Around(m), LORA), lambda m: attach_adapter(m.base, LORA)]
)
def test_an_adapted_model_is_not_adapted_again(setting: str, take) -> None:
    model = make(setting, None)

    with pytest.raises(ValueError, match="carries adapters already"):
        take(model)


def test_a_backbone_that_was_let_go_can_be_adapted_again() -> None:
    model = make("linear_probe", None)

    again = attach_adapter(model.unload(), LORA)
    removed = make("linear_probe", None)
    removed.remove_adapter("a")

    assert again.active == "default"
    assert AdaptedModel(removed.base).active is None


# disabled()


def bare() -> Tensor:
    return cases.make_backbone("plain")(cases.make_points())


def test_routed_samples_get_the_bare_backbone_inside_disabled() -> None:
    model = make()

    with model.disabled():
        routed = model(cases.make_points(), adapters=["a", "b", None, "a"])
        with model.disabled():
            nested = model(cases.make_points())
        after_nested = model(cases.make_points())

    assert all(torch.equal(output, bare()) for output in (routed, nested, after_nested))
    assert model.active == "b"


@pytest.mark.parametrize(("name", "active"), [("a", "b"), ("b", None)])
def test_an_adapter_can_be_removed_inside_disabled(name: str, active: str | None) -> None:
    model = make()

    with model.disabled():
        model.remove_adapter(name)
        inside = model(cases.make_points())

    assert torch.equal(inside, bare())
    assert model.active == active
    assert name not in model.adapter_names


def test_what_is_chosen_inside_disabled_is_active_afterwards(tmp_path: Path) -> None:
    model = make()
    model.save_adapter(tmp_path / "b.safetensors")
    expected = model(cases.make_points())

    with model.disabled():
        model.set_active("a")
        chosen = model(cases.make_points())
        load_adapter(tmp_path / "b.safetensors", model, "c")
        loaded = model(cases.make_points())

    assert torch.equal(chosen, bare())
    assert torch.equal(loaded, bare())
    assert model.active == "c"
    assert torch.equal(model(cases.make_points()), expected)


def test_a_model_can_be_unloaded_inside_disabled() -> None:
    model = make()
    with model.disabled():
        plain = model.unload()

    assert torch.equal(plain(cases.make_points()), bare())


# state_dict


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("saved", ["a", "b", None])
@pytest.mark.parametrize("now", ["a", "b", None])
@pytest.mark.parametrize("second", ["lora", "linear_probe", "lora_everywhere"])
def test_a_state_dict_loads_into_the_tensors_it_was_taken_from(
    second: str, now: str | None, saved: str | None, wrap: bool, strict: bool
) -> None:
    source, target = make("clora", second), make("clora", second)
    outputs = {}
    with torch.no_grad():
        for parameter in target.parameters():
            parameter.zero_()
    for name in ("a", "b", None):
        source.set_active(name)
        outputs[name] = source(cases.make_points())
    source.set_active(saved)
    target.set_active(now)
    state = {key: value.clone() for key, value in source.state_dict().items()}

    if wrap:
        nn.ModuleDict({"m": target}).load_state_dict({f"m.{k}": v for k, v in state.items()}, strict=strict)
    else:
        target.load_state_dict(state, strict=strict)

    assert target.active == now
    for name, expected in outputs.items():
        target.set_active(name)
        assert torch.equal(target(cases.make_points()), expected)


def test_the_trained_tensors_of_one_adapter_load_into_it_while_another_is_active() -> None:
    source, target = make(), make()
    source.set_active("a")
    cases.shake(source, seed=8)
    names = source.saved_names()
    state = {key: value.clone() for key, value in source.state_dict().items() if key in names}
    expected_b = target(cases.make_points())

    target.load_state_dict(state, strict=False)

    assert torch.equal(target(cases.make_points()), expected_b)
    target.set_active("a")
    assert torch.equal(target(cases.make_points()), source(cases.make_points()))


def test_a_head_that_is_nobodys_is_refused() -> None:
    model = make("linear_probe", "linear_probe")
    before = cases.snapshot(model)
    head = {key: value + 1 for key, value in before.items() if key.startswith("base.classifier.")}

    with pytest.raises(ValueError, match=r"base\.classifier\.weight and does not say of which adapter: a, b"):
        model.load_state_dict(head, strict=False)

    assert cases.changed_names(model, before) == set()


@pytest.mark.parametrize("waiting", ["lora", "linear_probe", None])
@pytest.mark.parametrize("attached", ["lora", "linear_probe_and_lora", None])
def test_the_head_of_an_adapter_that_is_not_attached_lands_in_no_other(
    waiting: str | None, attached: str | None
) -> None:
    source = make(waiting, None) if waiting else AdaptedModel(cases.make_backbone("plain"))
    cases.shake(attach_adapter(source, CLORA, "c"), seed=6)
    target = AdaptedModel(cases.make_backbone("plain"))
    if attached == "lora":
        target = make("lora", None)
    elif attached is not None:
        target = make("linear_probe", "lora")
    before, active = cases.snapshot(target), target.active

    with pytest.raises(ValueError, match=r"while adapter 'c' was active that is not attached here"):
        target.load_state_dict(source.state_dict(), strict=False)

    assert cases.changed_names(target, before) == set()
    assert target.active == active


def test_the_copies_of_an_adapter_without_other_tensors_land_in_none_that_has_them() -> None:
    target = make("lora", None)
    before = cases.snapshot(target)

    with pytest.raises(ValueError, match=r"while an adapter was active that is not attached here \(a\)"):
        target.load_state_dict(make("linear_probe", None).state_dict(), strict=False)

    assert cases.changed_names(target, before) == set()


# Gradients


def trained(model: AdaptedModel) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_flags_that_the_user_sets_survive_switching_and_disabled(tmp_path: Path) -> None:
    model = make("clora", "lora")
    model.set_active("a")
    for name, parameter in model.named_parameters():
        if name.startswith("base.classifier") or name.endswith("core.weight"):
            parameter.requires_grad_(False)
    chosen = trained(model)

    with model.disabled():
        inside = trained(model)
    model(cases.make_points(), adapters=["a", "b", None, "a"])
    after_disabled = trained(model)
    model.set_active("b")
    other = trained(model)
    attach_adapter(model, LORA, "c")
    model.remove_adapter("c")
    model.set_active("a")

    assert chosen
    assert inside == set()
    assert after_disabled == chosen
    assert "base.classifier.weight" in other
    assert trained(model) == chosen


@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize("setting", cases.ON_PLAIN)
def test_a_loaded_adapter_is_trainable_as_asked_and_in_evaluation_mode(
    setting: str, trainable: bool, tmp_path: Path
) -> None:
    make(setting, None).save_adapter(tmp_path / "a.safetensors")

    model = load_adapter(
        tmp_path / "a.safetensors", cases.make_backbone("plain").train(), trainable=trainable
    )
    first = trained(model)
    model.set_active(None)
    model.set_active("default")

    assert not any(part.training for part in model.modules())
    assert bool(first) == trainable
    assert trained(model) == first


# Values


def spoil(model: AdaptedModel, value: float) -> str:
    """Put a value into one tensor of the active adapter; its name in the file."""
    key = next(k for k in reversed(model.adapter_state()) if model.adapter_state()[k].is_floating_point())
    model.adapter_state()[key].view(-1)[-1] = value
    return key


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("setting", cases.ON_PLAIN)
def test_values_that_are_not_finite_are_neither_merged_nor_saved(
    setting: str, value: float, tmp_path: Path
) -> None:
    model = make(setting, None)
    key = spoil(model, value)
    before = [tensor.clone() for tensor in model.backbone_tensors().values()]

    for call in (model.merge, lambda: model.save_adapter(tmp_path / "a.safetensors")):
        with pytest.raises(AdapterStateError, match="not finite") as caught:
            call()
        assert key in str(caught.value)

    assert not model.is_merged
    assert list(tmp_path.iterdir()) == []
    assert all(torch.equal(x, y) for x, y in zip(before, model.backbone_tensors().values(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_merged_weights_that_half_precision_cannot_hold_are_refused(dtype: torch.dtype) -> None:
    model = make("lora", None).to(dtype)
    largest = torch.finfo(dtype).max
    delta = next(iter(tuner_layers(model.base).values())).deltas["a"].updates["q"]
    with torch.no_grad():
        delta.down.fill_(largest**0.5)
        delta.up.fill_(largest**0.5)
    before = cases.snapshot(model)

    with pytest.raises(
        AdapterStateError, match=rf"layers\.0\.attention\.mix_in\.weight.*{dtype}.*nothing was"
    ):
        model.merge()

    assert cases.changed_names(model, before) == set()


# Passing through


def test_the_wrapper_shows_the_backbone() -> None:
    model = cases.shake(attach_adapter(cases.make_backbone("point_mae"), CLORA))
    points = cases.make_points()

    features = model.forward_features(points)
    model.set_grad_checkpointing(True)

    assert torch.equal(model.forward_head(features), model(points))
    assert model.get_classifier() is model.base.head
    assert model.config.method == "clora"
    assert torch.equal(model(points=points), model(points))
    routed = model(points=points, adapters=["default", None] * 2)
    torch.testing.assert_close(routed[::2], model(points)[::2], rtol=1e-5, atol=1e-6)
    with pytest.raises(AttributeError, match="no attribute 'nowhere'"):
        _ = model.nowhere
    assert not hasattr(model, "__len__")


def test_an_adapted_layer_shows_the_layer_underneath() -> None:
    model = make()
    layer = next(iter(tuner_layers(model.base).values()))

    assert layer.weight is layer.base_layer.weight
    assert layer.bias is layer.base_layer.bias
    assert (layer.in_features, layer.out_features) == (24, 72)
    assert {name for name in model.state_dict() if name.endswith("mix_in.weight")} == set()
    with pytest.raises(AttributeError, match="nowhere"):
        _ = layer.nowhere


def test_a_head_that_is_reset_belongs_to_the_active_adapter() -> None:
    model = cases.shake(attach_adapter(cases.make_backbone("point_mae"), CLORA))

    model.reset_classifier(9)
    nine = model(cases.make_points()).shape, model.num_classes
    model.set_active(None)

    assert nine == ((4, 9), 9)
    assert model(cases.make_points()).shape == (4, 5)
    assert model.num_classes == 5


def test_an_empty_batch_is_refused() -> None:
    for adapters in (None, []):
        with pytest.raises(ValueError, match=r"batch is empty: \(0, 128, 3\)"):
            make()(torch.zeros(0, 128, 3), adapters=adapters)


def test_inputs_that_cannot_be_taken_apart_are_refused() -> None:
    class Scaled(cases.BareTransformer):
        def forward(self, points: Tensor, factor: Tensor, power: int = 1) -> Tensor:
            return super().forward(points) * factor[:, None] ** power

    model = attach_adapter(Scaled().eval(), CLORA)
    factor = torch.tensor([1.0, 2.0, 3.0, 4.0])
    expected = model(cases.make_points(), factor=factor, power=2)

    routed = model(cases.make_points(), factor=factor, power=2, adapters=["default", None] * 2)

    torch.testing.assert_close(routed, expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match=r"has 3 entries.*4 samples"):
        model(cases.make_points(), factor=factor[:3], adapters=["default", None] * 2)


# Losses and status


def test_the_status_of_layers_says_what_runs() -> None:
    model = make()
    before = {row.name: row for row in model.status()}
    model.set_active("a")
    with model.merged():
        merged = {row.name: row for row in model.status()}

    row = before["layers.0.attention.mix_in"]
    assert (row.module_type, row.available, row.active, row.merged) == ("Linear", ("a", "b"), "b", None)
    assert row.trainable == {"a": (0, 48), "b": (2 * (4 * 24 + 24 * 4), 2 * (4 * 24 + 24 * 4))}
    assert row.dtypes["b"] == ("torch.float32",)
    assert row.devices["a"] == ("cpu",)
    assert before["layers.1.ffn.0"].active is None
    assert merged["layers.1.ffn.0"].merged == "a"


def test_a_file_of_another_dtype_is_refused(tmp_path: Path) -> None:
    model = make("lora", None)
    state = {key: value.to(torch.int32) for key, value in model.adapter_state().items()}

    with pytest.raises(ValueError, match=r"is torch\.int32, expected torch\.float32"):
        model.load_adapter_state(state)
    assert issubclass(AdapterFileError, ValueError)


def test_settings_in_place_of_a_method_are_refused_and_change_nothing() -> None:
    model = attach_adapter(cases.make_point_mae(), {"method": "lora", "rank": 2})
    with pytest.raises(UserTypeError, match=r"takes a method .* attach_adapter\(model, settings"):
        model.add_adapter("b", {"method": "lora"})  # type: ignore[arg-type]
    assert model.active == "default"
