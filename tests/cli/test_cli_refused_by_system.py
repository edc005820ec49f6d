"""What the system refuses is one message that names the file, whichever command meets it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import Result

from pcl_clora.cli import main
from pcl_clora.errors import UserValueError
from pcl_clora.io import FileAccessError
from pcl_clora.models.weights.convert import convert_weights
from tests.support.cli_cases import TINY, write_config
from tests.support.rights import no_room, rights


@pytest.fixture
def clouds(tmp_path: Path) -> Path:
    """A folder of clouds of two classes."""
    generator = np.random.default_rng(0)
    for split, count in (("train", 4), ("test", 2)):
        for name in ("ball", "crate"):
            (tmp_path / "clouds" / split / name).mkdir(parents=True)
            for number in range(count):
                np.savetxt(
                    tmp_path / "clouds" / split / name / f"{number}.txt", generator.normal(size=(60, 3))
                )
    return tmp_path / "clouds"


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of a finished run that may be harmed."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


Invoke = Callable[..., Result]


@pytest.mark.parametrize("below", ["", "test", "test/ball"])
@pytest.mark.parametrize("command", ["train", "check", "info", "pack"])
def test_a_folder_of_clouds_that_may_not_be_read(
    command: str, below: str, clouds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = write_config(tmp_path, data={"name": "folder", "root": str(clouds), "num_points": 48})
    arguments = {
        "train": ["train", "--config", config, "model.num_classes=2", "optim.batch_size=4"],
        "check": ["data", "check", config],
        "info": ["data", "info", clouds],
        "pack": ["data", "pack", clouds, tmp_path / "packed", "data.num_points=48"],
    }[command]
    with rights(clouds / below, 0), pytest.raises(SystemExit) as stop:
        main([str(item) for item in arguments])
    told = capsys.readouterr()
    assert stop.value.code in (1, 2)
    assert str(clouds / below) in told.out + told.err
    assert "rights" in told.out + told.err or "not readable" in told.err


@pytest.mark.parametrize("file", ["config.yaml", "best", "result.json", "metrics.jsonl"])
@pytest.mark.parametrize("command", ["eval", "predict", "report run", "report table"])
def test_a_run_whose_files_may_not_be_read(
    command: str, file: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savetxt(tmp_path / "cloud.txt", np.random.default_rng(0).normal(size=(60, 3)))
    arguments = {
        "eval": ["eval", "--run", run],
        "predict": ["predict", run, tmp_path / "cloud.txt", "--out", tmp_path / "out"],
        "report run": ["report", "run", run],
        "report table": ["report", "table", run],
    }[command]
    with rights(run / file, 0), pytest.raises(SystemExit) as stop:
        main([str(item) for item in arguments])
    told = capsys.readouterr()
    if stop.value.code:  # otherwise the command does without that file
        assert stop.value.code in (1, 2)
        assert str(run / file) in told.err
        assert "rights" in told.err


def test_a_tensorboard_folder_that_cannot_be_written(tmp_path: Path, invoke: Invoke) -> None:
    pytest.importorskip("tensorboard")
    config = write_config(tmp_path, train={"progress": "off", "tensorboard": True})
    (tmp_path / "runs" / "tiny").mkdir(parents=True)
    (tmp_path / "runs" / "tiny" / "tensorboard").write_text("a file in its place")
    with pytest.raises(FileAccessError, match="tensorboard: cannot be written"):
        invoke("train", "--config", config)


def test_settings_that_may_not_be_read(tmp_path: Path, invoke: Invoke) -> None:
    config = write_config(tmp_path)
    above = tmp_path / "above.yaml"
    above.write_text("_base_: tiny.yaml\n")
    with rights(config, 0), pytest.raises(ValueError, match=r"tiny\.yaml cannot be read .*rights"):
        invoke("train", "--config", above)


@pytest.mark.parametrize("command", ["train", "eval --calibration", "predict", "report run", "report table"])
def test_a_folder_that_may_not_be_written(
    command: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savetxt(tmp_path / "cloud.txt", np.random.default_rng(0).normal(size=(60, 3)))
    out = run if command in ("eval --calibration", "report run") else tmp_path / "closed"
    out.mkdir(exist_ok=True)
    arguments = {
        "train": ["train", "--config", write_config(tmp_path, output=str(out))],
        "eval --calibration": ["eval", "--run", run, "--calibration"],
        "predict": ["predict", run, tmp_path / "cloud.txt", "--out", out],
        "report run": ["report", "run", run],
        "report table": ["report", "table", run, "--out", out / "table.md"],
    }[command]
    before = sorted(path.name for path in out.iterdir())
    with rights(out, 0o555), pytest.raises(SystemExit) as stop:
        main([str(item) for item in arguments])
    told = capsys.readouterr().err
    assert stop.value.code in (1, 2)
    assert str(out) in told
    assert "cannot be written (Permission denied); change the rights" in told
    assert sorted(path.name for path in out.iterdir()) == before


PRETRAINING = {  # sections of the settings that differ
    "model": {**TINY["model"], "task": "pretraining", "pretraining": {"decoder_depth": 1}},  # type: ignore[dict-item]
    "adapter": {"method": "full"},
    "data": {"name": "procedural_corpus", "train_size": 12, "test_size": 4, "num_points": 64},
}


def long_command(command: str, folder: Path, out: Path) -> list[str]:
    """The words of a command that trains and writes to a folder."""
    changes = PRETRAINING if command == "pretrain" else {}
    config = write_config(folder, output=str(out), **changes)
    if command != "tune":
        return [command, "--config", str(config)]
    pytest.importorskip("optuna")
    search = folder / "search.yaml"
    search.write_text(
        "base: tiny.yaml\ntrials: 1\nhalving: null\nspace: {optim.lr: {low: 0.001, high: 0.002}}\n"
        "trial_settings: {protocol: {val_fraction: 0.3}}\n"
    )
    return ["tune", "--config", str(search), "--out", str(out)]


@pytest.mark.parametrize("command", ["pretrain", "tune"])
def test_a_command_that_trains_is_refused_a_closed_folder_by_name(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "closed"
    out.mkdir()
    arguments = long_command(command, tmp_path, out)
    with rights(out, 0o555), pytest.raises(SystemExit) as stop:
        main(arguments)
    told = capsys.readouterr().err
    assert stop.value.code in (1, 2)
    assert str(out) in told
    assert "cannot be written (Permission denied); change the rights" in told
    assert list(out.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "pretrain", "tune"])
@pytest.mark.parametrize("size", [100, 4000, 20_000])
def test_a_full_disk_is_one_message_and_leaves_no_half_file(
    command: str, size: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = long_command(command, tmp_path, out)
    with no_room(size), pytest.raises(SystemExit) as stop:
        main(arguments)
    told = capsys.readouterr().err
    assert stop.value.code in (1, 2)
    assert f"{out}" in told
    assert "File too large" in told
    assert "Traceback" not in told
    assert all(path.stat().st_size < size for path in out.rglob("*") if path.is_file())


@pytest.mark.slow
@pytest.mark.parametrize("command", ["pretrain", "tune"])
def test_links_at_the_files_of_a_command_that_trains_lead_nowhere(command: str, tmp_path: Path) -> None:
    out, victim = tmp_path / "out", tmp_path / "victim"
    victim.write_text("kept")
    arguments = long_command(command, tmp_path, out)
    folder = out if command == "tune" else out / "tiny"
    folder.mkdir(parents=True)
    for name in ("search", "trials", "best", "tune", "config", "env", "plan", "result", "report"):
        for kind in ("json", "yaml", "html", "md"):
            for guess in (f".{name}.partial.{kind}", f"{name}.{kind}.tmp", f".{name}.tmp.{kind}"):
                (folder / guess).symlink_to(victim)
    if command == "tune":
        (folder / "journal.log").symlink_to(victim)
        with pytest.raises(SystemExit):
            main(arguments)
        assert victim.read_text() == "kept"
        (folder / "journal.log").unlink()
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert not stop.value.code
    assert victim.read_text() == "kept"
    made = ("trials.json", "best.yaml") if command == "tune" else ("result.json", "config.yaml")
    assert not any((folder / name).is_symlink() for name in made)


def test_weights_are_not_written_over_a_file_of_the_run(run: Path) -> None:
    before = (run / "best" / "adapter.safetensors").read_bytes()
    with pytest.raises(UserValueError, match="would be written over the input"):
        convert_weights(run, run / "best" / "adapter.safetensors", overwrite=True)
    assert (run / "best" / "adapter.safetensors").read_bytes() == before
