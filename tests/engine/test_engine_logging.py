"""metrics.jsonl, tensorboard and progress, with and without a terminal."""

from __future__ import annotations

import builtins
import io
import json
import logging
from pathlib import Path
from typing import Any

import pytest

from pcl_clora.engine import read_metrics
from pcl_clora.engine.events import MetricsLog, RunLog, open_tensorboard
from pcl_clora.engine.progress import (
    Clock,
    PlainProgress,
    RichProgress,
    SilentProgress,
    format_seconds,
    make_progress,
)

TRAIN = {"kind": "train", "step": 3, "epoch": 0, "loss": 1.25, "lr": 1e-3}
EPOCH = {"kind": "epoch", "split": "train", "step": 4, "epoch": 0, "loss": 1.5, "oa": 0.5}
EVAL = {"kind": "eval", "split": "test", "step": 4, "epoch": 0, "oa": 0.25, "macc": 0.75, "loss": 2.0}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_can_be_read_while_the_file_is_open(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "m.jsonl")
    log.write(TRAIN)
    assert read_metrics(tmp_path / "m.jsonl") == [TRAIN]
    assert log.size() == (tmp_path / "m.jsonl").stat().st_size


def test_a_resumed_log_is_cut_back_to_what_the_checkpoint_knows(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    log = MetricsLog(path)
    log.write({**TRAIN, "step": 1})
    known = log.size()
    log.write({**TRAIN, "step": 2})
    log.close()
    with path.open("a", encoding="utf-8") as file:
        file.write('{"kind": "tra')
    again = MetricsLog(path, keep_bytes=known)
    again.write({**TRAIN, "step": 2, "loss": 7.0})
    again.close()
    assert [(line["step"], line["loss"]) for line in read_metrics(path)] == [(1, 1.25), (2, 7.0)]


def test_a_fresh_log_starts_empty(tmp_path: Path) -> None:
    path = tmp_path / "m.jsonl"
    path.write_text("old\n", encoding="utf-8")
    MetricsLog(path).close()
    assert path.read_bytes() == b""


def test_a_log_that_lost_lines_warns_and_goes_on(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        log = MetricsLog(tmp_path / "m.jsonl", keep_bytes=100)
    log.write(TRAIN)
    assert "has 0 bytes, the checkpoint knows of 100" in caplog.text
    assert read_metrics(tmp_path / "m.jsonl") == [TRAIN]


def test_every_json_reader_takes_a_line_with_nan(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "m.jsonl")
    log.write({"kind": "eval", "loss": float("nan"), "list": [float("inf"), 1.0]})
    text = (tmp_path / "m.jsonl").read_text(encoding="utf-8")

    def refuse(name: str) -> None:
        raise AssertionError(name)

    line = json.loads(text, parse_constant=refuse)
    assert line == {"kind": "eval", "loss": None, "list": [None, 1.0]}


@pytest.mark.parametrize(
    ("kind", "stream", "expected"),
    [
        ("auto", io.StringIO(), PlainProgress),
        ("auto", Terminal(), RichProgress),
        ("plain", Terminal(), PlainProgress),
        ("rich", io.StringIO(), RichProgress),
        ("off", Terminal(), SilentProgress),
    ],
)
def test_the_terminal_decides_how_progress_is_shown(kind: str, stream: io.StringIO, expected: type) -> None:
    assert isinstance(make_progress(kind, stream), expected)


def test_plain_progress_says_a_line_an_epoch_and_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    progress = PlainProgress(stream)
    progress.start(epochs=2, steps_per_epoch=4, step=0)
    for event in (TRAIN, EPOCH, EVAL, {"kind": "message", "text": "hello"}, {"kind": "result"}):
        progress.update(event)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "training 2 epochs of 4 steps"
    assert lines[1].startswith("epoch 1/2  train OA 50.00  loss 1.5000  left 0:00:0")
    assert lines[2] == "epoch 1/2  test OA 25.00  mAcc 75.00  loss 2.0000"
    assert lines[3:] == ["hello"]


def test_plain_progress_speaks_inside_a_long_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    now = [0.0]
    monkeypatch.setattr("pcl_clora.engine.progress.time.monotonic", lambda: now[0])
    progress = PlainProgress(stream)
    progress.start(epochs=2, steps_per_epoch=4, step=2)
    now[0] = 60.0
    progress.update(TRAIN)
    progress.update({**TRAIN, "step": 4})
    assert stream.getvalue().splitlines()[1:] == [
        "epoch 1/2 step 3/4  loss 1.2500  lr 1.00e-03  left 0:05:00"
    ]


def test_rich_progress_shows_a_bar_and_leaves_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    stream = Terminal()
    progress = RichProgress(stream)
    progress.start(epochs=2, steps_per_epoch=4, step=0)
    for event in (TRAIN, EPOCH, EVAL, {"kind": "message", "text": "[hello]"}):
        progress.update(event)
    progress.stop()
    text = stream.getvalue()
    assert "3/8" in text
    assert "test OA 25.00" in text
    assert "[hello]" in text


def test_a_progress_that_never_started_can_be_stopped() -> None:
    RichProgress(Terminal()).stop()
    PlainProgress(io.StringIO()).stop()


def test_time_left_counts_the_steps_of_this_process_only(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("pcl_clora.engine.progress.time.monotonic", lambda: now[0])
    clock = Clock(total=1000, step=900)
    assert clock.left(900) == "?"
    now[0] = 110.0
    assert clock.left(910) == "0:01:30"


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00:00"), (59.6, "0:01:00"), (3661, "1:01:01")])
def test_durations_are_written_as_hours_minutes_seconds(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_tensorboard_gets_the_numbers_of_events(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="tensorboard is an extra")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = RunLog(tmp_path / "m.jsonl", "off", None)
    log.open(0, tmp_path / "board", step=0)
    for event in (TRAIN, EVAL):
        log.emit(event)
    log.close()
    board = EventAccumulator(str(tmp_path / "board")).Reload()
    assert [(point.step, point.value) for point in board.Scalars("train/loss")] == [(3, 1.25)]
    assert [point.value for point in board.Scalars("eval/test/oa")] == [0.25]


def test_without_tensorboard_one_warning_names_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if "tensorboard" in name:
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with caplog.at_level(logging.WARNING):
        assert open_tensorboard(tmp_path) is None
    assert len(caplog.records) == 1
    assert "pip install tensorboard" in caplog.text
