"""No command writes over what it reads, or through a link that somebody else put at its output."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from pcl_clora.errors import UserValueError
from pcl_clora.io import FileAccessError
from pcl_clora.io.safe import open_log
from pcl_clora.predict.journal import SUFFIX, Journal
from tests.support.cli_cases import ROOT, write_config

Invoke = Callable[..., Result]


@pytest.fixture
def run(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of a finished run that may be harmed."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


def test_a_probe_is_not_written_over_its_settings(tmp_path: Path, invoke: Invoke) -> None:
    config = write_config(tmp_path)
    before = config.read_bytes()
    with pytest.raises(UserValueError, match=r"tiny\.yaml would be written over the input"):
        invoke("probe", "--config", config, "--no-svm", "--out", config)
    assert config.read_bytes() == before


@pytest.mark.parametrize(
    "arguments",
    [
        ("export", "{run}", "--out", "{run}/m.pt2", "--to", "torch", "--record", "{run}/result.json"),
        ("novelty", "{run}", "--novel", "{run}", "--out", "{run}/result.json"),
    ],
    ids=["export", "novelty"],
)
def test_what_is_found_of_a_run_is_not_written_over_its_files(
    arguments: tuple[str, ...], run: Path, invoke: Invoke
) -> None:
    before = (run / "result.json").read_bytes()
    with pytest.raises(UserValueError, match=r"result\.json would be written over the input"):
        invoke(*(word.format(run=run) for word in arguments))
    assert (run / "result.json").read_bytes() == before
    assert not (run / "m.pt2").exists()


@pytest.mark.slow
def test_a_program_that_the_disk_has_no_room_for_is_one_message(run: Path, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="limits of a process, which Windows does not have")
    words = ["-m", "pcl_clora.cli", "export", str(run), "--out", str(tmp_path / "m.pt2"), "--to", "torch"]
    done = subprocess.run(
        [sys.executable, *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2, done.stderr[-2000:]
    assert "m.pt2: cannot be written (File too large)" in done.stderr
    assert not (tmp_path / "m.pt2").exists()


@pytest.mark.parametrize("planted", [SUFFIX, f"{SUFFIX}.new"])
def test_rows_are_not_written_through_a_link(planted: str, tmp_path: Path) -> None:
    victim, table = tmp_path / "victim", tmp_path / "table.csv"
    victim.write_text("")  # an empty journal would be taken
    (tmp_path / f"table.csv{planted}").symlink_to(victim)
    with Journal(table, {"a": "1"}, resume=True):
        pass
    assert victim.read_text() == ""
    assert not (tmp_path / f"table.csv{SUFFIX}").is_symlink()


def test_a_log_is_not_written_through_a_link(tmp_path: Path) -> None:
    victim, log = tmp_path / "victim", tmp_path / "log.txt"
    victim.write_text("kept")
    log.symlink_to(victim)
    with pytest.raises(FileAccessError, match=r"log\.txt: is a link"):
        open_log(log)
    log.unlink()
    for word in (b"a", b"b"):
        with open_log(log) as file:
            file.write(word)
    assert (victim.read_text(), log.read_bytes()) == ("kept", b"ab")
