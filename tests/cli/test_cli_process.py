"""The command line as a user meets it: processes, exit codes, and what goes to which stream."""

import json
import logging
import subprocess
import sys

import pytest

from pcl_clora.cli.common import WarningFormatter
from tests.support.cli_cases import ROOT, write_config

pytestmark = pytest.mark.slow


def test_help_loads_no_torch():
    code = (
        "import sys, typer.testing, pcl_clora.cli as cli\n"
        "result = typer.testing.CliRunner().invoke(cli.app, ['--help'])\n"
        "assert result.exit_code == 0 and 'doctor' in result.output, result.output\n"
        "sys.exit('torch' in sys.modules or 'pydantic' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_a_wrong_key_is_one_message_that_names_the_right_one(shell, config):
    done = shell("train", "--config", config, "optim.lrr=1e-3", "--dry-run")
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "'lrr'" in done.stderr
    assert "did you mean 'lr'" in done.stderr
    assert done.stdout == ""


def test_warnings_are_shown_like_all_texts_of_others():
    record = logging.LogRecord("pcl_clora", logging.WARNING, "", 0, "%s\nb", ("\x1b[2J\u202e",), None)

    assert WarningFormatter().format(record) == "\\x1b[2J\\u202e\nb"


def test_debug_shows_where_an_error_came_from(shell, tmp_path):
    done = shell("report", "run", tmp_path / "nowhere", "--debug")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "ReportError" in done.stderr


def test_a_missing_config_is_named(shell, tmp_path):
    done = shell("--config", tmp_path / "nowhere.yaml", script="train.py")
    assert done.returncode == 2
    assert "nowhere.yaml does not exist" in done.stderr
    assert "Traceback" not in done.stderr


def test_tools_train_dry_run_prints_everything_and_writes_nothing(shell, tmp_path):
    missing = {"name": "modelnet40_hdf5", "root": str(tmp_path / "no_data"), "num_points": 48}
    config = write_config(tmp_path, data=missing, weights={"path": "no_weights.pth"})
    done = shell("--config", config, "--dry-run", "model.num_classes=40", script="train.py")
    assert done.returncode == 0, done.stderr
    for expected in ("method: clora", "shared by all layers", "GMACs", "no_data", "no_weights.pth"):
        assert expected in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny.yaml"]


def test_tools_report_cost_prints_the_agreed_json_keys(shell, config):
    done = shell("--config", config, "--json", "--repeats", "1", "--batch-size", "2", script="report_cost.py")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["params"].keys() >= {"total", "trainable", "adapter", "head", "tokens"}
    assert report["macs"].keys() >= {"published", "executed", "executed_merged"}
    assert report["flops"]["executed"] == 2 * report["macs"]["executed"]
    assert report["latency_ms"].keys() >= {"unmerged", "merged"}
    assert report["memory_mib"]["inference"] > 0


def test_tools_test_evaluates_a_run(shell, finished_run):
    done = shell("--run", finished_run, "--json", script="test.py")
    assert done.returncode == 0, done.stderr
    assert 0 <= json.loads(done.stdout)["metrics"]["oa"] <= 1


def test_a_data_folder_with_problems_gives_findings_and_exit_code_1(shell, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "ply_data_train0.h5").write_bytes(b"not hdf5")
    done = shell("data", "check", tmp_path / "data")
    assert done.returncode == 1
    assert "ply_data_train0.h5" in done.stdout
    assert "Traceback" not in done.stderr
