"""Numbers on the pages are those of the committed result files."""

import json
from pathlib import Path

import pytest

from pcl_clora.config import build, config_hash, read_yaml
from pcl_clora.demo import DemoConfig, load_demo_config
from pcl_clora.engine import load_run_config
from pcl_clora.report import units

ROOT = Path(__file__).parents[2]
MODELNET40 = sorted((ROOT / "results" / "modelnet40_tiny").glob("modelnet40_tiny_*"))


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("run", MODELNET40, ids=lambda run: run.name)
def test_the_modelnet40_table_repeats_the_results(run):
    result = read(run / "result.json")
    metrics = result["metrics"]
    cells = f"| {units.percent(metrics['oa'])} | {units.percent(metrics['macc'])} |"
    cells += f" {units.count(result['params']['trainable'])} | {units.file_size(result['adapter_bytes'])} |"
    assert cells in (ROOT / "docs" / "results.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("run", MODELNET40, ids=lambda run: run.name)
def test_a_committed_result_belongs_to_its_config(run):
    assert config_hash(load_run_config(run / "config.yaml")) == read(run / "result.json")["config_hash"]


def test_the_demo_table_repeats_its_result():
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    for name, row in read(ROOT / "results" / "demo" / "result.json")["methods"].items():
        assert f"| {name} | {units.percent(row['metrics']['oa'])} |" in page


def test_the_result_of_the_demo_is_of_the_demo_as_it_is():
    folder = ROOT / "results" / "demo"
    demo = build(DemoConfig, read_yaml(folder / "config.yaml"))
    assert config_hash(demo) == config_hash(load_demo_config()) == read(folder / "result.json")["config_hash"]


def test_the_cost_table_repeats_its_file():
    cost = read(ROOT / "results" / "cost" / "scanobjectnn_hardest_clora.json")
    macs = [cost["macs"][key] / 1e9 for key in ("published", "layers", "executed", "executed_merged")]
    params = [cost["params"][key] for key in ("trainable", "adapter", "head", "tokens")]
    row = " | ".join([*(f"{count:,}" for count in params), *(f"{count:.3f}" for count in macs)])
    assert f"| {row} |" in (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
