"""A run that was stopped at any point goes on to the same bits."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from pcl_clora.config import dump_yaml
from pcl_clora.engine import (
    CheckpointError,
    RunConfig,
    RunFolder,
    Trainer,
    TrainingInterrupted,
    load_checkpoint,
    load_run_config,
)
from pcl_clora.engine.run import snapshot as snapshot_module
from pcl_clora.models import build_model
from tests.support.engine_cases import (
    CLORA,
    EVERYTHING,
    STEPS_PER_EPOCH,
    final_weights,
    lines_without_times,
    tiny_config,
)

pytestmark = pytest.mark.slow  # whole runs, stopped and continued

CASES: dict[str, Mapping[str, Any]] = {"full": {}, "clora": CLORA, "everything": EVERYTHING}


class KilledError(BaseException):
    """Stands for the end of the process: nothing catches it, nothing is saved."""


def kill_at(kind: str, step: int) -> Callable[[Mapping[str, Any]], None]:
    """End the run at the first event of a kind that happens at a step or after it."""

    def listen(event: Mapping[str, Any]) -> None:
        if event["kind"] == kind and event["step"] >= step:
            raise KilledError

    return listen


def run_killed(cfg: RunConfig, folder: Path, kind: str, step: int) -> None:
    with pytest.raises(KilledError):
        Trainer(cfg, run_dir=folder, on_event=kill_at(kind, step)).fit()


def assert_same_run(one: Path, two: Path) -> None:
    assert lines_without_times(one) == lines_without_times(two)
    weights = final_weights(one), final_weights(two)
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    results = [json.loads(RunFolder(folder).result.read_text(encoding="utf-8")) for folder in (one, two)]
    assert results[0].keys() == results[1].keys()
    different = {key for key in results[0] if results[0][key] != results[1][key]}
    assert different <= {"train_seconds", "evaluation", "git", "metrics_sha256"}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of the run of a case that nothing stopped, made once."""
    done: dict[str, Path] = {}

    def run(case: str) -> Path:
        if case not in done:
            done[case] = tmp_path_factory.mktemp(case)
            Trainer(tiny_config(CASES[case]), run_dir=done[case]).fit()
        return done[case]

    return run


@pytest.mark.parametrize(
    ("kind", "step"),
    [
        ("train", 1),  # before the first checkpoint
        ("train", 2),  # before the checkpoint of this step is written
        ("train", 4),
        ("train", STEPS_PER_EPOCH),  # the last step of an epoch
        ("epoch", STEPS_PER_EPOCH),  # before the evaluation
        ("train", 8),
        ("train", 3 * STEPS_PER_EPOCH),  # the last step
        ("eval", 3 * STEPS_PER_EPOCH),  # before the result is written
        ("result", 0),  # after everything
    ],
)
def test_a_run_killed_at_any_point_goes_on_to_the_same_bits(
    tmp_path: Path, uninterrupted: Callable[[str], Path], kind: str, step: int
) -> None:
    cfg = tiny_config(CASES["full"])
    run_killed(cfg, tmp_path, kind, step)
    Trainer(cfg, run_dir=tmp_path).fit()
    assert_same_run(tmp_path, uninterrupted("full"))


@pytest.mark.parametrize("case", ["clora", "everything"])
def test_all_that_has_state_goes_on_after_two_kills(
    tmp_path: Path, uninterrupted: Callable[[str], Path], case: str
) -> None:
    cfg = tiny_config(CASES[case])
    run_killed(cfg, tmp_path, "train", 4)
    run_killed(cfg, tmp_path, "epoch", 7)
    Trainer(cfg, run_dir=tmp_path).fit()
    assert_same_run(tmp_path, uninterrupted(case))


def test_a_run_killed_while_a_checkpoint_is_written_goes_on(
    tmp_path: Path, uninterrupted: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = tiny_config()
    real, calls = os.replace, []

    def die_at_third_checkpoint(source: Any, target: Any) -> None:
        calls.append(str(target).endswith("checkpoint.safetensors"))
        if sum(calls) == 3:
            raise KilledError
        real(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", die_at_third_checkpoint)
        with pytest.raises(KilledError):
            Trainer(cfg, run_dir=tmp_path).fit()
    Trainer(cfg, run_dir=tmp_path).fit()
    assert_same_run(tmp_path, uninterrupted("full"))


def test_the_best_score_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = tiny_config({"protocol": {"name": "paper"}})
    from pcl_clora.engine import trainer as trainer_module

    real = trainer_module.evaluate
    scores = iter([0.9, 0.5, 0.4])

    def scored(*args: Any, **kwargs: Any) -> Any:
        metrics = real(*args, **kwargs)
        return type(metrics)(**{**vars(metrics), "oa": next(scores, metrics.oa)})

    monkeypatch.setattr(trainer_module, "evaluate", scored)
    run_killed(cfg, tmp_path, "train", 7)
    best = final_weights(tmp_path)
    result = Trainer(cfg, run_dir=tmp_path).fit()
    assert result.result["best"]["epoch"] == 0
    assert result.result["best"]["oa"] == 0.9
    assert all(torch.equal(best[name], value) for name, value in final_weights(tmp_path).items())


def test_a_process_that_was_really_killed_goes_on_to_the_same_bits(
    tmp_path: Path, uninterrupted: Callable[[str], Path]
) -> None:
    settings = tmp_path / "run.yaml"
    settings.write_text(dump_yaml(tiny_config(CASES["clora"])), encoding="utf-8")
    program = (
        "import os, signal, sys, torch\n"
        "from pcl_clora.engine import Trainer, load_run_config\n"
        "torch.set_num_threads(1)\n"
        "def listen(event):\n"
        "    if event['kind'] == 'train' and event['step'] == 8:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "Trainer(load_run_config(sys.argv[1]), run_dir=sys.argv[2], on_event=listen).fit()\n"
    )
    killed = subprocess.run(
        [sys.executable, "-c", program, str(settings), str(tmp_path / "run")], check=False
    )
    assert killed.returncode == -signal.SIGKILL
    assert not RunFolder(tmp_path / "run").result.exists()
    Trainer(load_run_config(settings), run_dir=tmp_path / "run").fit()
    assert_same_run(tmp_path / "run", uninterrupted("clora"))


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM])
def test_a_polite_stop_saves_after_the_step_and_says_how_to_go_on(
    tmp_path: Path, uninterrupted: Callable[[str], Path], which: signal.Signals
) -> None:
    def interrupt(event: Mapping[str, Any]) -> None:
        if event["kind"] == "train" and event["step"] == 3:
            signal.raise_signal(which)

    before = signal.getsignal(which)
    with pytest.raises(TrainingInterrupted, match=r"Stopped after step 3 .* run the same command again"):
        Trainer(tiny_config(), run_dir=tmp_path, on_event=interrupt).fit()
    assert signal.getsignal(which) is before
    assert load_checkpoint(RunFolder(tmp_path).checkpoint)["state"]["step"] == 3
    Trainer(tiny_config(), run_dir=tmp_path).fit()
    assert_same_run(tmp_path, uninterrupted("full"))


def test_a_second_interrupt_stops_at_once(tmp_path: Path) -> None:
    def interrupt(event: Mapping[str, Any]) -> None:
        if event["kind"] == "train":
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt) as caught:
        Trainer(tiny_config(), run_dir=tmp_path, on_event=interrupt).fit()
    assert not isinstance(caught.value, TrainingInterrupted)


def test_a_finished_run_is_not_trained_again(tmp_path: Path, uninterrupted: Callable[[str], Path]) -> None:
    Trainer(tiny_config(), run_dir=tmp_path).fit()
    events: list[str] = []
    Trainer(tiny_config(), run_dir=tmp_path, on_event=lambda event: events.append(event["kind"])).fit()
    assert events == ["eval", "result"]
    assert_same_run(tmp_path, uninterrupted("full"))


def test_a_run_may_go_on_under_settings_that_change_no_number(
    tmp_path: Path, uninterrupted: Callable[[str], Path]
) -> None:
    run_killed(tiny_config(), tmp_path, "train", 4)
    other = tiny_config({"train": {"checkpoint_every_steps": 3, "progress": "plain"}, "name": "renamed"})
    Trainer(other, run_dir=tmp_path).fit()
    assert lines_without_times(tmp_path) == lines_without_times(uninterrupted("full"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optim": {"lr": 3e-3}}, r"optim\.lr: 0\.002 -> 0\.003"),
        ({"adapter": {"method": "lora"}}, r"adapter\.method: 'full' -> 'lora'"),
        ({"seed": 7}, r"seed: 0 -> 7"),
    ],
)
def test_a_checkpoint_of_other_settings_is_refused_and_nothing_is_written(
    tmp_path: Path, change: Mapping[str, Any], message: str
) -> None:
    run_killed(tiny_config(), tmp_path, "train", 4)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    with pytest.raises(CheckpointError, match=message):
        Trainer(tiny_config(change), run_dir=tmp_path).fit()
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_a_torn_checkpoint_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    run_killed(tiny_config(), tmp_path, "train", 4)
    path = RunFolder(tmp_path).checkpoint
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="is damaged"):
        Trainer(tiny_config(), run_dir=tmp_path).fit()


def test_a_checkpoint_on_another_base_is_refused(tmp_path: Path) -> None:
    cfg = tiny_config(CLORA)
    torch.manual_seed(0)
    with pytest.raises(KilledError):
        Trainer(cfg, run_dir=tmp_path, model=build_model(cfg.model), on_event=kill_at("train", 4)).fit()
    torch.manual_seed(1)
    with pytest.raises(CheckpointError, match=r"its base was .* now it is"):
        Trainer(cfg, run_dir=tmp_path, model=build_model(cfg.model)).fit()


def test_other_trained_parameters_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_killed(tiny_config(), tmp_path, "train", 4)
    real = snapshot_module.trained_parameters
    monkeypatch.setattr(snapshot_module, "trained_parameters", lambda model: {**real(model), "new": None})
    with pytest.raises(CheckpointError, match="its parameters was"):
        Trainer(tiny_config(), run_dir=tmp_path).fit()


def test_resume_never_starts_over(tmp_path: Path, uninterrupted: Callable[[str], Path]) -> None:
    run_killed(tiny_config(), tmp_path, "train", 4)
    Trainer(tiny_config(), run_dir=tmp_path, resume="never").fit()
    assert_same_run(tmp_path, uninterrupted("full"))


def test_an_unknown_way_to_resume_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="use 'auto' or 'never'"):
        Trainer(tiny_config(), run_dir=tmp_path, resume="always")  # type: ignore[arg-type]


def test_another_number_of_threads_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_killed(tiny_config(), tmp_path, "train", 4)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    with caplog.at_level(logging.WARNING, logger="pcl_clora"), pytest.raises(KilledError):
        Trainer(tiny_config(), run_dir=tmp_path, on_event=kill_at("train", 0)).fit()
    assert "began with 1 threads and goes on with 2" in caplog.text
    assert "OMP_NUM_THREADS=1" in caplog.text
