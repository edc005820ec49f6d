"""The page about pre-training says what code and results say."""

import json
import re
from pathlib import Path

import pytest

from pcl_clora.engine import load_run_config

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "pretraining.md").read_text(encoding="utf-8")


def test_the_speed_table_repeats_the_measurement():
    record = json.loads((ROOT / "results" / "bench" / "pretraining.json").read_text(encoding="utf-8"))
    steps = record["rows"][0]["steps"].values()
    rows = re.findall(r"^\| .*patches embedded.* \| (\d+) \| ([\d.]+) \|$", PAGE, re.MULTILINE)
    assert rows == [(f"{step['min_ms']:.0f}", f"{step['ratio']:.2f}") for step in steps]


@pytest.mark.parametrize("size", ["tiny", "small", "base"])
def test_the_recipe_table_repeats_the_configs(size):
    cfg = load_run_config(ROOT / "cfgs" / "pretrain" / f"{size}.yaml")
    row = re.search(rf"^\| `{size}` \|.*$", PAGE, re.MULTILINE)[0]
    assert f"| {cfg.optim.epochs} x {cfg.data.train_size:,}, {cfg.optim.batch_size} |" in row
    assert cfg.optim.lr == 1e-3


def test_the_picture_of_the_corpus_is_small():
    assert (ROOT / "docs" / "images" / "procedural_corpus.png").stat().st_size < 300_000
