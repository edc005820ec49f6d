"""What every method promises on every network and task: it keeps to it, or is refused by name."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from pcl_clora.adapters import AdapterStateError, attach_adapter, load_adapter, trainable_plan
from tests.support import adapter_cases as cases
from tests.support import adapter_places as places
from tests.support.adapter_places import Place, Trained


def title(value: Place | str) -> str:
    return str(value)


@pytest.fixture(scope="module", params=places.TAKEN, ids=lambda pair: f"{pair[0]}-{pair[1]}")
def trained(request: pytest.FixtureRequest) -> Trained:
    place, setting = request.param
    if place.backbone == places.IMAGES:
        pytest.importorskip("timm", reason="the library makes the transformer; pip install timm")
    return places.trained(place, setting)


@pytest.fixture
def mergeable(trained: Trained) -> Trained:
    if not trained.case.mergeable:
        pytest.skip("this method cannot be merged; that it refuses to be has a test of its own")
    return trained


@pytest.mark.parametrize(("place", "setting"), places.REFUSED, ids=title)
def test_a_network_that_cannot_have_a_method_says_why_and_stays_as_it_is(place: Place, setting: str) -> None:
    if place.backbone == places.IMAGES:
        pytest.importorskip("timm", reason="the library makes the transformer; pip install timm")
    base = places.make(place)
    before, kinds = cases.snapshot(base), [type(module) for module in base.modules()]

    with pytest.raises((ValueError, TypeError), match=places.refusal(place, setting)):
        attach_adapter(base, places.settings_of(place, setting))

    assert [type(module) for module in base.modules()] == kinds
    assert cases.changed_names(base, before) == set()


def test_before_the_first_step_it_computes_what_the_base_computes(trained: Trained) -> None:
    assert torch.equal(trained.start, trained.bare) == trained.case.identity_at_start
    assert not torch.equal(trained.logits, trained.start)


def test_a_prediction_does_not_depend_on_what_else_is_in_the_batch(trained: Trained) -> None:
    model, given = trained.double

    alone, together = model(*(value[:1] for value in given)), model(*given)[:1]

    near = torch.allclose(alone, together, rtol=1e-10, atol=1e-10)  # sums may be taken in another order
    assert near == trained.case.batch_independent


def test_training_changes_only_what_is_saved(trained: Trained) -> None:
    model = trained.model
    changed = {name for name, value in trained.after.items() if not torch.equal(value, trained.before[name])}

    assert changed == set(model.saved_names()) == set(trainable_plan(model, model.config))
    fixed = set(model.key_map()) - set(model.saved_names())  # of the method, in its file as they are
    assert set(model.saved_names()) <= set(model.key_map())
    assert fixed <= {name for name, _ in model.named_buffers()}


def test_gradients_reach_the_planned_parameters_and_no_others(trained: Trained) -> None:
    parameters = {name for name, _ in trained.model.named_parameters()}
    assert trained.with_gradient == parameters & set(trained.model.plan)


def test_a_saved_adapter_gives_the_same_logits_on_the_same_base(trained: Trained, tmp_path: Path) -> None:
    model, file = trained.model, tmp_path / "adapter.safetensors"

    model.save_adapter(file)
    loaded = load_adapter(file, places.make(trained.place), "other_name")

    assert torch.equal(loaded(*trained.inputs), trained.logits)
    assert loaded.config == model.config
    assert loaded.adapter_state().keys() == model.adapter_state().keys()
    words = {word for key in model.key_map().values() for word in key.split(".")}
    assert not words & {"someone", "base_layer", "deltas", "base"}, "names of the adapter or of the wrapping"


def test_merging_changes_rounding_and_unmerging_restores_every_bit(trained: Trained) -> None:
    model = trained.model
    if not trained.case.mergeable:
        with pytest.raises(AdapterStateError, match="cannot be merged"):
            model.merge()
    else:
        with model.merged():
            merged = model(*trained.inputs)
        # Rounding of one weight is 6e-8 of its size; logits here are of size 1 to 10.
        torch.testing.assert_close(merged, trained.logits, rtol=1e-5, atol=1e-5)

    assert model.state_dict().keys() == trained.after.keys()
    assert cases.changed_names(model, trained.after) == set()
    assert torch.equal(model(*trained.inputs), trained.logits)


def test_merged_equals_unmerged_in_float64(mergeable: Trained) -> None:
    model, given = mergeable.double
    expected = model(*given)

    with model.merged():
        merged = model(*given)

    torch.testing.assert_close(merged, expected, rtol=1e-12, atol=1e-12)


def test_merge_and_unload_returns_the_plain_backbone_with_the_same_logits(mergeable: Trained) -> None:
    model = mergeable.copy()
    base = model.base

    plain = model.merge_and_unload()

    assert plain is base
    assert [type(m) for m in plain.modules()] == [type(m) for m in places.make(mergeable.place).modules()]
    torch.testing.assert_close(plain(*mergeable.inputs), mergeable.logits, rtol=1e-5, atol=1e-5)
    assert all(p.requires_grad for p in plain.parameters() if p.dim() > 1)


def test_a_deep_copy_is_independent(trained: Trained) -> None:
    model, twin = trained.model, copy.deepcopy(trained.model)
    same = twin(*trained.inputs)

    places.train(twin, trained.place)

    assert torch.equal(same, trained.logits)
    assert cases.changed_names(model, trained.after) == set()
    assert torch.equal(model(*trained.inputs), trained.logits)
    assert not torch.equal(twin(*trained.inputs), trained.logits)
    assert not {id(t) for t in model.state_dict(keep_vars=True).values()} & {
        id(t) for t in twin.state_dict(keep_vars=True).values()
    }


def test_disabled_runs_the_base_with_its_own_parts(trained: Trained) -> None:
    with trained.model.disabled():
        bare = trained.model(*trained.inputs)

    assert torch.equal(bare, trained.bare)
    assert torch.equal(trained.model(*trained.inputs), trained.logits)


def test_a_second_adapter_does_not_disturb_the_first(trained: Trained) -> None:
    model = trained.pair
    model.set_active("second")
    second = model(*trained.inputs)

    model.set_active("someone")
    assert torch.equal(model(*trained.inputs), trained.logits)
    model.set_active("second")
    assert torch.equal(model(*trained.inputs), second)
    assert not torch.equal(second, trained.logits)


def test_routing_gives_every_sample_what_its_adapter_gives_alone(trained: Trained) -> None:
    model, alone, route = trained.pair, {}, ["second", None, "someone", "second"]
    for name in ("someone", None, "second"):
        model.set_active(name)
        alone[name] = model(*trained.inputs)

    mixed = model(*trained.inputs, adapters=route)

    expected = torch.stack([alone[name][index] for index, name in enumerate(route)])
    # Another batch size may take another matrix kernel, so the last bits differ.
    torch.testing.assert_close(mixed, expected, rtol=1e-5, atol=1e-5)
    assert model.active == "second"


def test_removing_the_adapter_leaves_the_base_as_it_was(trained: Trained) -> None:
    reference, model = places.make(trained.place), trained.copy()

    model.remove_adapter("someone")
    plain = model.unload()

    assert list(plain.state_dict()) == list(reference.state_dict())
    assert cases.changed_names(plain, reference.state_dict()) == set()
    assert all(p.requires_grad for p in plain.parameters())


def test_states_that_cannot_be_combined_raise(mergeable: Trained, tmp_path: Path) -> None:
    model = mergeable.model
    model.merge()
    calls = [
        model.merge,
        model.train,
        lambda: model.save_adapter(tmp_path / "a.safetensors"),
        lambda: model.set_active(None),
        lambda: model.remove_adapter("someone"),
        lambda: attach_adapter(model, {"method": "lora"}, "more"),
        model.adapter_state,
        lambda: model(*mergeable.inputs, adapters=["someone"] * 4),
    ]
    messages = []
    try:
        for call in calls:
            with pytest.raises(AdapterStateError) as caught:
                call()
            messages.append(str(caught.value))
    finally:
        model.eval()
        model.unmerge()

    assert all("unmerge()" in message for message in messages)
    with pytest.raises(AdapterStateError, match="merge\\(\\)"):
        model.unmerge()
