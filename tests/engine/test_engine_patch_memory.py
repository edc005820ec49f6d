"""train.draw=fixed: patches chosen once; kept or not, interrupted or not, a run has the same bits."""

from __future__ import annotations

import logging

import pytest
import torch

from pcl_clora.adapters import attach_adapter
from pcl_clora.config import ConfigError, config_hash
from pcl_clora.engine import RunFolder, Trainer, TrainingInterrupted, patch_memory
from pcl_clora.engine.patch_memory import KnownPatches, keep_evaluated, make_patch_memory
from pcl_clora.engine.setup import make_data
from pcl_clora.io import read_json
from pcl_clora.models import build_model
from pcl_clora.models.layers.shared_patches import shared_patches
from tests.support.engine_cases import (
    CLORA,
    EVERYTHING,
    VALUES,
    final_weights,
    lines_without_times,
    tiny_config,
)

FIXED = {"train": {"draw": "fixed"}}
POINTGPT = {**VALUES["model"], "name": "pointgpt_s"}
SHORT = {"optim": {"epochs": 2}}
CASES = {
    "tokens": (CLORA, FIXED, {"augment": "none"}),
    "groups, moved": (CLORA, FIXED, {"augment": "rotate_y+isotropic"}),
    "groups, encoder trained": (FIXED, {"augment": "none"}),
    "thinned and averaged": (EVERYTHING, FIXED, {"augment": "so3"}),
    "a sorted sequence": (
        CLORA,
        FIXED,
        {"augment": "none", "model": {**VALUES["model"], "name": "pointgpt_s"}},
    ),
}


def cache(how):
    return {"train": {"cache": how}}


def content(folder):
    result = read_json(RunFolder(folder).result)
    left_out = ("train_seconds", "evaluation", "git", "config", "config_hash")
    left_out += ("adapter_sha256", "metrics_sha256")
    return {key: value for key, value in result.items() if key not in left_out}


def assert_same_run(one, two):
    assert lines_without_times(one) == lines_without_times(two)
    weights = final_weights(one), final_weights(two)
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert content(one) == content(two)


def interrupted(cfg, folder, step):
    def stop(event):
        if event["kind"] == "train" and event["step"] == step:
            trainer._stop.requested = True

    trainer = Trainer(cfg, run_dir=folder, on_event=stop)
    with pytest.raises(TrainingInterrupted):
        trainer.fit()


@pytest.mark.slow  # whole runs
@pytest.mark.parametrize("case", CASES)
def test_a_run_has_the_same_bits_with_and_without_a_cache(tmp_path, case) -> None:
    cfg = tiny_config(*CASES[case], SHORT)
    for how in ("always", "never"):
        Trainer(tiny_config(*CASES[case], SHORT, cache(how)), run_dir=tmp_path / how).fit()
    interrupted(cfg, tmp_path / "stopped", 7)  # within an epoch, all clouds known
    Trainer(cfg, run_dir=tmp_path / "stopped").fit()
    assert_same_run(tmp_path / "always", tmp_path / "never")
    assert_same_run(tmp_path / "always", tmp_path / "stopped")


@pytest.mark.parametrize(("augment", "groupings", "rows"), [("none", 5, 60), ("rotate_y", 5, 180)])
def test_patches_are_cut_and_embedded_once_a_run(tmp_path, monkeypatch, augment, groupings, rows) -> None:
    calls, embedded = [], []
    cfg = tiny_config(CLORA, FIXED, {"augment": augment}, cache("always"))
    trainer = Trainer(cfg, run_dir=tmp_path)
    prepare = trainer._prepare

    def watched():
        prepare()
        calls.clear()
        base = trainer.parts.model.base
        encoder, cut = base.patch_embed, base.cut
        base.cut = lambda points: calls.append(1) or cut(points)
        real_rows = encoder._rows
        encoder._rows = lambda x, k: embedded.append(len(x) // k // 8) or real_rows(x, k)

    monkeypatch.setattr(trainer, "_prepare", watched)
    monkeypatch.setattr(trainer, "_finish", lambda: None)
    trainer.fit()
    assert (len(calls), sum(embedded)) == (groupings, rows)


def test_groups_of_the_cloud_are_those_of_the_moved_cloud() -> None:
    points = torch.randn(4, 200, 3, generator=torch.Generator().manual_seed(0))
    cfg = tiny_config(CLORA, FIXED, {"augment": "isotropic"}, cache("always"))
    model = attach_adapter(build_model(cfg.model), cfg.adapter)
    memory = make_patch_memory(cfg, model, 9)
    moved = points * 1.17 + 0.05
    expected = model.base.group(moved)
    for _ in range(2):  # chosen, then remembered
        groups = memory.of(torch.tensor([7, 2, 0, 5]), points, moved).groups(moved, lambda: None)
        assert all(torch.equal(found, wanted) for found, wanted in zip(groups, expected, strict=True))


def test_known_patches_count_for_the_tensor_they_were_made_for() -> None:
    cfg = tiny_config()
    model = build_model(cfg.model).eval()
    points = torch.randn(2, 64, 3, generator=torch.Generator().manual_seed(0))
    groups, expected = model.group(points.flip(1)), model(points)
    with shared_patches(KnownPatches(points, groups, lambda: torch.zeros(2, 8, 24))):
        assert model.group(points) is groups
        assert torch.equal(model(points.clone()), expected)
        assert not torch.equal(model(points), expected)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ((), "train.draw=fresh gives a cloud other points"),
        ((FIXED,), "augment=scale_shift changes who is whose neighbour"),
        ((FIXED, {"augment": "so3+scale_shift"}), "changes who is whose neighbour"),
    ],
)
def test_a_cache_with_nothing_to_keep_is_refused_before_the_run(tmp_path, changes, said) -> None:
    with pytest.raises(ConfigError, match=said):
        Trainer(tiny_config(*changes, cache("always")), run_dir=tmp_path / "run").fit()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_cache_that_does_not_fit_is_refused_or_left_out(tmp_path, monkeypatch, caplog) -> None:
    cfg = tiny_config(CLORA, FIXED, {"augment": "none"})
    model = attach_adapter(build_model(cfg.model), cfg.adapter)
    groups, tokens = 60 * 8 * 8 * 2, 60 * 8 * 24 * 4
    monkeypatch.setattr(patch_memory, "free_memory", lambda: groups + tokens - 1)
    with pytest.raises(ConfigError, match=r"memory are free; set train\.cache=auto"):
        Trainer(tiny_config(CLORA, FIXED, {"augment": "none"}, cache("always")), run_dir=tmp_path).fit()
    with caplog.at_level(logging.WARNING, "pcl_clora"):
        memory = make_patch_memory(cfg, model, 60)
        assert (memory._keep_groups, memory._keep_tokens) == (True, False)
        monkeypatch.setattr(patch_memory, "free_memory", lambda: groups)
        memory = make_patch_memory(cfg, model, 60)
    assert (memory._keep_groups, memory._keep_tokens) == (False, False)
    assert [record.message.split("; ")[1] for record in caplog.records] == [
        "only which points they hold is kept.",
        "none are kept.",
    ]


def test_settings_of_the_patches_change_no_hash_at_their_default() -> None:
    assert not {"draw", "cache"} & set(tiny_config().model_dump()["train"])
    assert config_hash(tiny_config(FIXED)) != config_hash(tiny_config())


SPLITS = {
    "validation, and test to look at": (
        {"protocol": {"select": "validation", "val_fraction": 0.15}, "train": {"test_curve": True}},
        9 + 24,
    ),
    "the best of test": ({"protocol": {"name": "paper"}}, 24),
    "a sorted sequence": ({"protocol": {"name": "paper"}, "model": POINTGPT}, 24),
    "thinned": ({"protocol": {"name": "paper"}, "data": {"pool_points": 72}}, 24),
}


def watched_evaluations(cfg, folder):
    """Run; patches that went through the patch encoder while it was evaluated, in clouds."""
    trainer, embedded = Trainer(cfg, run_dir=folder), []
    evaluate, prepare = trainer._evaluate, trainer._prepare

    def counted(*given):
        embedded.append(0)
        try:
            return evaluate(*given)
        finally:
            embedded.append(None)

    def watched():
        prepare()
        encoder = trainer.parts.model.base.patch_embed
        rows = encoder._rows

        def seen(x, k):
            if embedded and embedded[-1] is not None:
                embedded[-1] += len(x) // k / 8
            return rows(x, k)

        encoder._rows = seen

    trainer._prepare, trainer._evaluate = watched, counted
    trainer.fit()
    return [count for count in embedded if count is not None]


@pytest.mark.slow  # whole runs
@pytest.mark.parametrize("case", SPLITS)
def test_a_split_is_embedded_once_and_evaluations_have_the_same_bits(tmp_path, case) -> None:
    changes, num_clouds = SPLITS[case]
    counts = {
        how: watched_evaluations(tiny_config(CLORA, changes, cache(how)), tmp_path / how)
        for how in ("auto", "never")
    }
    assert_same_run(tmp_path / "auto", tmp_path / "never")
    assert sum(counts["auto"]) == num_clouds
    assert len(counts["auto"]) > len([count for count in counts["auto"] if count])
    assert all(counts["never"])


@pytest.mark.parametrize(
    "changes",
    [
        {"adapter": {"method": "full"}},  # the encoder trains
        {"protocol": {"name": "paper", "select": "last"}},  # one evaluation
        {"protocol": {"name": "paper", "votes": 2, "vote_augment": "rotate_y"}},  # other points every time
        {"protocol": {"name": "paper"}, "train": {"cache": "never"}},
    ],
)
def test_nothing_is_kept_where_tokens_change_or_are_asked_for_once(changes) -> None:
    cfg = tiny_config(CLORA, {"protocol": {"name": "paper"}}, changes)
    model = attach_adapter(build_model(cfg.model), cfg.adapter)
    assert keep_evaluated(cfg, model, make_data(cfg).evaluated) == {}


def test_tokens_of_evaluated_clouds_that_do_not_fit_are_refused_or_left_out(monkeypatch, caplog) -> None:
    best = {"protocol": {"name": "paper"}}
    cfg, must = tiny_config(CLORA, best), tiny_config(CLORA, best, cache("always"))
    model, loaders = attach_adapter(build_model(cfg.model), cfg.adapter), make_data(cfg).evaluated
    tokens = 24 * 8 * 24 * 4
    monkeypatch.setattr(patch_memory, "free_memory", lambda: 2 * tokens)
    assert list(keep_evaluated(cfg, model, loaders)) == ["test"]
    with caplog.at_level(logging.WARNING, "pcl_clora"):
        assert keep_evaluated(cfg, model, loaders, taken=1) == {}
    assert "none are kept" in caplog.text
    assert list(keep_evaluated(must, model, loaders, taken=tokens)) == ["test"]
    with pytest.raises(ConfigError, match=r"memory are free; set train\.cache=auto"):
        keep_evaluated(must, model, loaders, taken=tokens + 1)
