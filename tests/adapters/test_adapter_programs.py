"""Adapted models as programs: torch.export and torch.compile, pickled and copied."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from pcl_clora.adapters import AdaptedModel, attach_adapter
from tests.support import adapter_cases as cases
from tests.support import adapter_places as places

PLACEMENTS = [
    {"method": "clora", "rank": 2, "num_spaces": 2, "sharing": sharing, "placement": placement}
    for sharing in ("global", "per_role", "none", "all")
    for placement in ("input", "parallel", "both")
]
ALL = [*(cases.SETTINGS[name] for name in cases.ON_PLAIN), *PLACEMENTS]
UNMERGEABLE = [case.settings for case in cases.CASES.values() if not case.mergeable]
MERGED = [cases.SETTINGS[name] for name in ("clora", "dora", "fact", "ssf")]  # merged, all are bare layers


def is_long(settings: dict[str, object], merged: bool) -> bool:
    """Whether a shorter list has another that goes the same way: "both" has input and parallel."""
    halves = settings in PLACEMENTS and settings["placement"] != "both"
    return settings not in MERGED if merged else halves


BOTH = [
    pytest.param(each, merged, marks=pytest.mark.long if is_long(each, merged) else pytest.mark.slow)
    for each in ALL
    for merged in (False, True)
    if not merged or each not in UNMERGEABLE
]


def title(value: dict[str, object] | bool) -> str:
    if isinstance(value, bool):
        return "merged" if value else "unmerged"
    return "-".join(str(word) for word in value.values())[:60]


def make(settings: dict[str, object], name: str = "default", backbone: str = "plain") -> AdaptedModel:
    return cases.shake(attach_adapter(cases.make_backbone(backbone), settings, name))


@pytest.mark.parametrize(("settings", "merged"), BOTH, ids=title)
def test_an_exported_program_computes_what_the_model_computes(
    settings: dict[str, object], merged: bool
) -> None:
    model, points = make(settings), cases.make_points()
    if merged:
        model.merge()

    program = torch.export.export(model, (points,)).module()

    torch.testing.assert_close(program(points), model(points), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("settings", "merged"), BOTH, ids=title)
def test_the_graph_of_a_compiled_model_does_not_break(settings: dict[str, object], merged: bool) -> None:
    model, points = make(settings), cases.make_points()
    if merged:
        model.merge()
    torch._dynamo.reset()

    compiled = torch.compile(model, fullgraph=True, backend="eager")

    torch.testing.assert_close(compiled(points), model(points), rtol=1e-5, atol=1e-5)


ELSEWHERE = [(backbone, "clora") for backbone in ("point_mae", "pointgpt_s", "recon", "bare")]
ELSEWHERE += [("point_mae", name) for name in cases.FEW_SETTINGS if name not in cases.ON_PLAIN]
ELSEWHERE += [("pointgpt_s", "ppt")]  # a mask that is made wider


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "setting"), ELSEWHERE)
def test_backbones_and_methods_that_the_plain_one_cannot_have_export_and_compile(
    backbone: str, setting: str
) -> None:
    model, points = make(cases.SETTINGS[setting], backbone=backbone), cases.make_points()
    torch._dynamo.reset()

    program = torch.export.export(model, (points,)).module()
    compiled = torch.compile(model, fullgraph=True, backend="eager")

    torch.testing.assert_close(program(points), model(points), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(compiled(points), model(points), rtol=1e-5, atol=1e-5)


SHORT = (("recon", "clora"), ("point_bert", "vpt"), ("pointgpt_s", "ppt"))  # some seconds each
PARTS = [
    pytest.param(place, name, marks=pytest.mark.slow if (place.backbone, name) in SHORT else pytest.mark.long)
    for name in cases.FEW_SETTINGS
    for place in places.PLACES
    if place.task != "classification" and place.backbone != "point_mae" and not places.refusal(place, name)
]


@pytest.mark.parametrize(("place", "setting"), PARTS, ids=str)
def test_the_graph_of_a_segmenter_does_not_break(place: places.Place, setting: str) -> None:
    model = cases.shake(attach_adapter(places.make(place), places.settings_of(place, setting)))
    given = places.inputs(place, 2)
    torch._dynamo.reset()

    compiled = torch.compile(model, fullgraph=True, backend="eager")

    torch.testing.assert_close(compiled(*given), model(*given), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["class", "global", "None", "def", "a-b", "0", "match"])
def test_an_adapter_named_by_a_word_of_python_is_exported(name: str) -> None:
    model, points = make(cases.SETTINGS["lora"], name), cases.make_points()

    program = torch.export.export(model, (points,)).module()

    torch.testing.assert_close(program(points), model(points), rtol=1e-5, atol=1e-5)
    assert model.adapter_names == (name,)


def test_names_that_differ_in_a_dash_are_exported_apart() -> None:
    model, points = make(cases.SETTINGS["lora"], "a-b"), cases.make_points()
    cases.shake(attach_adapter(model, cases.SETTINGS["clora"], "a_b"), seed=5)

    program = torch.export.export(model, (points,)).module()

    torch.testing.assert_close(program(points), model(points), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_a_compiled_model_follows_a_switch() -> None:
    model, points = make(cases.SETTINGS["clora"]), cases.make_points()
    cases.shake(attach_adapter(model, {"method": "lora"}, "second"), seed=5)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")

    outputs = []
    for name in ("default", "second", None) * 2:
        model.set_active(name)
        outputs.append((compiled(points), model(points)))

    assert all(torch.allclose(found, expected, atol=1e-5) for found, expected in outputs)


def test_a_compiled_model_routes_samples_beside_its_graph_and_never_inside_it() -> None:
    model, points = make(cases.SETTINGS["clora"]), cases.make_points()
    cases.shake(attach_adapter(model, {"method": "lora"}, "second"), seed=5)
    route = ["second", None, "default", "second"]
    expected = model(points, adapters=route)
    torch._dynamo.reset()

    routed = torch.compile(model, backend="eager")(points, adapters=route)
    torch._dynamo.reset()  # which has learnt to leave the call alone
    whole = torch.compile(model, fullgraph=True, backend="eager")

    torch.testing.assert_close(routed, expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(torch._dynamo.exc.Unsupported, match="compile without fullgraph=True, or run one"):
        whole(points, adapters=route)


@pytest.mark.parametrize("name", cases.ON_PLAIN)
def test_a_pickled_model_computes_the_same(name: str) -> None:
    model, points = make(cases.SETTINGS[name]), cases.make_points()

    twin = pickle.loads(pickle.dumps(model))

    assert torch.equal(twin(points), model(points))
    assert torch.equal(copy.deepcopy(twin)(points), model(points))
    assert "TunerLayer" in repr(make(cases.SETTINGS["lora"]))
