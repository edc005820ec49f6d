"""Several threads on one adapted model: right answers or AdapterStateError."""

from __future__ import annotations

import threading
import types
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pcl_clora.adapters import AdaptedModel, AdapterStateError, attach_adapter
from tests.support import adapter_cases as cases


class Gate(nn.Module):
    """A layer in which a thread waits until the test lets it go on."""

    def __init__(self, inside: nn.Module) -> None:
        super().__init__()
        self.inside, self.waits = inside, True
        self.entered, self.leave = threading.Event(), threading.Event()

    def forward(self, *inputs: Tensor) -> Tensor:
        if self.waits:
            self.waits = False
            self.entered.set()
            assert self.leave.wait(30)
        return self.inside(*inputs)


@pytest.fixture
def model() -> AdaptedModel:
    base = cases.make_backbone("plain")
    base.ln = Gate(base.ln)
    model = cases.shake(attach_adapter(base, cases.SETTINGS["clora"], "a"))
    return cases.shake(attach_adapter(model, cases.SETTINGS["lora"], "b"), seed=4)


def while_it_runs(
    model: AdaptedModel, first: Callable[[], Tensor], then: Callable[[], object]
) -> list[object]:
    """Run `first` in a thread and `then` while it is inside the network: what both gave or raised."""
    results: list[object] = [None, None]

    def call(place: int, what: Callable[[], object]) -> None:
        try:
            with torch.no_grad():
                results[place] = what()
        except Exception as error:
            results[place] = error

    thread = threading.Thread(target=call, args=(0, first))
    thread.start()
    assert model.base.ln.entered.wait(30)
    call(1, then)
    model.base.ln.leave.set()
    thread.join()
    return results


SWITCHES = {
    "set_active": lambda model: model.set_active("a"),
    "disabled": lambda model: model.disabled().__enter__(),
    "routing": lambda model: model(cases.make_points(2), adapters=["a", None]),
    "remove": lambda model: model.remove_adapter("a"),
    "merge": lambda model: model.merge(),
    "attach": lambda model: attach_adapter(model, {"method": "linear_probe"}, "c"),
}


@pytest.mark.parametrize("switch", list(SWITCHES))
def test_a_forward_that_a_switch_overlaps_raises(model: AdaptedModel, switch: str) -> None:
    forward, _ = while_it_runs(model, lambda: model(cases.make_points()), lambda: SWITCHES[switch](model))

    assert isinstance(forward, AdapterStateError)
    assert "forward pass" in str(forward)


@pytest.mark.parametrize("switch", list(SWITCHES))
def test_a_switch_during_a_routing_raises_and_the_routing_is_right(model: AdaptedModel, switch: str) -> None:
    route = ["a", "b", None, "a"]
    model.base.ln.waits = False
    expected = model(cases.make_points(), adapters=route)
    model.base.ln.waits = True

    routed, other = while_it_runs(
        model, lambda: model(cases.make_points(), adapters=route), lambda: SWITCHES[switch](model)
    )

    assert isinstance(other, AdapterStateError)
    assert torch.equal(routed, expected)
    assert model.active == "b"


def test_forwards_side_by_side_are_right(model: AdaptedModel) -> None:
    model.base.ln.waits = False
    expected = model(cases.make_points())
    model.base.ln.waits = True

    results = while_it_runs(model, lambda: model(cases.make_points()), lambda: model(cases.make_points()))

    assert all(torch.equal(result, expected) for result in results)


def test_a_forward_during_a_routing_raises(model: AdaptedModel) -> None:
    _, other = while_it_runs(
        model,
        lambda: model(cases.make_points(), adapters=["a", "b", "a", "b"]),
        lambda: model(cases.make_points()),
    )

    assert isinstance(other, AdapterStateError)


def test_a_method_of_the_backbone_that_a_switch_overlaps_raises(model: AdaptedModel) -> None:
    model.base.features = types.MethodType(lambda base, points: base(points) + 1, model.base)

    features, _ = while_it_runs(
        model, lambda: model.features(cases.make_points()), lambda: model.set_active("a")
    )

    assert isinstance(features, AdapterStateError)
    assert torch.equal(model.features(cases.make_points()), model(cases.make_points()) + 1)


def test_after_an_overlap_everything_works_again(model: AdaptedModel) -> None:
    while_it_runs(model, lambda: model(cases.make_points()), lambda: model.set_active("a"))
    model.set_active("b")

    assert torch.equal(model(cases.make_points()), model(cases.make_points(), adapters=["b"] * 4))
