"""The demo, made small: its settings, its folder, and that its numbers are those of its runs."""

import json

import pytest
import torch
from safetensors.torch import load_file

from pcl_clora.adapters import load_adapter
from pcl_clora.config import ConfigError, build
from pcl_clora.demo import DemoConfig, load_demo_config, run_configs, run_demo
from pcl_clora.engine import load_run_config
from pcl_clora.engine.setup import make_backbone
from pcl_clora.models.builtin import list_builtin
from tests.support.cli_cases import ROOT

SMALL = [
    "num_points=48",
    "model.num_groups=4",
    "data.classes=[chair, sofa]",
    "data.train_size=16",
    "data.test_size=8",
    "optim={epochs: 1, batch_size: 8, warmup_epochs: 0}",
    "latency_repeats=1",
    "latency_batch=4",
]
METHODS = ["linear_probe", "clora", "full"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A finished small demo: (folder, what it returned)."""
    folder = tmp_path_factory.mktemp("demo") / "out"
    return folder, run_demo(SMALL, folder)


@pytest.mark.slow
def test_the_folder_has_everything_that_was_promised(demo):
    folder, _ = demo
    for name in ("config.yaml", "metrics.jsonl", "result.json", "report.md", "adapter.safetensors"):
        assert (folder / name).stat().st_size > 0
    for run in METHODS:
        for name in ("config.yaml", "metrics.jsonl", "result.json", "report.md", "best/adapter.safetensors"):
            assert (folder / run / name).stat().st_size > 0


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_the_table_repeats_the_results_of_the_runs(demo, method):
    folder, result = demo
    own = json.loads((folder / method / "result.json").read_text())
    row = result["methods"][method]
    assert row["metrics"]["oa"] == own["metrics"]["oa"]
    assert row["params"] == own["params"]
    assert own["protocol"]["name"] == "honest"
    assert own["protocol"]["select"] == "last"
    assert json.loads((folder / "result.json").read_text()) == result


@pytest.mark.slow
def test_all_methods_start_from_the_weights_in_the_package_and_nothing_is_warmed_up(demo):
    folder, result = demo
    plans = [json.loads((folder / method / "plan.json").read_text()) for method in METHODS]
    stored = len(load_file(list_builtin()["point_mae_tiny"]))
    assert [plan["weights"]["matched"] for plan in plans] == [stored] * len(METHODS)
    assert result["weights"] == "builtin"
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == sorted(METHODS)


@pytest.mark.slow
def test_other_weights_can_be_named_and_the_note_says_what_they_are_not(tmp_path, demo):
    result = run_demo([*SMALL, 'weights=""'], tmp_path / "out")
    assert result["weights"] == "random"
    assert "without their labels" in demo[1]["note"]
    assert "without their labels" not in result["note"]


@pytest.mark.slow
def test_merging_changes_the_logits_by_rounding_only(demo):
    merge = demo[1]["merge"]
    assert merge["clouds"] == 8
    assert merge["max_logit_difference"] < 1e-5  # float32: issue's tolerance
    assert merge["changed_predictions"] == 0
    assert merge["latency_ms"]["unmerged"] > 0
    assert merge["latency_ms"]["merged"] > 0


@pytest.mark.slow
def test_costs_are_those_of_merging(demo):
    methods = demo[1]["methods"]
    executed = {name: row["flops"]["executed_merged"] for name, row in methods.items()}
    assert len(set(executed.values())) == 1
    assert methods["clora"]["flops"]["executed"] > executed["clora"]
    assert methods["linear_probe"]["params"]["trainable"] < methods["clora"]["params"]["trainable"]
    assert methods["clora"]["params"]["trainable"] < methods["full"]["params"]["trainable"]


@pytest.mark.slow
def test_every_method_is_in_the_joined_metrics(demo):
    lines = [json.loads(line) for line in (demo[0] / "metrics.jsonl").read_text().splitlines()]
    assert {line["run"] for line in lines} == set(METHODS)


@pytest.mark.slow
def test_the_adapter_file_loads_onto_the_weights_in_the_package(demo):
    folder, _ = demo
    cfg = load_run_config(folder / "clora" / "config.yaml")
    torch.manual_seed(cfg.seed)
    model, _ = make_backbone(cfg)
    adapted = load_adapter(folder / "adapter.safetensors", model)
    assert adapted.config.method == "clora"


@pytest.mark.slow
def test_the_report_names_the_protocol_and_links_the_runs(demo):
    text = (demo[0] / "report.md").read_text()
    assert "honest protocol" in text
    assert "(clora/report.md)" in text
    assert "| linear_probe |" in text


def test_the_method_that_is_merged_cannot_be_left_out():
    values = load_demo_config().model_dump()
    del values["methods"]["clora"]
    with pytest.raises(ConfigError, match="keep it in methods"):
        build(DemoConfig, values)


def test_an_unknown_setting_is_refused():
    with pytest.raises(ConfigError, match="did you mean 'num_points'"):
        load_demo_config(["num_pionts=3"])


@pytest.mark.parametrize("name", METHODS)
def test_the_configs_of_cfgs_demo_are_the_runs_of_the_demo(name):
    """The yaml files show how the demo is done by hand; they may not drift from what it does."""
    assert (
        load_run_config(ROOT / "cfgs" / "demo" / f"{name}.yaml")
        == run_configs(load_demo_config(), "runs/demo")[name]
    )
