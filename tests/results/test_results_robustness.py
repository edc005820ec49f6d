"""The page on robustness repeats the committed results on real LiDAR objects."""

import json
from pathlib import Path

import pytest

from pcl_clora.data.corruptions import list_corruptions
from pcl_clora.engine.robustness import RobustnessResult
from pcl_clora.report import units

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "robustness.md").read_text(encoding="utf-8")
RUNS = sorted((ROOT / "results" / "robustness_dales500").glob("dales500_tiny_*"))


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def test_there_are_results():
    assert RUNS


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_the_table_of_corruptions_repeats_the_results(run):
    result = RobustnessResult.from_json(read(run / "robustness.json"))
    errors = [result.mean_error(family) for family in ("modelnet40_c", "pointcloud_c", "sweep")]
    cells = " | ".join(units.percent(value) for value in (result.clean, *errors))
    assert f"| {run.name.removeprefix('dales500_tiny_')} | {cells} |" in PAGE
    assert tuple(result.accuracy) == tuple(list_corruptions())


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_the_table_of_calibration_repeats_the_results(run):
    content = read(run / "calibration.json")
    before, after = content["before"], content["after"]
    cells = f"{units.percent(before['ece'])} | {before['nll']:.4f} | {units.percent(after['ece'])}"
    assert f"| {run.name.removeprefix('dales500_tiny_')} | {cells} | {after['nll']:.4f} |" in PAGE


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_the_clean_accuracy_is_that_of_the_run(run):
    trained = read(ROOT / "results" / "scans_tiny" / run.name / "result.json")
    assert read(run / "robustness.json")["clean_oa"] == trained["metrics"]["oa"]
