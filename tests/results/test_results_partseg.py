"""The numbers of docs/segmentation.md are those of the committed result files."""

import json
from pathlib import Path

import pytest

from pcl_clora.compare import load_study
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
    measured = json.loads((ROOT / "results" / "cost" / "segmentation_heads.json").read_text(encoding="utf-8"))
    rows = [measured["rows"][name] for name in ("published", "small")]
    steps = " | ".join(f"{row['step_ms'] / 1000:.2f}" for row in rows)
    memory = " | ".join(f"{row['memory_mib']['training_step']:,.0f}" for row in rows)
    latency = " | ".join(f"{row['latency_ms']['merged']:.1f}" for row in rows)
    assert (
        f"| parameters of the head | {heads} |\n| G MACs executed | {macs} |\n"
        f"| training step of {rows[0]['step_clouds']} clouds, s | {steps} |\n| its memory, MiB | {memory} |\n"
        f"| inference, merged, ms a cloud | {latency} |\n"
    ) in page
    where = f"({rows[0]['processor']}, one thread, processor time, load {rows[0]['load']:.1f})"
    assert where in page.replace("\n", " ")
    assert rows[1]["step_ms"] < 0.1 * rows[0]["step_ms"]


def test_what_the_two_heads_take_was_measured_of_the_rows_of_its_config():
    measured = json.loads((ROOT / "results" / "cost" / "segmentation_heads.json").read_text(encoding="utf-8"))
    study = load_study(ROOT / "cfgs" / "compare" / "heads.yaml")
    assert measured["rows"].keys() == study.rows.keys()
    for name, row in study.rows.items():
        assert measured["rows"][name]["step_clouds"] == row.cfg.optim.batch_size
        assert row.cfg.model.segmentation_head == name
