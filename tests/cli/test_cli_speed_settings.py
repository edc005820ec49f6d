"""What is asked for speed and cannot be, or is slower here, is said before the run begins."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pcl_clora.cli import app
from pcl_clora.engine import precision
from pcl_clora.errors import PclCloraError
from pcl_clora.models.layers import product
from tests.support.cli_cases import write_config

ROOT = Path(__file__).parents[2]


def train(config, *changes):
    return CliRunner().invoke(app, ["train", "--config", str(config), *changes])


def test_an_unknown_route_of_products_is_refused_before_the_run(tmp_path):
    done = train(write_config(tmp_path), "train.product=mkl")
    assert isinstance(done.exception, PclCloraError)
    assert "train.product" in str(done.exception)
    assert "onednn" in str(done.exception)
    assert not (tmp_path / "runs").exists()


def test_a_route_that_this_torch_lacks_is_refused_before_the_run(tmp_path, monkeypatch):
    monkeypatch.setattr(product, "has_onednn", lambda: False)
    done = train(write_config(tmp_path), "train.product=onednn")
    assert isinstance(done.exception, PclCloraError)
    assert "has no such product" in str(done.exception)
    assert not list((tmp_path / "runs").rglob("result.json"))


@pytest.mark.slow
@pytest.mark.parametrize("command", [["doctor"], ["bench", "model", "--quick", "--threads", "1"]])
def test_an_unknown_route_in_the_environment_is_one_message(command):
    done = subprocess.run(
        [sys.executable, "-m", "pcl_clora.cli", *command],
        env={**os.environ, product.ENVIRONMENT: "mkl", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode != 0
    assert f"{product.ENVIRONMENT}='mkl' is not known; use torch or onednn" in done.stderr
    assert "Traceback" not in done.stderr


def test_bfloat16_that_is_slower_here_is_said_before_the_first_step(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(precision, "has_native_bfloat16", lambda device: False)
    with caplog.at_level(logging.WARNING, logger="pcl_clora"):
        done = train(write_config(tmp_path), "train.amp=true", "optim.epochs=1")
    assert done.exit_code == 0, done.output
    assert any("bfloat16 is emulated" in text and "train.amp" in text for text in caplog.messages)


@pytest.mark.parametrize(
    "wrong", [["--only", "nothing"], ["--threads", "0"], ["--repeats", "0"], ["--budget", "0"]]
)
def test_what_a_benchmark_cannot_do_is_refused_before_it_measures(monkeypatch, wrong):
    from pcl_clora.bench import model

    monkeypatch.setattr(model, "in_child", lambda *given: pytest.fail("it measured"))
    done = CliRunner().invoke(app, ["bench", "model", *wrong])
    assert done.exit_code != 0
    assert any(word in done.output + str(done.exception) for word in wrong)
