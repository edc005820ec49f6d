"""Ways to call the command line, a tiny config file, and one run that several tests look at."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from pcl_clora.cli import app
from tests.support.cli_cases import ROOT, write_config


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A yaml file of a run that takes a second."""
    return write_config(tmp_path)


@pytest.fixture
def invoke() -> Callable[..., Result]:
    """Call a command in this process; an error that is not an exit is raised."""

    def call(*arguments: str | Path) -> Result:
        return CliRunner().invoke(app, [str(item) for item in arguments], catch_exceptions=False)

    return call


@pytest.fixture
def shell(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Call the command line, or a script of the folder tools, as a process of its own in an empty folder."""

    def call(*arguments: str | Path, script: str = "") -> subprocess.CompletedProcess[str]:
        program = [str(ROOT / "tools" / script)] if script else ["-m", "pcl_clora.cli"]
        return subprocess.run(
            [sys.executable, *program, *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return call


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that `pcl-clora train` made."""
    folder = tmp_path_factory.mktemp("run")
    done = CliRunner().invoke(app, ["train", "--config", str(write_config(folder))], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return folder / "runs" / "tiny"
