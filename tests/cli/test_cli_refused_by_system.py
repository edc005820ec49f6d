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
from tests.support.cli_cases import write_config
from tests.support.rights import rights


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


def test_weights_are_not_written_over_a_file_of_the_run(run: Path) -> None:
    before = (run / "best" / "adapter.safetensors").read_bytes()
    with pytest.raises(UserValueError, match="would be written over the input"):
        convert_weights(run, run / "best" / "adapter.safetensors", overwrite=True)
    assert (run / "best" / "adapter.safetensors").read_bytes() == before
