"""The numbers of docs/segmentation.md are those of the committed result files."""

import json
from pathlib import Path

import pytest

from pcl_clora.config import config_hash
from pcl_clora.engine import load_run_config
from pcl_clora.report import units

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
