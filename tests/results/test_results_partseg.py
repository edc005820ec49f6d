"""The numbers of docs/segmentation.md are those of the committed result files."""

import json
from pathlib import Path

import pytest

from pcl_clora.config import config_hash
from pcl_clora.engine import load_run_config
from pcl_clora.report import units
from pcl_clora.report.records import run_cost

ROOT = Path(__file__).parents[2]
RUNS = sorted((ROOT / "results" / "partseg_tiny").glob("partseg_*_tiny_*"))


@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.name)
def test_the_page_repeats_the_results(run):
    result = json.loads((run / "result.json").read_text(encoding="utf-8"))
    metrics = result["metrics"]
    cells = f"| {units.percent(metrics['instance_miou'])} | {units.percent(metrics['class_miou'])} |"
    cells += f" {units.count(result['params']['trainable'])} | {units.file_size(result['adapter_bytes'])} |"
    assert cells in (ROOT / "docs" / "segmentation.md").read_text(encoding="utf-8")
    assert config_hash(load_run_config(run / "config.yaml")) == result["config_hash"]


def test_the_page_says_what_the_two_heads_take():
    config = ROOT / "cfgs" / "partseg" / "coseg_builtin_clora.yaml"
    overrides = (["model.segmentation_head=published"], [])
    costs = [run_cost(load_run_config(config, override)) for override in overrides]
    heads = " | ".join(f"{cost['params']['head']:,}" for cost in costs)
    macs = " | ".join(units.giga(cost["macs"]["executed_merged"]) for cost in costs)
    page = (ROOT / "docs" / "segmentation.md").read_text(encoding="utf-8")
    assert f"| parameters of the head | {heads} |\n| G MACs executed | {macs} |\n" in page
