"""Several adapters on one backbone: switching, routing per sample, heads of their own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pcl_clora.adapters import (
    AdaptedModel,
    AdapterStateError,
    attach_adapter,
    load_adapter,
)
from pcl_clora.adapters.paths import tuner_layers
from tests.support import adapter_cases as cases

CLORA = {"method": "clora", "rank": 4, "num_spaces": 3}


def make(**settings: object) -> AdaptedModel:
    return cases.shake(attach_adapter(cases.make_backbone("point_mae"), {**CLORA, **settings}))


def test_heads_of_different_class_counts_live_on_one_backbone() -> None:
    model = make()
    points = cases.make_points()
    five = model(points)

    attach_adapter(model, {"method": "linear_probe"}, "wide", num_classes=9)
    nine = model(points)
    inside = (model.num_classes, model.base.num_classes)
    model.set_active("default")

    assert five.shape == (4, 5)
    assert nine.shape == (4, 9)
    assert inside == (9, 9)
    assert (model.num_classes, model.base.num_classes) == (5, 5)
    assert torch.equal(model(points), five)


def test_routing_over_heads_of_different_widths_fills_up_with_minus_infinity() -> None:
    model = make()
    attach_adapter(model, {"method": "linear_probe"}, "wide", num_classes=9)
    points = cases.make_points()

    mixed = model(points, adapters=["default", "wide", "wide", None])

    assert mixed.shape == (4, 9)
    assert mixed.isfinite().sum(1).tolist() == [5, 9, 9, 5]
    assert (mixed[0, 5:] == float("-inf")).all()


def test_a_saved_adapter_of_another_class_count_joins_another_model(tmp_path) -> None:
    wide = attach_adapter(cases.make_backbone("point_mae"), CLORA, num_classes=9)
    cases.train_steps(wide)
    wide.save_adapter(tmp_path / "wide.safetensors")
    model = make()

    load_adapter(tmp_path / "wide.safetensors", model, "wide")

    assert torch.equal(model(cases.make_points()), wide(cases.make_points()))
    assert model.num_classes == 9
    model.set_active("default")
    assert model.num_classes == 5


def test_switching_moves_references_and_copies_no_values() -> None:
    model = attach_adapter(make(), {"method": "lora"}, "second")
    tensors = {id(tensor) for tensor in model.state_dict(keep_vars=True).values()}

    model.set_active("default")
    model.set_active(None)

    assert {id(tensor) for tensor in model.state_dict(keep_vars=True).values()} == tensors


def test_every_tensor_is_registered_once() -> None:
    model = attach_adapter(attach_adapter(make(), {"method": "full"}, "second"), CLORA, "third")

    tensors = [id(tensor) for tensor in model.state_dict(keep_vars=True).values()]

    assert len(tensors) == len(set(tensors))


def test_only_the_active_adapter_requires_gradients() -> None:
    model = attach_adapter(make(), {"method": "lora"}, "second")
    second = {name for name, p in model.named_parameters() if p.requires_grad}
    model.set_active("default")
    first = {name for name, p in model.named_parameters() if p.requires_grad}
    model.set_active(None)

    assert second
    assert all(".second." in name or name.startswith(("base.head", "base.prefix")) for name in second)
    assert all("second" not in name for name in first)
    assert not any(p.requires_grad for p in model.parameters())


def test_full_fine_tuning_beside_clora_leaves_its_layers_alone() -> None:
    model = make()
    points = cases.make_points()
    expected = model(points)

    attach_adapter(model, {"method": "full"}, "full")
    cases.train_steps(model)
    model.set_active("default")

    assert torch.equal(model(points), expected)


class Scaled(cases.BareTransformer):
    """A backbone with a second input a sample."""

    def forward(self, points: Tensor, factor: Tensor) -> Tensor:
        return super().forward(points) * factor[:, None]


def test_routing_takes_every_input_of_the_backbone_apart() -> None:
    model = cases.shake(attach_adapter(Scaled().eval(), CLORA))
    points, factor = cases.make_points(), torch.tensor([1.0, 2.0, 3.0, 4.0])
    expected = model(points, factor)

    mixed = model(points, factor, adapters=["default", None, "default", None])

    torch.testing.assert_close(mixed[::2], expected[::2], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(mixed[1::2], expected[1::2])


@pytest.mark.parametrize(
    ("adapters", "message"),
    [
        (["default"], "each of 4 samples"),
        ("name", "must be a list"),
        (["a"] * 4, "Sample 0 asks for adapter 'a'; attached are: default"),
    ],
    ids=str,
)
def test_a_route_that_is_wrong_raises(adapters: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()(cases.make_points(), adapters=adapters)


def test_routing_is_for_evaluation() -> None:
    with pytest.raises(AdapterStateError, match=r"eval\(\)"):
        make().train()(cases.make_points(), adapters=["default"] * 4)


def test_a_failed_forward_while_routing_puts_the_active_adapter_back() -> None:
    model = attach_adapter(make(), {"method": "lora"}, "second")

    with pytest.raises(ValueError, match="shape"):
        model(torch.zeros(2, 5, 2), adapters=["default", None])

    assert model.active == "second"


@pytest.mark.parametrize("call", ["set_active", "remove_adapter"])
def test_an_adapter_that_is_not_there_is_named_with_those_that_are(call: str) -> None:
    with pytest.raises(ValueError, match="no adapter 'other'; attached are: default"):
        getattr(make(), call)("other")


def test_removing_one_of_two_keeps_the_other() -> None:
    model = attach_adapter(make(), {"method": "lora"}, "second")
    cases.shake(model)
    expected = model(cases.make_points())

    model.remove_adapter("default")

    assert model.active == "second"
    assert torch.equal(model(cases.make_points()), expected)
    assert "layers.0.mlp.fc1" not in tuner_layers(model.base)
