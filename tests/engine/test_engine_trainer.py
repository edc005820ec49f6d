"""A whole run: what it writes, what it trains, how it chooses, and how it stops."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from pcl_clora.adapters import list_adapters
from pcl_clora.config import ConfigError, config_hash
from pcl_clora.data import PointLoader
from pcl_clora.engine import (
    CheckpointError,
    NonFiniteLossError,
    RunFolder,
    Trainer,
    evaluate,
    load_checkpoint,
    load_run,
    load_run_config,
    make_data,
)
from pcl_clora.engine import tasks as tasks_module
from pcl_clora.engine import trainer as trainer_module
from pcl_clora.models import build_model
from tests.support.engine_cases import (
    CLORA,
    EVERYTHING,
    FITTING,
    STEPS_PER_EPOCH,
    final_weights,
    lines_without_times,
    tiny_config,
)

RESULT_KEYS = {
    "config_hash", "protocol", "seed", "augment", "git", "versions", "data", "method", "metrics", "params",
    "epochs", "train_seconds", "best",
}  # fmt: skip


@pytest.mark.slow
def test_a_run_learns_and_writes_its_folder(tmp_path: Path) -> None:
    cfg = tiny_config({"optim": {"epochs": 10}, "output": str(tmp_path)})
    result = Trainer(cfg).fit()
    assert result.metrics.oa > 0.6  # chance is 1/3
    folder = RunFolder(tmp_path / "tiny")
    assert result.run_dir == folder.path
    written = json.loads(folder.result.read_text(encoding="utf-8"))
    assert written.keys() >= RESULT_KEYS
    assert written["metrics"]["oa"] == result.metrics.oa
    assert list(written["metrics"]["per_class"]) == ["bottle", "chair", "table"]
    assert written["data"] == {
        "name": "procedural", "num_train": 60, "num_validation": 0, "num_test": 24, "num_points": 64,
    }  # fmt: skip
    assert written["protocol"]["name"] == "honest"
    assert written["config_hash"] == config_hash(cfg)
    assert load_run_config(folder.config) == cfg
    assert json.loads(folder.env.read_text(encoding="utf-8")).keys() >= {"git", "versions", "ops", "threads"}
    plan = json.loads(folder.plan.read_text(encoding="utf-8"))
    assert plan["plan"].keys() == set(result.model.saved_names())
    assert plan["parameters"] == written["params"]


def test_settings_and_environment_are_written_before_the_first_step(tmp_path: Path) -> None:
    written: list[set[str]] = []

    def watch(event: Any) -> None:
        if event["kind"] == "train" and not written:
            written.append({path.name for path in (tmp_path / "run").iterdir()})

    Trainer(tiny_config(), run_dir=tmp_path / "run", on_event=watch).fit()
    assert written[0] >= {"config.yaml", "env.json", "plan.json"}


def test_a_run_that_is_refused_before_its_first_step_leaves_no_folder(tmp_path: Path) -> None:
    cfg = tiny_config({"data": {"name": "modelnet40_hdf5", "root": str(tmp_path / "gone")}})
    with pytest.raises(ValueError, match=r"gone"):
        Trainer(cfg, run_dir=tmp_path / "run").fit()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("method", list_adapters())
def test_training_changes_what_the_plan_names_and_nothing_else(tmp_path: Path, method: str) -> None:
    adapter = {"method": method, **FITTING.get(method, {})}
    cfg = tiny_config({"adapter": adapter, "optim": {"epochs": 2}})
    trainer = Trainer(cfg, run_dir=tmp_path)
    start: dict[str, torch.Tensor] = {}
    grads: set[str] = set()

    def watch(event: Any) -> None:
        if event["kind"] == "train":
            if not start:
                start.update(
                    {name: value.clone() for name, value in trainer.parts.model.state_dict().items()}
                )
            grads.update(name for name, p in trainer.parts.model.named_parameters() if p.grad is not None)

    trainer._on_event = watch
    model = trainer.fit().model
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, start[name])}
    assert changed <= set(model.saved_names())
    assert grads == {name for name, p in model.named_parameters() if p.requires_grad}
    assert any("head" in name for name in changed)


def test_every_step_epoch_and_evaluation_is_logged_and_told(tmp_path: Path) -> None:
    told: list[dict[str, Any]] = []
    Trainer(tiny_config(CLORA), run_dir=tmp_path, on_event=lambda event: told.append(dict(event))).fit()
    lines = lines_without_times(tmp_path)
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(1, 16))
    assert [line["epoch"] for line in lines if line["kind"] == "epoch"] == [0, 1, 2]
    assert [(line["split"], line["purpose"]) for line in lines if line["kind"] == "eval"] == [
        ("test", "result")
    ]
    assert [event["kind"] for event in told] == [line["kind"] for line in lines] + ["result"]
    last = [line for line in lines if line["kind"] == "train"][-1]
    assert last["loss"] == pytest.approx(last["loss_task"] + last["loss_sade"], rel=1e-6)
    assert last["share_sade"] == pytest.approx(last["loss_sade"] / last["loss"])
    assert "value_sade" in next(line for line in lines if line["kind"] == "epoch")


@pytest.mark.slow
@pytest.mark.parametrize("change", [{}, EVERYTHING], ids=["plain", "everything"])
def test_two_runs_are_equal_bit_for_bit(tmp_path: Path, change: dict[str, Any]) -> None:
    folders = [tmp_path / "one", tmp_path / "two"]
    for number, folder in enumerate(folders):
        torch.manual_seed(number)  # what ran before must not matter
        Trainer(tiny_config(change), run_dir=folder).fit()
    assert lines_without_times(folders[0]) == lines_without_times(folders[1])
    one, two = (final_weights(folder) for folder in folders)
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.slow
def test_another_seed_gives_another_run(tmp_path: Path) -> None:
    for seed in (0, 1):
        Trainer(tiny_config({"seed": seed, "optim": {"epochs": 2}}), run_dir=tmp_path / str(seed)).fit()
    assert lines_without_times(tmp_path / "0") != lines_without_times(tmp_path / "1")


@pytest.mark.parametrize(
    ("protocol", "expected"),
    [
        ({"select": "last"}, [("test", "result")]),
        ({"select": "validation"}, [("validation", "select")] * 3 + [("test", "result")]),
        ({"name": "paper"}, [("test", "select")] * 3 + [("test", "result")]),
    ],
    ids=["honest-last", "honest-validation", "paper"],
)
def test_a_protocol_evaluates_only_what_it_may(
    tmp_path: Path, protocol: dict[str, str], expected: list[tuple[str, str]]
) -> None:
    result = Trainer(tiny_config({"protocol": protocol}), run_dir=tmp_path).fit()
    evaluations = [line for line in lines_without_times(tmp_path) if line["kind"] == "eval"]
    assert [(line["split"], line["purpose"]) for line in evaluations] == expected
    chosen = [line for line in evaluations if line["purpose"] == "select"]
    best = result.result["best"]
    assert best["selected_on"] == (chosen[0]["split"] if chosen else "last")
    if chosen:
        assert best["oa"] == max(line["oa"] for line in chosen)
        assert best["epoch"] == next(line["epoch"] for line in chosen if line["oa"] == best["oa"])


@pytest.mark.slow
@pytest.mark.parametrize("select", ["last", "validation"])
def test_under_honest_the_test_set_changes_neither_weights_nor_choice(tmp_path: Path, select: str) -> None:
    results = []
    for size in (12, 24):
        cfg = tiny_config(
            {"protocol": {"select": select}, "data": {"test_size": size}, "train": {"test_curve": True}}
        )
        results.append(Trainer(cfg, run_dir=tmp_path / str(size)).fit().result)
    assert results[0]["best"] == results[1]["best"]
    one, two = (final_weights(tmp_path / str(size)) for size in (12, 24))
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.slow
def test_the_result_is_of_the_best_epoch_and_not_of_the_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, scores = trainer_module.evaluate, iter([0.5, 0.9, 0.2])
    weights: list[torch.Tensor] = []

    def scored(model: Any, *args: Any, **kwargs: Any) -> Any:
        metrics = real(model, *args, **kwargs)
        weights.append(model.adapter_state()["model.head.8.weight"].clone())
        return type(metrics)(**{**vars(metrics), "oa": next(scores, metrics.oa)})

    monkeypatch.setattr(trainer_module, "evaluate", scored)
    result = Trainer(tiny_config({"protocol": {"name": "paper"}}), run_dir=tmp_path).fit()
    assert result.result["best"]["epoch"] == 1
    assert torch.equal(weights[3], weights[1])
    assert not torch.equal(weights[3], weights[2])
    assert torch.equal(final_weights(tmp_path)["model.head.8.weight"], weights[1])


def test_the_validation_split_stays_out_of_training(tmp_path: Path) -> None:
    data = make_data(tiny_config({"protocol": {"select": "validation", "val_fraction": 0.2}}))
    assert data.validation is not None
    trained = torch.cat([batch.index for epoch in range(3) for batch in data.train.batches(epoch)])
    held_out = torch.cat([batch.index for batch in data.validation.batches(0)])
    assert not set(trained.tolist()) & set(held_out.tolist())
    assert (data.num_train, data.num_validation) == (48, 12)
    assert torch.bincount(data.validation.dataset.labels[held_out]).tolist() == [4, 4, 4]  # stratified


@pytest.mark.slow
def test_a_finished_run_can_be_rebuilt_and_gives_the_same_result(tmp_path: Path) -> None:
    result = Trainer(tiny_config(CLORA), run_dir=tmp_path).fit()
    cfg, model = load_run(tmp_path)
    again = evaluate(model, make_data(cfg).test, num_classes=3, num_points=64)
    assert again.summary() == result.metrics.summary()


@pytest.mark.slow
def test_a_finished_run_can_be_the_start_of_another_one(tmp_path: Path) -> None:
    warm = Trainer(tiny_config({"optim": {"epochs": 2}}), run_dir=tmp_path / "warm").fit()
    start = {"weights": {"path": str(tmp_path / "warm")}, "adapter": {"method": "linear_probe"}}
    other = {"data": {"classes": ["airplane", "mug"]}, "model": {"num_classes": 2}}
    events: list[Any] = []
    model = Trainer(tiny_config(start, other), run_dir=tmp_path / "next", on_event=events.append).fit().model
    weight = "blocks.0.attn.qkv.weight"
    trained = warm.model.merge_and_unload().state_dict()[weight]
    assert torch.equal(model.base.state_dict()[weight], trained)
    assert "head for other classes" in events[0]["text"]
    plan = json.loads((tmp_path / "next" / "plan.json").read_text(encoding="utf-8"))
    assert plan["weights"]["matched"] > 0


def test_a_given_model_is_used_in_place(tmp_path: Path) -> None:
    cfg = tiny_config({"adapter": {"method": "linear_probe"}, "optim": {"epochs": 2}})
    model = build_model(cfg.model)
    assert Trainer(cfg, run_dir=tmp_path, model=model).fit().model.base is model


def test_a_given_model_of_other_settings_is_refused(tmp_path: Path) -> None:
    other = build_model(tiny_config({"model": {"depth": 1}}).model)
    with pytest.raises(ConfigError, match="depth: 1 -> 2"):
        Trainer(tiny_config(), run_dir=tmp_path, model=other).fit()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": {"num_classes": 4}}, r"model\.num_classes=4, but the data set has 3 classes"),
        ({"optim": {"batch_size": 61}}, r"optim\.batch_size=61 is more than the training set \(60 clouds\)"),
        ({"protocol": {"select": "validation"}, "optim": {"batch_size": 60}}, r"training set \(54 clouds\)"),
    ],
)
def test_settings_that_do_not_fit_the_data_are_refused(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        Trainer(tiny_config(change), run_dir=tmp_path).fit()


@pytest.mark.parametrize("device", ["cuda:99", "nonsense", "tpu"])
def test_a_device_that_is_not_there_is_refused(device: str) -> None:
    with pytest.raises(ConfigError, match=r"train.device"):
        Trainer(tiny_config({"train": {"device": device}}))


def test_a_loss_that_is_not_finite_stops_the_run_and_saves_the_batch(tmp_path: Path) -> None:
    cfg = tiny_config()
    model = build_model(cfg.model)
    with torch.no_grad():
        model.get_submodule("head.8").bias[1] = math.nan  # type: ignore[index, operator]
    with pytest.raises(NonFiniteLossError, match=r"The loss is not finite in step 1 ") as caught:
        Trainer(cfg, run_dir=tmp_path, model=model).fit()
    path = tmp_path / "nonfinite-step-1.safetensors"
    assert str(path) in str(caught.value)
    saved = load_checkpoint(path)
    train = make_data(cfg).train
    assert isinstance(train, PointLoader)
    assert torch.equal(saved["indices"], train.order(0)[:12])
    assert saved["points"].shape == (12, 64, 3)
    assert math.isnan(saved["model"]["model.head.8.bias"][1])
    assert saved["state"]["step"] == 0


def test_a_gradient_that_is_not_finite_stops_before_the_weights_are_touched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = tasks_module.classification_loss, []

    def broken(logits: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        terms = real(logits, *args, **kwargs)
        calls.append(1)
        if len(calls) < 3:
            return terms
        return type(terms)(terms.total + (logits * 0).sum().sqrt(), terms.task, terms.extra)

    monkeypatch.setattr(tasks_module, "classification_loss", broken)
    trainer = Trainer(tiny_config(), run_dir=tmp_path)
    with pytest.raises(NonFiniteLossError, match="The gradient is not finite in step 3 "):
        trainer.fit()
    assert all(value.isfinite().all() for value in trainer.parts.model.adapter_state().values())
    saved = load_checkpoint(tmp_path / "nonfinite-step-3.safetensors")["model"]
    assert all(torch.equal(saved[key], value) for key, value in trainer.parts.model.adapter_state().items())


def test_what_a_refused_step_leaves_is_from_before_its_forward_pass(tmp_path: Path) -> None:
    cfg = tiny_config({"adapter": {"method": "full"}})
    model = build_model(cfg.model)
    with torch.no_grad():
        model.get_submodule("head.8").bias[1] = math.nan  # type: ignore[index, operator]
    before = {name: value.clone() for name, value in model.named_buffers() if "running" in name}
    trainer = Trainer(cfg, run_dir=tmp_path, model=model)
    with pytest.raises(NonFiniteLossError):
        trainer.fit()
    saved = load_checkpoint(tmp_path / "nonfinite-step-1.safetensors")["model"]
    tracked = [name for name in before if f"model.{name}" in saved]
    assert tracked
    assert all(torch.equal(saved[f"model.{name}"], before[name]) for name in tracked)
    assert all(torch.equal(dict(model.named_buffers())[name], before[name]) for name in tracked)


def test_without_a_terminal_lines_go_to_standard_error_only(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    Trainer(tiny_config({"train": {"progress": "auto"}}), run_dir=tmp_path).fit()
    out, err = capfd.readouterr()
    assert out == ""
    assert "\x1b" not in err
    lines = err.splitlines()
    assert lines[0] == f"training 3 epochs of {STEPS_PER_EPOCH} steps"
    assert [line.split("  ")[0] for line in lines[1:]] == ["epoch 1/3", "epoch 2/3", "epoch 3/3", "epoch 3/3"]


@pytest.mark.slow
def test_starting_over_replaces_what_an_earlier_run_left(tmp_path: Path) -> None:
    Trainer(tiny_config({"optim": {"epochs": 2}}), run_dir=tmp_path).fit()
    Trainer(tiny_config({"optim": {"epochs": 3}}), run_dir=tmp_path, resume="never").fit()
    lines = lines_without_times(tmp_path)
    assert [line["step"] for line in lines if line["kind"] == "train"] == list(range(1, 16))


def test_a_result_without_checkpoint_is_not_overwritten_by_accident(tmp_path: Path) -> None:
    Trainer(tiny_config({"optim": {"epochs": 2}}), run_dir=tmp_path).fit()
    RunFolder(tmp_path).checkpoint.unlink()
    with pytest.raises(CheckpointError, match=r"start over with --resume never"):
        Trainer(tiny_config({"optim": {"epochs": 2}}), run_dir=tmp_path).fit()
    assert RunFolder(tmp_path).result.is_file()


def test_frozen_parts_need_no_gradient_memory(tmp_path: Path) -> None:
    trainer = Trainer(
        tiny_config({"adapter": {"method": "linear_probe"}, "optim": {"epochs": 2}}), run_dir=tmp_path
    )
    seen: list[bool] = []

    def watch(event: Any) -> None:
        if event["kind"] == "epoch":
            trainer.parts.model.train()
            features = trainer.parts.model.base.forward_features(torch.randn(2, 64, 3))
            seen.append(features.requires_grad)

    trainer._on_event = watch
    trainer.fit()
    assert seen == [False, False]


def test_the_result_says_what_the_yaml_says(tmp_path: Path) -> None:
    Trainer(tiny_config({"augment": "rotate_y+isotropic", "seed": 4}), run_dir=tmp_path).fit()
    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    config = yaml.safe_load((tmp_path / "config.yaml").read_text(encoding="utf-8"))
    assert (
        (result["augment"], result["seed"])
        == (config["augment"], config["seed"])
        == ("rotate_y+isotropic", 4)
    )


@pytest.mark.cuda
@pytest.mark.parametrize("change", [{}, EVERYTHING], ids=["plain", "everything"])
def test_a_run_on_a_gpu_is_deterministic_in_bfloat16(tmp_path: Path, change: dict[str, Any]) -> None:
    for folder in (tmp_path / "one", tmp_path / "two"):
        Trainer(tiny_config(change, {"train": {"device": "cuda", "amp": True}}), run_dir=folder).fit()
    assert lines_without_times(tmp_path / "one") == lines_without_times(tmp_path / "two")
