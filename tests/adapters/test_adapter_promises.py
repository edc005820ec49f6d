"""What every method promises besides: modes, checkpointing, pickles, programs, half precision, changes."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from pcl_clora.adapters import AdaptedModel, attach_adapter, list_adapters, load_adapter
from pcl_clora.adapters.paths import walk
from pcl_clora.adapters.plan import tracks_statistics
from tests.support import adapter_cases as cases
from tests.support import compiled
from tests.support.engine_cases import FITTING

ON_POINT_MAE = [*cases.FEW_SETTINGS, "arc", "fact_tk"]
ON_PLAIN = [name for name in ON_POINT_MAE if name in cases.ON_PLAIN]
ONE_EACH = [{"method": name, **FITTING.get(name, {})} for name in list_adapters()]
OFFERED = {task: list_adapters(task=task) for task in ("classification", "part_segmentation")}  # type: ignore[arg-type]


def title(settings: dict[str, object]) -> str:
    return str(settings["method"])


def modes(model: nn.Module) -> dict[str, bool]:
    """Path of a module, as the backbone knows it -> whether it is in training mode."""
    found = {}
    for node in walk(model):
        found[node.path] = node.module.training  # of a layer with deltas twice: the layer underneath counts
    return found


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("setting", ON_POINT_MAE)
def test_attaching_keeps_the_mode_of_every_module(setting: str, training: bool) -> None:
    base = cases.make_backbone("point_mae").train(training)
    for odd in (base.blocks[0], base.head[3], base.blocks[1].mlp.act):
        odd.train(not training)
    before = modes(base)

    model = attach_adapter(base, cases.SETTINGS[setting])

    frozen = {
        node.path
        for node in walk(base)
        if tracks_statistics(node.module) and f"base.{node.live}.running_mean" not in model.plan
    }
    expected = {path: mode and not (training and path in frozen) for path, mode in before.items()}
    assert model.training is training
    after = {path: mode for path, mode in modes(base).items() if path in expected}
    own_head = {path for path in expected if path.startswith("head.")}  # may be another one, in one mode
    if not model.method.has_own_head(model.interface):
        own_head = set()
    assert {p: m for p, m in after.items() if p not in own_head} == {
        p: m for p, m in expected.items() if p not in own_head
    }
    added = [
        m
        for name, m in model.named_modules()
        if ".deltas." in name or name.startswith("slots.default.method")
    ]
    assert all(module.training is training for module in added)


def test_a_norm_that_another_adapter_trains_runs_in_training_mode_again() -> None:
    model = attach_adapter(cases.make_backbone("point_mae").train(), {"method": "lora"}, "frozen")
    attach_adapter(model, {"method": "lora", "train": ["head", "patch_embed"]}, "moving")
    norm = model.base.patch_embed.norm1
    assert norm.training

    model.set_active("frozen")
    assert not model.base.patch_embed.norm1.training
    model.set_active("moving")
    assert model.base.patch_embed.norm1.training
    model.eval()
    model.set_active("frozen")
    model.set_active("moving")

    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("setting", ON_POINT_MAE)
def test_checkpointing_gives_the_same_gradients(setting: str) -> None:
    model = cases.shake(attach_adapter(cases.make_backbone("point_mae"), cases.SETTINGS[setting]))
    found = []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(cases.make_points(2)).square().sum().backward()
        found.append({key: p.grad for key, p in model.named_parameters() if p.grad is not None})

    assert found[0]
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("setting", ON_POINT_MAE)
def test_a_pickle_computes_and_trains_the_same(setting: str) -> None:
    model = cases.shake(attach_adapter(cases.make_backbone("point_mae"), cases.SETTINGS[setting]))
    model.train()(cases.make_points(2))  # what a pass leaves behind is no part of a pickle
    model.eval()
    points = cases.make_points(2)

    twin = pickle.loads(pickle.dumps(model))

    assert torch.equal(twin(points), model(points))
    for one in (model, twin):
        one(points).square().sum().backward()
    mine, theirs = (dict(one.named_parameters()) for one in (model, twin))
    assert all((p.grad is None) == (theirs[key].grad is None) for key, p in mine.items())
    assert all(torch.equal(p.grad, theirs[key].grad) for key, p in mine.items() if p.grad is not None)


@pytest.mark.slow
@pytest.mark.parametrize("settings", ONE_EACH, ids=title)
def test_a_compiled_model_has_the_gradients_of_the_model(settings: dict[str, object]) -> None:
    compiled.compare_adapted(settings, "aot_eager")


@pytest.mark.long
@pytest.mark.parametrize("method", ["clora", "ppt"])
def test_a_model_compiled_to_native_code_has_the_gradients_of_the_model(method: str) -> None:
    compiled.checked_apart(compiled.in_child(method), compiled.in_child(compiled.PLAIN))


DIES, FAILS, WORKS = (
    [sys.executable, "-I", "-c", f"import os, sys; {does}"]
    for does in ("os.kill(os.getpid(), 11)", "sys.exit('no compiler')", "pass")
)


def test_a_compiler_that_dies_fails_the_test_unless_it_dies_without_us_too() -> None:
    compiled.checked_apart(WORKS, DIES)
    with pytest.raises(pytest.skip.Exception, match="signal 11, and does so for a plain"):
        compiled.checked_apart(DIES, DIES)
    with pytest.raises(AssertionError, match="exit status -11"):
        compiled.checked_apart(DIES, WORKS)
    with pytest.raises(AssertionError, match="no compiler"):
        compiled.checked_apart(FAILS, DIES)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("setting", ON_PLAIN)
def test_a_base_in_half_precision_gets_an_adapter_of_its_dtype(
    setting: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    points = cases.make_points(2).to(dtype)
    expected = cases.make_backbone("plain").to(dtype)(points)

    model = attach_adapter(cases.make_backbone("plain").to(dtype), cases.SETTINGS[setting])
    same = torch.equal(model(points), expected)
    cases.shake(model)
    model(points).square().sum().backward()
    model.save_adapter(tmp_path / "a.safetensors")
    loaded = load_adapter(tmp_path / "a.safetensors", cases.make_backbone("plain").to(dtype))

    assert same == cases.CASES[setting].identity_at_start
    assert {p.dtype for p in model.parameters()} == {dtype}
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert torch.equal(loaded(points), model(points))


@pytest.mark.parametrize("setting", ON_POINT_MAE)
def test_adapters_come_and_go_between_the_steps_of_a_training(setting: str) -> None:
    def start() -> AdaptedModel:
        torch.manual_seed(5)
        return attach_adapter(cases.make_backbone("point_mae"), cases.SETTINGS[setting], "first")

    undisturbed, model = start(), start()
    cases.train_steps(undisturbed, 1)
    cases.train_steps(model, 1)
    attach_adapter(model, {"method": "lora", "rank": 2}, "passing")
    cases.train_steps(model, 1)
    model.remove_adapter("passing")
    model.set_active("first")

    assert torch.equal(model(cases.make_points(2)), undisturbed(cases.make_points(2)))
    for one in (undisturbed, model):
        cases.train_steps(one, 1)
    assert torch.equal(model(cases.make_points(2)), undisturbed(cases.make_points(2)))
    assert model.adapter_names == ("first",)


def test_samples_are_routed_over_adapters_of_all_mergeable_methods() -> None:
    model = None
    names = ["clora", "lora", "dora", "vera", "fact", "arc", "ssf", "bitfit"]
    for seed, name in enumerate(names):
        base = cases.make_backbone("point_mae") if model is None else model
        model = cases.shake(attach_adapter(base, cases.SETTINGS[name], name), seed=seed)
    points, alone = cases.make_points(len(names) + 1), []
    for name in [*names, None]:
        model.set_active(name)
        alone.append(model(points))

    mixed = model(points, adapters=[*names, None])

    expected = torch.stack([one[index] for index, one in enumerate(alone)])
    torch.testing.assert_close(mixed, expected, rtol=1e-5, atol=1e-5)
