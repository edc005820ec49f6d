"""One training at a time in a run folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pcl_clora.engine import Trainer
from pcl_clora.engine.run import lock
from pcl_clora.engine.run.lock import RunLock, RunLockedError
from tests.support.engine_cases import tiny_config

HOLD = "import sys; from pathlib import Path; from pcl_clora.engine.run.lock import RunLock\n" + (
    "with RunLock(Path(sys.argv[1])):\n    print('held', flush=True)\n    sys.stdin.readline()\n"
)


def holder(folder: Path) -> subprocess.Popen[str]:
    """A process that holds the lock of a folder until it reads a line."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.slow
def test_a_second_process_is_refused_by_name_until_the_first_is_dead(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "r"
    first = holder(folder)
    with pytest.raises(RunLockedError, match=rf"another process trains in .*r \(pid {first.pid}\)"):
        Trainer(tiny_config(), run_dir=folder).fit()
    assert not folder.exists()  # nothing was written by the one that was refused
    first.send_signal(signal.SIGKILL)
    first.wait()
    with RunLock(folder):
        assert json.loads((tmp_path / "runs" / ".r.lock").read_text())["pid"] == os.getpid()
    assert not list((tmp_path / "runs").iterdir())


def test_a_second_training_in_this_process_is_refused(tmp_path: Path) -> None:
    refused: list[BaseException] = []

    def second() -> None:
        try:
            with RunLock(tmp_path / "r"):
                pass
        except RunLockedError as error:
            refused.append(error)

    with RunLock(tmp_path / "r"):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
        with RunLock(tmp_path / "other"):
            pass
    assert f"pid {os.getpid()}" in str(refused[0])
    with RunLock(tmp_path / "r"):
        pass


@pytest.mark.parametrize(
    ("owner", "is_free"),
    [
        ({"pid": 2**22 + 1, "host": None, "started": "1"}, True),  # no such process on this machine
        ({"pid": os.getpid(), "host": None, "started": "not then"}, True),  # its number was used again
        ({"pid": os.getpid(), "host": None, "started": lock._started(os.getpid())}, False),
        ({"pid": 1, "host": "elsewhere"}, False),  # of another machine nothing can be said
        ({}, False),
    ],
)
def test_without_locks_of_the_system_the_file_is_the_lock(tmp_path, monkeypatch, owner, is_free) -> None:
    monkeypatch.setattr(lock, "fcntl", None)
    if "host" in owner:
        owner = {**owner, "host": owner["host"] or lock.platform.node()}
    (tmp_path / ".r.lock").write_text(json.dumps(owner))
    if not is_free:
        with pytest.raises(RunLockedError, match=r"remove .*\.r\.lock"), RunLock(tmp_path / "r"):
            pass
        assert (tmp_path / ".r.lock").exists()
        return
    with RunLock(tmp_path / "r"):
        assert json.loads((tmp_path / ".r.lock").read_text())["pid"] == os.getpid()
    assert not (tmp_path / ".r.lock").exists()


def test_a_lock_is_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    (tmp_path / ".r.lock").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match=r"\.r\.lock"), RunLock(tmp_path / "r"):
        pass
    assert (tmp_path / "precious").read_text() == "mine"
