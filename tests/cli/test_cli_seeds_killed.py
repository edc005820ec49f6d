"""`pcl-clora train --seeds`, killed anywhere: the same command ends with the same summary."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result

from pcl_clora.engine.events import RunLog
from tests.support.cli_cases import ROOT, TINY, write_config

pytestmark = pytest.mark.slow  # every case trains several runs

OPTIM = {**TINY["optim"], "epochs": 2}  # type: ignore[dict-item]
TRAIN = {"progress": "off", "checkpoint_every_steps": 1, "ema_decay": 0.5}
SETTINGS = {"optim": OPTIM, "train": TRAIN, "protocol": {"select": "validation", "val_fraction": 0.3}}
PLACES = [  # of more than 80 that two seeds pass
    pytest.param(place, marks=pytest.mark.long if number else ())
    for number, place in enumerate(random.Random(4).sample(range(80), 3))
]


class KilledError(BaseException):
    """Stands for the end of the process: nothing catches it, nothing is saved."""


def summary(folder: Path) -> Any:
    """What --seeds wrote, without times."""

    def timeless(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: timeless(item) for key, item in value.items() if "seconds" not in key}
        return [timeless(item) for item in value] if isinstance(value, list) else value

    return timeless(json.loads((folder / "runs" / "tiny_seeds.json").read_text()))


def train(invoke: Callable[..., Result], folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    invoke("train", "--config", write_config(folder, **SETTINGS, output="runs"), "--seeds", "0,1", "--json")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The summary of two runs that nothing stopped, each in a process that did nothing else."""
    folder = tmp_path_factory.mktemp("whole")
    config = write_config(folder, **SETTINGS, output="runs")
    subprocess.run(command(config), cwd=folder, env=environment(), check=True, capture_output=True)
    return summary(folder)


def command(config: Path) -> list[str]:
    return [
        sys.executable,
        "-m",
        "pcl_clora.cli",
        "train",
        "--config",
        str(config),
        "--seeds",
        "0,1",
        "--json",
    ]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize("place", PLACES)
def test_a_summary_after_a_kill_between_any_two_writes_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, invoke: Callable[..., Result], whole: Any, place: int
) -> None:
    passed = [0]
    replace, tell = Path.replace, RunLog.tell

    def reach() -> None:
        passed[0] += 1
        if passed[0] > place:
            raise KilledError

    def counted_replace(self: Path, target: Path) -> Path:
        reach()  # before the file is there
        moved = replace(self, target)
        reach()  # and after
        return moved

    def counted_tell(self: RunLog, event: Mapping[str, Any]) -> None:
        reach()
        tell(self, event)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", counted_replace)
        patched.setattr(RunLog, "tell", counted_tell)
        with pytest.raises(KilledError):
            train(invoke, tmp_path, monkeypatch)
    train(invoke, tmp_path, monkeypatch)
    assert summary(tmp_path) == whole


def test_a_summary_after_sigkill_is_the_same(tmp_path: Path, whole: Any) -> None:
    config = write_config(tmp_path, **SETTINGS, output="runs")
    killer = (
        "import os, signal, sys\n"
        "from pcl_clora.cli import main\n"
        "from pcl_clora.engine.events import RunLog\n"
        "emit, passed = RunLog.emit, []\n"
        "def counted(self, event):\n"
        "    passed.append(event)\n"
        f"    if len(passed) > {random.Random(5).randrange(12)}:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    emit(self, event)\n"
        "RunLog.emit = counted\n"
        "main(sys.argv[1:])\n"
    )
    killed = [sys.executable, "-c", killer, *command(config)[3:]]
    done = subprocess.run(killed, cwd=tmp_path, env=environment(), check=False, capture_output=True)
    assert done.returncode == -signal.SIGKILL
    subprocess.run(command(config), cwd=tmp_path, env=environment(), check=True, capture_output=True)
    assert summary(tmp_path) == whole
