"""A study is carried out: choices, records, failures; killed anywhere, it loses and repeats nothing."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import get_num_threads as threads_now
from typer.testing import CliRunner

from pcl_clora.cli import app
from pcl_clora.compare import load_study
from pcl_clora.compare.corrupted import read_right
from pcl_clora.compare.estimate import Estimator
from pcl_clora.compare.folder import StudyFolder
from pcl_clora.compare.study import Run
from pcl_clora.config import ConfigError
from pcl_clora.data import PointLoader, build_dataset
from pcl_clora.engine import evaluate, load_run
from pcl_clora.engine.run.lock import RunLock
from pcl_clora.engine.run.snapshot import Snapshot
from pcl_clora.io import load_tensors, read_json, write_json
from tests.support.cli_cases import ROOT
from tests.support.study_cases import FAILING, STUDY, Here, carry_out, tiny_study, write_study


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A study that nothing stopped: its settings, its folder, what was started, and what was said."""
    folder, launch = tmp_path_factory.mktemp("whole"), Here()
    study = tiny_study(folder)
    outcome, lines = carry_out(study, folder / "out", launch)
    assert not outcome.failed
    return study, StudyFolder(folder / "out"), launch.started, lines


def numbers(files, study):
    """What a study found, without times."""
    found = {}
    for run in study.runs():
        record = files.check(study, run)
        found[str(run)] = record["score"] if run.trial is not None else record["metrics"]
        if run.trial is None:
            found[f"{run} outputs"] = files.read_outputs(run)["logits"].tolist()
            found[f"{run} chosen"] = record["chosen"]
    return found


def test_every_run_is_done_once_and_the_time_left_is_told(whole):
    study, _, started, lines = whole
    assert started == [str(run) for run in study.runs()]
    assert lines[0].startswith("[1/8] lora/trial0.001: ")
    assert all("; left 0:00:" in line for line in lines[:-1])
    assert lines[-1].startswith("[8/8] clora/seed1: ")


def test_the_best_value_on_validation_is_taken(whole):
    study, files, _, _ = whole
    for row in study.rows.values():
        choice = files.read(files.choice(row.name))
        scores = {run.trial: files.check(study, run)["score"] for run in study.trials(row)}
        assert choice["trials"] == {f"{value:g}": score for value, score in scores.items()}
        assert scores[choice["value"]] == max(scores.values())
        assert files.check(study, Run(row.name, 1))["settings"]["optim.lr"] == choice["value"]


def test_a_trial_never_looks_at_test(tmp_path, monkeypatch):
    looked = []
    monkeypatch.setattr("pcl_clora.engine.trainer.Trainer._finish", lambda self: looked.append(self))
    study = tiny_study(tmp_path)
    files = StudyFolder(tmp_path / "out")
    files.open(study)
    trial = study.runs()[0]
    job = {"run": str(trial), "config": study.settings(trial).model_dump(mode="json"), "trial": 0.001}
    launch = Here()
    launch(
        {**job, "run_dir": str(files.run_dir(trial)), "record": str(files.record(trial))}, files.log(trial)
    )
    assert launch.poll() == 0
    assert files.check(study, trial)["best"]["selected_on"] == "validation"
    assert looked == []
    assert not files.run_dir(trial).exists()


def test_a_record_says_what_a_table_needs_and_is_small(whole):
    study, files, _, _ = whole
    run = Run("clora", 0)
    record = files.check(study, run)
    assert record["precision"] == "float32"
    assert record["processor"]
    assert {"torch", "numpy"} <= record["versions"].keys()
    assert record["metrics"].keys() == {"oa", "macc", "loss", "ece"}
    assert [point["epoch"] for point in record["curve"]] == [0]
    assert files.record(run).stat().st_size + files.outputs(run).stat().st_size < 10_000


def test_the_outputs_are_the_logits_of_the_saved_model_on_every_test_cloud(whole):
    study, files, _, _ = whole
    run = Run("lora", 1)
    cfg, model = load_run(files.run_dir(run))
    test = build_dataset(cfg.data, "test")
    metrics = evaluate(model, PointLoader(test, 5), num_points=64, num_classes=3, keep_logits=True)
    kept = files.read_outputs(run)
    assert kept["index"].tolist() == list(range(len(test)))
    assert kept["label"].tolist() == test.labels.tolist()
    torch.testing.assert_close(kept["logits"], metrics.logits, rtol=2e-3, atol=2e-3)
    right = kept["logits"].argmax(-1) == kept["label"]
    assert right.double().mean() == pytest.approx(files.check(study, run)["metrics"]["oa"])


def test_what_is_finished_is_not_done_again(whole):
    study, files, _, _ = whole
    launch = Here()
    outcome, lines = carry_out(study, files.path, launch)
    assert launch.started == []
    assert len(outcome.finished) == 8
    assert lines == ["8 of 8 runs are finished already"]


def test_a_failed_run_is_named_and_the_others_go_on(tmp_path):
    study = tiny_study(tmp_path, choose=None, **FAILING)
    outcome, lines = carry_out(study, tmp_path / "out")
    assert [str(run) for run in outcome.failed] == ["broken/seed0"]
    assert "not finite" in outcome.failed[Run("broken", 0)]
    assert len(outcome.finished) == 4
    assert any(line.startswith("[3/5] broken/seed0: failed: ") for line in lines)
    again = Here()
    carry_out(study, tmp_path / "out", again)
    assert again.started == ["broken/seed0"]  # tried again, and nothing else


def test_a_run_that_another_process_has_is_tried_again_behind_the_others_and_then_named(tmp_path):
    study, launch = tiny_study(tmp_path, choose=None, seeds=[0]), Here()
    files = StudyFolder(tmp_path / "out")
    with RunLock(files.run_dir(Run("lora", 0))):
        outcome, _ = carry_out(study, files.path, launch)
    assert launch.started == ["lora/seed0", "clora/seed0", *["lora/seed0"] * 3]
    assert outcome.failed == {Run("lora", 0): "another process is at work on it"}
    assert not files.failure(Run("lora", 0)).exists()


def test_a_choice_is_made_among_the_trials_that_did_not_fail(tmp_path):
    study = tiny_study(tmp_path, choose={"values": [0.001, 1e30]}, seeds=[0], rows={"clora": {}})
    outcome, _ = carry_out(study, tmp_path / "out")
    assert [str(run) for run in outcome.failed] == ["clora/trial1e+30"]
    choice = StudyFolder(tmp_path / "out").read(StudyFolder(tmp_path / "out").choice("clora"))
    assert choice["value"] == 0.001
    assert choice["trials"]["1e+30"].startswith("failed: ")


def test_without_a_trial_there_is_no_run(tmp_path):
    study = tiny_study(tmp_path, choose={"values": [1e30]}, seeds=[0], rows={"clora": {}})
    outcome, _ = carry_out(study, tmp_path / "out")
    assert outcome.failed[Run("clora", 0)] == "no trial of clora finished"


def test_corruptions_that_are_asked_for_later_are_measured_without_training(whole, tmp_path):
    _, files, _, _ = whole
    robustness = {"corruptions": ["pointcloud_c.jitter"], "severities": [1, 3]}
    study = tiny_study(tmp_path, robustness=robustness)
    launch = Here()
    outcome, _ = carry_out(study, files.path, launch)
    assert launch.started == ["lora/seed0", "clora/seed0", "lora/seed1", "clora/seed1"]
    assert not outcome.failed
    found = files.check(study, Run("lora", 0))["robustness"]
    assert found["oa"]["pointcloud_c.jitter"].keys() == {"1", "3"}
    right = read_right(files.corrupted(Run("lora", 0)), "lora/seed0", 0)
    means = {name: one.mean() for name, one in right.items()}
    oa = found["oa"]["pointcloud_c.jitter"]
    assert means == {f"pointcloud_c.jitter, {at}": pytest.approx(oa[at]) for at in ("1", "3")}
    assert files.corrupted(Run("lora", 0)).stat().st_size < 500


def test_a_folder_of_another_base_config_is_refused(whole, tmp_path):
    _, files, _, _ = whole
    with pytest.raises(ConfigError, match=r"another base config(.|\n)*optim.batch_size: 8 -> 5"):
        files.open(tiny_study(tmp_path, "optim.batch_size=5"))


def test_what_every_row_chooses_may_differ_in_the_base(whole, tmp_path):
    _, files, _, _ = whole
    settings = {**STUDY["settings"], "optim": {**STUDY["settings"]["optim"], "lr": 0.0123}}
    study, launch = tiny_study(tmp_path, settings=settings), Here()
    assert study.base.optim.lr == 0.0123
    carry_out(study, files.path, launch)
    assert launch.started == []


def test_a_row_with_other_settings_than_its_runs_is_refused(whole, tmp_path):
    _, files, _, _ = whole
    rows = {"lora": {"settings": {"adapter": {"method": "lora", "rank": 2}}}, "clora": {}}
    with pytest.raises(ConfigError, match=r"row 'lora'(.|\n)*adapter.rank: 1 -> 2"):
        files.open(tiny_study(tmp_path, rows=rows))


def test_a_study_may_get_more_rows_and_seeds(whole, tmp_path):
    _, files, _, _ = whole
    study = tiny_study(tmp_path, seeds=[0, 1, 2], rows={**tiny_study(tmp_path).cfg.model_dump()["rows"]})
    launch = Here()
    carry_out(study, files.path, launch)
    assert launch.started == ["lora/seed2", "clora/seed2"]


def test_a_dry_run_estimates_and_writes_nothing(tmp_path):
    told = dry_run(write_study(tmp_path), tmp_path / "out")
    assert (told["runs"][0], len(told["runs"])) == ({"run": "lora/trial0.001", "state": "to do"}, 8)
    assert 0 < told["seconds"] < 600
    assert not (tmp_path / "out").exists()


def dry_run(config, out):
    arguments = ["compare", "--config", str(config), "--out", str(out), "--dry-run", "--json"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def test_runs_that_are_finished_scale_the_estimate_of_the_others(whole, tmp_path, monkeypatch):
    _, files, _, _ = whole
    out = tmp_path / "out"
    shutil.copytree(files.path, out, ignore=shutil.ignore_patterns("seed2*"))  # of another test
    for path in (out / "rows").rglob("*.json"):
        if path.stem.startswith(("seed", "trial")):
            write_json(path, {**read_json(path), "processor_seconds": 500.0})
    config = write_study(tmp_path, seeds=[0, 1, 2])
    monkeypatch.setattr(Estimator, "_speed", lambda self, row, cfg: (0.01, 0.001, 1000))
    told = dry_run(config, out)
    assert told["left"] == 2
    assert told["seconds"] == pytest.approx(1000, rel=0.02)  # the trials have fewer clouds
    assert "from 8 finished runs, which took " in told["made_from"]
    assert dry_run(config, tmp_path / "none")["made_from"].endswith("timed in one thread")


def test_a_dry_run_names_the_rows_whose_files_are_not_there(tmp_path):
    rows = {"clora": {}, "bank": {"settings": {"adapter": {"bank": "none.safetensors"}}}}
    told = dry_run(write_study(tmp_path, rows=rows, choose=None), tmp_path / "out")
    assert told["missing_files"] == []
    assert told["not_estimated"].keys() == {"bank"}
    assert told["not_estimated"]["bank"].startswith("none.safetensors: there is no such file")
    assert told["seconds"] > 0
    assert told["runs"][1] == {"run": "bank/seed0", "state": "to do"}


def test_a_step_is_timed_in_one_thread_whatever_is_set(tmp_path, monkeypatch):
    threads, seen = torch.get_num_threads(), []
    monkeypatch.setattr("pcl_clora.compare.estimate._seconds", lambda work: seen.append(threads_now()) or 0.1)
    try:
        torch.set_num_threads(2)
        Estimator(tiny_study(tmp_path)).of(Run("lora", 0))
        assert set(seen) == {1}
        assert threads_now() == 2
    finally:
        torch.set_num_threads(threads)


def test_a_record_has_the_processor_time_of_a_run_that_went_in_one_piece(whole):
    study, files, _, _ = whole
    for run in study.runs():
        assert 0 < files.check(study, run)["processor_seconds"] < 100


def test_a_task_on_a_bank_stands_beside_an_adapter_of_its_own(whole, tmp_path):
    _, files, _, _ = whole
    bank = files.run_dir(Run("clora", 0)) / "best" / "adapter.safetensors"
    rows = {"separate": {}, "bank": {"settings": {"adapter": {"bank": str(bank)}}}}
    study = tiny_study(tmp_path, choose=None, seeds=[1], rows=rows)
    outcome, _ = carry_out(study, tmp_path / "out")
    assert not outcome.failed
    found = {row: StudyFolder(tmp_path / "out").check(study, Run(row, 1)) for row in rows}
    spaces = sum(t.numel() for name, t in load_tensors(bank)[0].items() if name.startswith("method.spaces."))
    assert spaces > 0
    adapters = {
        row: record["params"]["trainable"] - record["params"]["head"] for row, record in found.items()
    }
    assert adapters["separate"] - adapters["bank"] == spaces
    assert found["separate"]["params"]["head"] == found["bank"]["params"]["head"]
    assert found["separate"]["adapter_bytes"] - found["bank"]["adapter_bytes"] > 4 * spaces - 1000
    assert 0 <= found["bank"]["metrics"]["oa"] <= 1


class KilledError(BaseException):
    """Stands for the end of the process: nothing catches it, nothing is saved."""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("times", "between"), [(5, (14, 22)), pytest.param(20, (8, 17), marks=pytest.mark.long)]
)
def test_a_study_killed_often_loses_nothing_and_repeats_nothing(whole, tmp_path, monkeypatch, times, between):
    study, files, _, _ = whole
    replace, left, launch, kills = Path.replace, [0], Here(), 0
    chance = random.Random(0)
    ended: list[str] = []

    def reach():
        left[0] -= 1
        if left[0] < 0:
            raise KilledError

    def counted(self, target):
        reach()  # before the file is there
        moved = replace(self, target)
        if target.parent.parent.name == "rows" and target.suffix == ".json" and target.stem != "choice":
            ended.append(f"{target.parent.name}/{target.stem}")
        reach()  # and after
        return moved

    monkeypatch.setattr(Path, "replace", counted)
    for _ in range(100):
        left[0] = chance.randrange(*between)
        try:
            carry_out(tiny_study(tmp_path), tmp_path / "out", launch)
            break
        except KilledError:
            kills += 1
    assert kills >= times
    assert sorted(set(ended)) == sorted(str(run) for run in study.runs())
    assert len(ended) <= len(study.runs())
    assert numbers(StudyFolder(tmp_path / "out"), study) == numbers(files, study)


@pytest.mark.slow
def test_a_run_ends_with_the_study_that_was_killed_and_goes_on_with_the_next(tmp_path, monkeypatch):
    row = {"settings": {"optim": {"epochs": 3}, "train": {"progress": "plain"}}}
    config = write_study(tmp_path, choose=None, seeds=[0], rows={"clora": row})
    command = [sys.executable, "-m", "pcl_clora.cli", "compare", "--config", str(config), "--out", "out"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    log = tmp_path / "out" / "logs" / "clora" / "seed0.log"
    first = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.DEVNULL)
    while not (log.is_file() and "epoch 1/3" in log.read_text()):
        assert first.poll() is None
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    restored, restore = [], Snapshot.restore
    monkeypatch.setattr(Snapshot, "restore", lambda self, tree: restored.append(restore(self, tree)))
    study, files = load_study(config), StudyFolder(tmp_path / "out")
    for _ in range(200):  # the run takes a moment to end
        outcome, _ = carry_out(study, files.path)
        if not outcome.failed:
            break
        assert "another process" in str(outcome.failed)
        time.sleep(0.05)
    assert [str(run) for run in outcome.finished] == ["clora/seed0"]
    assert len(restored) == 1
    assert [point["epoch"] for point in files.check(study, Run("clora", 0))["curve"]] == [0, 1, 2]


def test_part_segmentation_keeps_the_iou_of_every_cloud(tmp_path):
    model = {"task": "part_segmentation", "num_parts": 10, "num_categories": 3, "fetch_layers": [0, 1]}
    model |= {"propagation_widths": [16, 12], "segmentation_widths": [12, 8], "label_width": 4}
    study = tiny_study(
        tmp_path,
        choose=None,
        seeds=[0],
        settings={"model": model, "optim": {"epochs": 1}},
        rows={"clora": {}},
    )
    outcome, _ = carry_out(study, tmp_path / "out")
    assert not outcome.failed
    files, run = StudyFolder(tmp_path / "out"), Run("clora", 0)
    kept = files.read_outputs(run)
    assert kept.keys() == {"index", "label", "score"}
    assert kept["score"].mean().item() == pytest.approx(
        files.check(study, run)["metrics"]["instance_miou"], abs=1e-6
    )
