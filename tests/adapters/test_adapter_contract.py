"""What every method promises on every backbone."""

from __future__ import annotations

import copy

import pytest
import torch

from pcl_clora.adapters import (
    AdaptedModel,
    AdapterStateError,
    attach_adapter,
    load_adapter,
    trainable_plan,
)
from tests.support import adapter_cases as cases

pytestmark = pytest.mark.parametrize(("backbone", "setting"), cases.PAIRS)


def make(backbone: str, setting: str, name: str = "default") -> AdaptedModel:
    return attach_adapter(cases.make_backbone(backbone), cases.SETTINGS[setting], name)


def make_mergeable(backbone: str, setting: str) -> AdaptedModel:
    """A trained adapter; one that cannot be merged says so, and nothing changes, which ends the test."""
    model = cases.shake(make(backbone, setting))
    if not cases.CASES[setting].mergeable:
        before, points = cases.snapshot(model), cases.make_points()
        expected = model(points)
        with pytest.raises(AdapterStateError, match="cannot be merged"):
            model.merge()
        assert cases.changed_names(model, before) == set()
        assert torch.equal(model(points), expected)
        pytest.skip("cannot be merged, and says so")
    return model


def test_before_the_first_step_it_computes_what_the_base_computes(backbone: str, setting: str) -> None:
    base = cases.make_backbone(backbone)
    points = cases.make_points()
    expected = base(points)

    adapted = attach_adapter(base, cases.SETTINGS[setting])

    assert torch.equal(adapted(points), expected) == cases.CASES[setting].identity_at_start


def test_a_prediction_does_not_depend_on_what_else_is_in_the_batch(backbone: str, setting: str) -> None:
    model = cases.shake(make(backbone, setting)).double()
    points = cases.make_points().double()

    alone, together = model(points[:1]), model(points)[:1]

    near = torch.allclose(alone, together, rtol=1e-10, atol=1e-10)  # sums may be taken in another order
    assert near == cases.CASES[setting].batch_independent


def test_training_changes_only_what_is_saved(backbone: str, setting: str) -> None:
    model = make(backbone, setting)
    before = cases.snapshot(model)

    cases.train_steps(model)

    assert cases.changed_names(model, before) == set(model.saved_names())
    assert set(model.saved_names()) == set(trainable_plan(model, model.config))
    fixed = set(model.key_map()) - set(model.saved_names())  # of the method, in its file as they are
    assert set(model.saved_names()) <= set(model.key_map())
    assert fixed <= {name for name, _ in model.named_buffers()}


def test_gradients_reach_the_planned_parameters_and_no_others(backbone: str, setting: str) -> None:
    model = cases.shake(make(backbone, setting)).train()
    (model(cases.make_points()).square().sum() + sum(model.extra_losses().values())).backward()

    with_gradient = {name for name, p in model.named_parameters() if p.grad is not None}

    assert with_gradient == {name for name, _ in model.named_parameters() if name in model.plan}


def test_a_saved_adapter_gives_the_same_logits_on_the_same_base(
    backbone: str, setting: str, tmp_path
) -> None:
    model = make(backbone, setting)
    cases.train_steps(model)
    points = cases.make_points()
    file = tmp_path / "adapter.safetensors"

    model.save_adapter(file)
    loaded = load_adapter(file, cases.make_backbone(backbone), "other_name")

    assert torch.equal(loaded(points), model(points))
    assert loaded.config == model.config
    assert loaded.adapter_state().keys() == model.adapter_state().keys()


def test_file_keys_name_neither_the_adapter_nor_the_wrapping(backbone: str, setting: str) -> None:
    model = make(backbone, setting, name="someone")

    words = {word for key in model.key_map().values() for word in key.split(".")}

    assert not words & {"someone", "base_layer", "deltas", "base"}


def test_merged_equals_unmerged_in_float32(backbone: str, setting: str) -> None:
    model = make_mergeable(backbone, setting)
    points = cases.make_points()
    expected = model(points)

    with model.merged():
        merged = model(points)

    # Rounding of one weight is 6e-8 of its size; logits here are of size 1 to 10.
    torch.testing.assert_close(merged, expected, rtol=1e-5, atol=1e-5)


def test_merged_equals_unmerged_in_float64(backbone: str, setting: str) -> None:
    model = make_mergeable(backbone, setting).double()
    points = cases.make_points().double()
    expected = model(points)

    with model.merged():
        merged = model(points)

    torch.testing.assert_close(merged, expected, rtol=1e-12, atol=1e-12)


def test_unmerge_restores_every_bit(backbone: str, setting: str) -> None:
    model = make_mergeable(backbone, setting)
    before, output = cases.snapshot(model), model(cases.make_points())

    model.merge()
    model.unmerge()

    assert cases.snapshot(model).keys() == before.keys()
    assert cases.changed_names(model, before) == set()
    assert torch.equal(model(cases.make_points()), output)


def test_merge_and_unload_returns_the_plain_backbone_with_the_same_logits(
    backbone: str, setting: str
) -> None:
    model = make_mergeable(backbone, setting)
    points = cases.make_points()
    expected, base = model(points), model.base

    plain = model.merge_and_unload()

    assert plain is base
    assert [type(m) for m in plain.modules()] == [type(m) for m in cases.make_backbone(backbone).modules()]
    torch.testing.assert_close(plain(points), expected, rtol=1e-5, atol=1e-5)
    assert all(p.requires_grad for p in plain.parameters() if p.dim() > 1)


def test_a_deep_copy_is_independent(backbone: str, setting: str) -> None:
    model = cases.shake(make(backbone, setting))
    points = cases.make_points()
    expected = model(points)

    twin = copy.deepcopy(model)
    same = twin(points)
    before = cases.snapshot(model)
    cases.train_steps(twin)

    assert torch.equal(same, expected)
    assert cases.changed_names(model, before) == set()
    assert torch.equal(model(points), expected)
    assert not torch.equal(twin(points), expected)
    assert not {id(t) for t in model.state_dict(keep_vars=True).values()} & {
        id(t) for t in twin.state_dict(keep_vars=True).values()
    }


def test_disabled_runs_the_base_with_its_own_parts(backbone: str, setting: str) -> None:
    points = cases.make_points()
    expected = cases.make_backbone(backbone)(points)
    model = make(backbone, setting)
    cases.train_steps(model)
    trained = model(points)

    with model.disabled():
        bare = model(points)

    assert torch.equal(bare, expected)
    assert torch.equal(model(points), trained)
    assert not torch.equal(trained, expected)


def test_a_second_adapter_does_not_disturb_the_first(backbone: str, setting: str) -> None:
    points = cases.make_points()
    alone = cases.shake(make(backbone, setting, name="first"))(points)

    model = cases.shake(make(backbone, setting, name="first"))
    attach_adapter(model, {"method": "clora", "rank": 2, "num_spaces": 2}, "second")
    cases.train_steps(model)
    second = model(points)
    model.set_active("first")

    assert torch.equal(model(points), alone)
    model.set_active("second")
    assert torch.equal(model(points), second)


def test_routing_gives_every_sample_what_its_adapter_gives_alone(backbone: str, setting: str) -> None:
    model = cases.shake(make(backbone, setting, name="first"))
    cases.shake(attach_adapter(model, {"method": "lora", "rank": 2}, "second"), seed=4)
    points = cases.make_points(5)
    alone = {}
    for name in ("first", "second", None):
        model.set_active(name)
        alone[name] = model(points)
    model.set_active("second")

    route = ["second", None, "first", "second", "first"]
    mixed = model(points, adapters=route)

    expected = torch.stack([alone[name][index] for index, name in enumerate(route)])
    # Another batch size may take another matrix kernel, so the last bits differ.
    torch.testing.assert_close(mixed, expected, rtol=1e-5, atol=1e-6)
    assert model.active == "second"


def test_removing_the_adapter_leaves_the_base_as_it_was(backbone: str, setting: str) -> None:
    reference = cases.make_backbone(backbone)
    model = make(backbone, setting)
    cases.train_steps(model)

    model.remove_adapter("default")
    plain = model.unload()

    assert list(plain.state_dict()) == list(reference.state_dict())
    assert cases.changed_names(plain, reference.state_dict()) == set()
    assert all(p.requires_grad for p in plain.parameters())


def test_states_that_cannot_be_combined_raise(backbone: str, setting: str, tmp_path) -> None:
    model = make_mergeable(backbone, setting)
    model.merge()

    calls = [
        model.merge,
        model.train,
        lambda: model.save_adapter(tmp_path / "a.safetensors"),
        lambda: model.set_active(None),
        lambda: model.remove_adapter("default"),
        lambda: attach_adapter(model, {"method": "lora"}, "more"),
        model.adapter_state,
        lambda: model(cases.make_points(), adapters=["default"] * 4),
    ]
    messages = []
    for call in calls:
        with pytest.raises(AdapterStateError) as caught:
            call()
        messages.append(str(caught.value))

    assert all("unmerge()" in message for message in messages)
    model.eval()
    model.unmerge()
    with pytest.raises(AdapterStateError, match="merge\\(\\)"):
        model.unmerge()
