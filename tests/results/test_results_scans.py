"""The pages repeat the committed results on real LiDAR objects and on few-shot folds."""

import json
import statistics
from pathlib import Path

import pytest

from pcl_clora.config import config_hash
from pcl_clora.engine import load_run_config
from pcl_clora.report import units

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
SCANS = sorted((ROOT / "results" / "scans_tiny").glob("*_tiny_*"))
FOLDS = sorted((ROOT / "results" / "fewshot_tiny").glob("*_5way_10shot"))
NAMES = {"dales500": "DALES-500", "lsood": "LSOOD"}


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("run", SCANS, ids=lambda run: run.name)
def test_the_table_of_scans_repeats_the_results(run):
    result = read(run / "result.json")
    metrics, data = result["metrics"], NAMES[run.name.partition("_")[0]]
    cells = (
        f"| {data} | {result['method']} | {units.percent(metrics['oa'])} | {units.percent(metrics['macc'])} |"
    )
    assert cells + f" {units.count(result['params']['trainable'])} |" in PAGE
    assert (result["protocol"]["name"], result["protocol"]["select"]) == ("honest", "last")


@pytest.mark.parametrize("folder", FOLDS, ids=lambda folder: folder.name)
def test_the_table_of_folds_repeats_the_results(folder):
    summary = read(folder / "fewshot.json")
    values = [read(folder / f"fold_{k}" / "result.json")["metrics"]["oa"] for k in range(10)]
    assert [fold["oa"] for fold in summary["folds"]] == values
    assert summary["oa"] == pytest.approx(statistics.fmean(values))
    assert summary["oa_std"] == pytest.approx(statistics.stdev(values))
    row = f"| {units.percent(summary['oa'])} | {units.percent(summary['oa_std'])} | 10 |"
    assert f"| {summary['method']} | 5-way 10-shot {row}" in PAGE


@pytest.mark.parametrize(
    "run",
    [*SCANS, *(fold for folder in FOLDS for fold in sorted(folder.glob("fold_*")))],
    ids=lambda run: f"{run.parent.name}/{run.name}",
)
def test_a_committed_result_belongs_to_its_config(run):
    assert config_hash(load_run_config(run / "config.yaml")) == read(run / "result.json")["config_hash"]
