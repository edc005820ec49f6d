"""Pre-training in the engine: the same loop, the same guarantees, masks and probes that are fixed."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pcl_clora.config import ConfigError, build, dump_yaml, merge
from pcl_clora.data import Batch, parse_data_config
from pcl_clora.data.input_rule import draw_points, keep_pool
from pcl_clora.engine import (
    NonFiniteLossError,
    RunConfig,
    RunFolder,
    Trainer,
    TrainingInterrupted,
    load_checkpoint,
    load_run_config,
    read_metrics,
)
from pcl_clora.engine.config import ProbeConfig
from pcl_clora.engine.evaluate import evaluate
from pcl_clora.engine.metrics.reconstruction import ReconstructionMeter
from pcl_clora.engine.probes import FeatureProbe
from pcl_clora.engine.run import checkpoint
from pcl_clora.engine.run_pictures import CELL, draw_page, draw_reconstructions
from pcl_clora.engine.setup import make_backbone, make_data
from pcl_clora.models import build_model, create_model, load_weights
from pcl_clora.models.weights.convert import convert_weights
from tests.support.engine_cases import final_weights, lines_without_times

SIZES: dict[str, Any] = {
    "embed_dim": 24,
    "depth": 2,
    "num_heads": 2,
    "num_groups": 8,
    "group_size": 8,
    "encoder_widths": [8, 16, 16],
}
LABELLED = {
    "name": "procedural",
    "classes": ["bottle", "chair", "table"],
    "train_size": 30,
    "test_size": 12,
    "num_points": 64,
}
VALUES: dict[str, Any] = {
    "name": "pretraining",
    "model": {"name": "point_mae", "task": "pretraining", "pretraining": {"decoder_depth": 1}, **SIZES},
    "adapter": {"method": "full"},
    "data": {"name": "procedural_corpus", "train_size": 60, "test_size": 20, "num_points": 64},
    "optim": {"epochs": 2, "batch_size": 12, "lr": 2e-3, "warmup_epochs": 1},
    "train": {"device": "cpu", "checkpoint_every_steps": 2, "progress": "off", "ema_decay": 0.5},
    "probe": {"data": LABELLED, "every_epochs": 1, "num_train": 24, "num_test": 0},
}
STEPS = 10


def pretraining_config(*changes: Mapping[str, Any]) -> RunConfig:
    values: Mapping[str, Any] = VALUES
    for change in changes:
        values = merge(values, change)
    return build(RunConfig, values)


def without_times(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what a clock decides, that of probes among it."""
    return [{k: v for k, v in line.items() if k != "seconds"} for line in lines_without_times(folder)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run that nothing stopped."""
    folder = tmp_path_factory.mktemp("whole")
    Trainer(pretraining_config(), run_dir=folder).fit()
    return folder


def assert_same_run(one: Path, two: Path) -> None:
    assert without_times(one) == without_times(two)
    weights = final_weights(one), final_weights(two)
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.slow
@pytest.mark.parametrize("step", [3, pytest.param(7, marks=pytest.mark.long)])
def test_a_killed_process_goes_on_to_the_same_bits(tmp_path: Path, whole: Path, step: int) -> None:
    settings = tmp_path / "run.yaml"
    settings.write_text(dump_yaml(pretraining_config()), encoding="utf-8")
    program = (
        "import os, signal, sys, torch\n"
        "from pcl_clora.engine import Trainer, load_run_config\n"
        "torch.set_num_threads(1)\n"
        "def listen(event):\n"
        f"    if event['kind'] == 'train' and event['step'] == {step}:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "Trainer(load_run_config(sys.argv[1]), run_dir=sys.argv[2], on_event=listen).fit()\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", program, str(settings), str(tmp_path / "run")], check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert not RunFolder(tmp_path / "run").result.exists()
    Trainer(load_run_config(settings), run_dir=tmp_path / "run").fit()
    assert_same_run(tmp_path / "run", whole)


@pytest.mark.slow
def test_an_interrupted_run_goes_on_to_the_same_bits(tmp_path: Path, whole: Path) -> None:
    def interrupt(event: Mapping[str, Any]) -> None:
        if event["kind"] == "probe" and event["epoch"] == 0:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(TrainingInterrupted, match="run the same command again"):
        Trainer(pretraining_config(), run_dir=tmp_path, on_event=interrupt).fit()
    Trainer(pretraining_config(), run_dir=tmp_path).fit()
    assert_same_run(tmp_path, whole)


@pytest.mark.slow
def test_probes_and_loader_workers_change_no_weight(tmp_path: Path, whole: Path) -> None:
    values = {key: value for key, value in VALUES.items() if key != "probe"}
    cfg = build(RunConfig, merge(values, {"train": {"num_workers": 1}}))
    Trainer(cfg, run_dir=tmp_path).fit()
    weights = final_weights(tmp_path), final_weights(whole)
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[1])


@pytest.mark.slow
def test_the_loss_falls_and_the_log_has_everything(whole: Path) -> None:
    lines = read_metrics(RunFolder(whole).metrics)
    steps = [line["loss"] for line in lines if line["kind"] == "train"]
    epochs = [line for line in lines if line["kind"] == "epoch"]
    probes = [line for line in lines if line["kind"] == "probe"]
    assert len(steps) == STEPS
    assert epochs[1]["loss"] < epochs[0]["loss"]
    assert [probe["epoch"] for probe in probes] == [0, 1]
    assert all(0 <= probe[key] <= 1 for probe in probes for key in ("knn_acc", "svm_acc"))
    result = json.loads(RunFolder(whole).result.read_text(encoding="utf-8"))
    assert result["task"] == "pretraining"
    assert result["metrics"] == {"loss": lines[-1]["loss"], "num_clouds": 20}
    assert result["data"]["num_test"] == 20


@pytest.mark.slow
def test_a_finished_run_fills_a_classifier(whole: Path) -> None:
    model = create_model("point_mae", num_classes=3, **SIZES)
    report = load_weights(model, whole)
    trained = final_weights(whole)
    name = next(name for name in trained if name.endswith("blocks.1.mlp.fc1.weight"))
    assert torch.equal(model.blocks[1].mlp.fc1.weight, trained[name])
    assert {part.split(".")[0] for part in report.missing} == {"prefix", "head"}


def test_a_loss_that_is_not_finite_stops_with_the_state_saved(tmp_path: Path) -> None:
    cfg = pretraining_config()
    model = build_model(cfg.model)
    with torch.no_grad():
        model.rebuild.weight.fill_(float("inf"))
    with pytest.raises(NonFiniteLossError, match="is not finite in step 1"):
        Trainer(cfg, run_dir=tmp_path, model=model).fit()
    saved = load_checkpoint(RunFolder(tmp_path).nonfinite(1))
    assert saved["points"].shape == (12, 64, 3)
    assert saved["state"]["step"] == 0


def test_the_test_loss_is_the_mean_over_clouds_with_fixed_masks() -> None:
    cfg = pretraining_config()
    data, model = make_data(cfg), build_model(cfg.model)
    before = torch.get_rng_state()
    found = [evaluate(model, data.test, num_points=64, task=data.task, seed=0) for _ in range(2)]
    other = evaluate(model, data.test, num_points=64, task=data.task, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    assert found[0] == found[1]
    assert found[0].loss != other.loss
    assert found[0].num_clouds == 20


def test_the_meter_weighs_batches_by_their_clouds() -> None:
    meter = ReconstructionMeter()
    meter.update(torch.tensor(2.0), 3)
    meter.update(torch.tensor(6.0), 1)
    assert meter.metrics().loss == 3.0
    meter.reset()
    with pytest.raises(ValueError, match="No cloud was rebuilt"):
        meter.metrics()


def test_labels_are_not_looked_at() -> None:
    cfg = pretraining_config({"data": {"train_size": 12}, "optim": {"batch_size": 12}})
    assert make_data(cfg).num_train == 12  # far fewer clouds than classes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"protocol": {"select": "validation"}}, r"protocol\.select=last"),
        ({"protocol": {"votes": 3}}, r"protocol\.votes=1"),
        ({"optim": {"label_smoothing": 0.1}}, r"label_smoothing=0"),
        ({"data": {"name": "digits"}, "augment": "none"}, "holds images"),
        ({"model": {"task": "classification", "pretraining": {}}}, "probe is for pre-training"),
        ({"probe": {"data": {"name": "modelnet41"}}}, r"probe\.data"),
    ],
)
def test_settings_that_mean_nothing_here_are_refused(change: Mapping[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        pretraining_config(change)


def test_more_probe_clouds_than_there_are_is_an_error_before_training() -> None:
    config = ProbeConfig(data=parse_data_config(LABELLED), num_train=31)
    with pytest.raises(ConfigError, match=r"probe\.num_train=31.* has 30 clouds"):
        FeatureProbe(config)


def test_settings_without_probe_are_written_as_before() -> None:
    values = {key: value for key, value in VALUES.items() if key != "probe"}
    assert "probe" not in build(RunConfig, values).model_dump(mode="json")


def test_pictures_show_whole_visible_and_rebuilt_clouds() -> None:
    model = build_model(pretraining_config().model)
    points = torch.rand(2, 64, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    before = torch.get_rng_state()
    pixels = draw_reconstructions(model, points, seed=0)
    assert model.training
    assert torch.equal(torch.get_rng_state(), before)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (2 * CELL, 3 * CELL, 3)
    orange = (pixels[..., 0].astype(int) - pixels[..., 2] > 40).any(axis=0).reshape(3, CELL).any(axis=1)
    assert orange.tolist() == [False, False, True]


def test_a_page_has_its_clouds_in_rows() -> None:
    clouds = torch.zeros(4, 5, 3)
    clouds[2, 0] += 0.8
    pixels = draw_page(clouds, columns=2, size=20)
    assert pixels.shape == (40, 40, 3)
    assert (pixels[:20, :20] == pixels[:20, 20:]).all()
    assert (pixels[20:, :20] != pixels[:20, :20]).any()


@pytest.mark.slow
def test_a_full_disk_loses_no_earlier_checkpoint(
    tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, written = checkpoint.save_file, []

    def full_at_the_third(tensors: Any, path: Any, metadata: Any) -> None:
        written.append(path)
        real(tensors, path, metadata=metadata)
        if len(written) == 3:
            Path(path).write_bytes(Path(path).read_bytes()[:1000])
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save_file", full_at_the_third)
        with pytest.raises(OSError, match="No space left"):
            Trainer(pretraining_config(), run_dir=tmp_path).fit()
    assert load_checkpoint(RunFolder(tmp_path).checkpoint)["state"]["step"] == 4
    assert sorted(path.name for path in RunFolder(tmp_path).checkpoint.parent.iterdir()) == [
        "checkpoint.safetensors"
    ]
    Trainer(pretraining_config(), run_dir=tmp_path).fit()
    assert_same_run(tmp_path, whole)


def test_a_file_under_official_names_is_continued_with_every_tensor(tmp_path: Path) -> None:
    cfg = pretraining_config()
    before = build_model(cfg.model).state_dict()
    save_file(before, tmp_path / "ours.safetensors")
    official = tmp_path / "official.pth"
    convert_weights(tmp_path / "ours.safetensors", official, to="official")
    model, report = make_backbone(pretraining_config({"weights": {"path": str(official)}}))
    assert report is not None
    assert (len(report.matched), report.missing, report.unexpected) == (len(before), (), {})
    assert report.naming == "official"
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.slow
def test_tensorboard_gets_reconstructions(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    Trainer(pretraining_config({"train": {"tensorboard": True}}), run_dir=tmp_path).fit()
    events = accumulator.EventAccumulator(str(RunFolder(tmp_path).tensorboard)).Reload()
    assert [event.step for event in events.Images("probe: whole, visible, rebuilt")] == [5, 10]
    assert [event.step for event in events.Scalars("probe/probe/knn_acc")] == [5, 10]


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "OMP_NUM_THREADS", "1")  # of processes that tests start


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("point_mae_tiny", {}),
        ("pcp_mae", {}),
        ("pointgpt_s", {}),
        ("recon", {}),
        ("point_mae", {"pretraining": {"mask": "block", "loss": "chamfer_l1", "embed": "visible"}}),
        ("point_mae_tiny", {"pretraining": {"contrast": 0.5, "init": "default"}}),
    ],
)
def test_other_backbones_and_masks_run_in_the_same_loop(
    tmp_path: Path, name: str, other: Mapping[str, Any]
) -> None:
    values = {key: value for key, value in VALUES.items() if key != "probe"}
    model = {"name": name, "task": "pretraining", **SIZES, **other}
    cfg = build(
        RunConfig, {**values, "model": model, "optim": {"epochs": 1, "batch_size": 12, "warmup_epochs": 0}}
    )
    result = Trainer(cfg, run_dir=tmp_path).fit()
    assert 0 < result.metrics.loss < 10


TWO_VIEWS = merge(
    VALUES,
    {
        "model": {"pretraining": {"contrast": 0.5}},
        "data": {"pool_points": 128},
        "augment": "scale_shift",
        "train": {"checkpoint_every_steps": 1},
    },
)


@pytest.mark.slow
def test_two_views_are_one_cloud_drawn_and_augmented_twice(tmp_path: Path) -> None:
    seen: list[torch.Tensor] = []

    class Listening(Trainer):
        def _training_points(self, batch: Batch) -> tuple[Batch, Any]:
            views, patches = super()._training_points(batch)
            seen.append(views.points)
            assert torch.equal(views.index, batch.index.repeat(2))
            return views, patches

    Listening(build(RunConfig, TWO_VIEWS), run_dir=tmp_path).fit()
    assert [tuple(points.shape) for points in seen] == [(24, 64, 3)] * STEPS
    assert not any(torch.equal(*points.chunk(2)) for points in seen)
    seen.clear()
    plain = merge(TWO_VIEWS, {"augment": "none", "optim": {"epochs": 1, "warmup_epochs": 0}})
    Listening(build(RunConfig, plain), run_dir=tmp_path / "plain").fit()
    for first, second in (points.chunk(2) for points in seen):
        shared = (torch.cdist(first, second) == 0).any(dim=2).float().mean(dim=1)
        assert 0 < shared.min() <= shared.max() < 1  # the same cloud, other points
    terms = [line for line in read_metrics(tmp_path / "metrics.jsonl") if line["kind"] == "train"]
    assert all(line["loss_contrast"] > 0 for line in terms)


def test_two_views_need_two_clouds_a_batch() -> None:
    with pytest.raises(ConfigError, match=r"optim\.batch_size=1; set it to 2"):
        build(RunConfig, merge(TWO_VIEWS, {"optim": {"batch_size": 1}}))


def test_keeping_the_pool_first_draws_the_same_points() -> None:
    points = torch.rand(3, 128, 3, generator=torch.Generator().manual_seed(0))
    batch = Batch(points, torch.zeros(3, dtype=torch.int64), torch.arange(3))
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    kept = keep_pool(batch, 64)
    assert kept.points.shape == (3, 75, 3)
    expected = draw_points(batch, 64, generators[0]).points
    assert torch.equal(draw_points(kept, 64, generators[1]).points, expected)


def test_batches_are_joined_one_behind_another() -> None:
    first, second = (
        Batch(torch.full((2, 4, 3), float(i)), torch.tensor([i, 9]), torch.arange(2)) for i in (1, 2)
    )
    joined = Batch.join([first, replace(second, mask=torch.ones(2, 4, dtype=torch.bool))])
    assert joined.points[:, 0, 0].tolist() == [1, 1, 2, 2]
    assert joined.label.tolist() == [1, 9, 2, 9]
    assert joined.mask is None


@pytest.mark.slow
def test_two_views_go_on_to_the_same_bits(tmp_path: Path) -> None:
    cfg = build(RunConfig, TWO_VIEWS)

    def interrupt(event: Mapping[str, Any]) -> None:
        if event["kind"] == "train" and event["step"] == 3:
            signal.raise_signal(signal.SIGINT)

    Trainer(cfg, run_dir=tmp_path / "whole").fit()
    with pytest.raises(TrainingInterrupted):
        Trainer(cfg, run_dir=tmp_path / "parts", on_event=interrupt).fit()
    Trainer(cfg, run_dir=tmp_path / "parts").fit()
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
