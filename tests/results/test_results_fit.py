"""The page repeats the committed results of one line beside a config."""

import json
from pathlib import Path

import pytest

from pcl_clora.config import config_hash
from pcl_clora.engine import load_run_config
from pcl_clora.report import units

ROOT = Path(__file__).parents[2]
RUNS = ROOT / "results" / "fit_dales500"


def read(run: str, file: str = "result.json"):
    return json.loads((RUNS / run / file).read_text(encoding="utf-8"))


@pytest.mark.parametrize(("name", "run"), [("`pcl-clora fit`", "fit"), ("config", "config")])
def test_the_table_repeats_the_results(name, run):
    result = read(run)
    confusion = result["metrics"]["confusion"]
    right, judged = sum(row[at] for at, row in enumerate(confusion)), sum(map(sum, confusion))
    cells = (
        name,
        units.percent(result["metrics"]["oa"]),
        f"{right} of {judged}",
        result["steps"],
        result["augment"],
    )
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert f"| {' | '.join(map(str, cells))} |" in page
    assert config_hash(load_run_config(RUNS / run / "config.yaml")) == result["config_hash"]


def test_one_line_is_within_two_points_of_the_config():
    assert read("fit")["metrics"]["oa"] >= read("config")["metrics"]["oa"] - 0.02
    assert read("fit", "fit.json")["accuracy"] == read("fit")["metrics"]["oa"]
    assert read("fit")["data"]["num_test"] == read("config")["data"]["num_test"]
    assert read("fit")["data"]["num_train"] == read("config")["data"]["num_train"]
