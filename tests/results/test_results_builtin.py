"""What the pages say of the weights in the package is what the committed files say."""

import json
import re
from pathlib import Path

import pytest

from pcl_clora.config import config_hash
from pcl_clora.engine import load_run_config
from pcl_clora.models.builtin import builtin_card
from pcl_clora.report import make_table, units

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results" / "modelnet40_builtin"
PAGE = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
METHODS = ("linear_probe", "lora", "clora", "full")
README = (ROOT / "README.md").read_text(encoding="utf-8")
STARTS = ("random", "builtin")
SEEDS = (0, 1, 2)
ALL_SHAPES = "modelnet40_{start}_{method}"
SHOTS = "modelnet40_shots20_{start}_{method}_seed*"
RUNS = [f"modelnet40_{start}_{method}" for start in STARTS for method in METHODS]
RUNS += [
    f"modelnet40_shots20_{start}_{method}_seed{seed}"
    for start in STARTS
    for method in METHODS
    for seed in SEEDS
]
PROBES = {  # file -> what the page calls it
    "probe_random": "random initialisation, 3 seeds",
    "probe_builtin": "pre-trained on procedural shapes: the package",
    "probe_modelnet40": "the same, then 3 epochs on unlabelled ModelNet40-train",
}


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def mean_and_deviation(row, name):
    mean, deviation = row.metric(name)
    return units.percent(mean) + (f" +- {units.percent(deviation)}" if deviation is not None else "")


def row_of(pattern, start, method):
    (row,) = make_table(sorted(RESULTS.glob(pattern.format(start=start, method=method)))).rows
    return row


def table_row(method, pattern):
    """One line of a table of the page: both starts of a method side by side."""
    rows = [row_of(pattern, start, method) for start in STARTS]
    cells = [mean_and_deviation(row, name) for row in rows for name in ("oa", "macc")]
    return f"| {' | '.join([method, *cells, *sizes(rows[1])])} |"


def sizes(row):
    numbers = row.as_json()
    return [units.count(numbers["params"]["trainable"]), units.file_size(numbers["adapter_bytes"])]


@pytest.mark.parametrize("method", METHODS)
def test_the_table_of_all_shapes_repeats_the_results(method):
    assert table_row(method, ALL_SHAPES) in PAGE


@pytest.mark.parametrize("method", METHODS)
def test_the_table_of_20_shots_repeats_the_results(method):
    for start in STARTS:
        row = row_of(SHOTS, start, method)
        assert row.seeds == SEEDS
        assert row.new_shots
    assert table_row(method, SHOTS) in PAGE


@pytest.mark.parametrize("method", METHODS)
def test_the_table_of_the_readme_repeats_the_results(method):
    whole, shots = (row_of(pattern, "builtin", method) for pattern in (ALL_SHAPES, SHOTS))
    cells = [
        mean_and_deviation(whole, "oa"),
        mean_and_deviation(whole, "macc"),
        mean_and_deviation(shots, "oa"),
    ]
    assert f"| {' | '.join([*cells, *sizes(whole)])} |" in README


@pytest.mark.parametrize("name", RUNS)
def test_a_committed_result_belongs_to_its_config_and_protocol(name):
    run = RESULTS / name
    cfg, result = load_run_config(run / "config.yaml"), read(run / "result.json")
    assert config_hash(cfg) == result["config_hash"]
    assert cfg.weights.path == ("" if "_random_" in name else "builtin")
    assert (cfg.protocol.name, cfg.protocol.select) == ("honest", "last")
    assert result["data"]["num_train"] == (800 if "shots20" in name else 9843)
    assert result["data"]["num_test"] == 1234
    if "seed" in name:
        assert cfg.seed == cfg.data.shots_seed == int(name.rpartition("seed")[2])


@pytest.mark.parametrize("name", PROBES)
def test_the_table_of_probes_repeats_the_results(name):
    found = read(ROOT / "results" / "pretraining" / f"{name}.json")
    cells = []
    for key in ("knn_acc", "svm_acc"):
        deviation = f" +- {units.percent(found[f'{key}_std'])}" if f"{key}_std" in found else ""
        cells.append(units.percent(found[key]) + deviation)
    assert f"| {PROBES[name]} | {' | '.join(cells)} |" in PAGE
    assert (found["data"]["num_train"], found["data"]["num_test"]) == (9843, 1234)


def test_the_weights_that_were_probed_are_those_in_the_package():
    found = read(ROOT / "results" / "pretraining" / "probe_builtin.json")
    card = builtin_card("point_mae_tiny")
    assert found["sha256"] == card["sha256"]
    assert card["sha256"][:12] in PAGE
    curve = [f"{100 * line['knn_acc']:.1f}" for line in card["probes"]]
    page = (ROOT / "docs" / "pretraining.md").read_text(encoding="utf-8")
    assert re.search(r"\| k-NN \| " + re.escape(" | ".join(curve)) + r" \|", page)
