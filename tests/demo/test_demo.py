"""The demo, made small: its settings, its folder, and that its numbers are those of its runs."""

import json

import pytest
import torch

from pcl_clora.adapters import load_adapter
from pcl_clora.config import ConfigError, build
from pcl_clora.demo import WARMUP, DemoConfig, load_demo_config, run_configs, run_demo
from pcl_clora.engine import load_run_config
from pcl_clora.engine.setup import make_backbone
from tests.cli.conftest import ROOT

SMALL = [
    "num_points=32",
    "model.embed_dim=24",
    "model.depth=1",
    "model.num_groups=4",
    "model.group_size=4",
    "model.encoder_widths=[8, 16, 32]",
    "warmup.data.classes=[mug, car, lamp]",
    "warmup.data.train_size=16",
    "warmup.data.test_size=6",
    "target.data.classes=[chair, sofa]",
    "target.data.train_size=16",
    "target.data.test_size=8",
    "warmup.optim={epochs: 1, batch_size: 8, warmup_epochs: 0}",
    "target.optim={epochs: 1, batch_size: 8, warmup_epochs: 0}",
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
    for run in (WARMUP, *METHODS):
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
def test_all_methods_start_from_the_same_warmed_up_backbone(demo):
    folder, _ = demo
    plans = [json.loads((folder / method / "plan.json").read_text()) for method in METHODS]
    assert {plan["weights"]["matched"] for plan in plans} == {plans[0]["weights"]["matched"]}
    assert {load_run_config(folder / method / "config.yaml").weights.path for method in METHODS} == {
        str(folder / WARMUP)
    }


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
def test_every_stage_is_in_the_joined_metrics(demo):
    lines = [json.loads(line) for line in (demo[0] / "metrics.jsonl").read_text().splitlines()]
    assert {line["run"] for line in lines} == {WARMUP, *METHODS}


@pytest.mark.slow
def test_the_adapter_file_loads_onto_the_warmed_up_backbone(demo):
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


def test_warmup_and_target_share_no_class():
    demo = load_demo_config()
    assert not set(demo.warmup.classes) & set(demo.target.classes)
    with pytest.raises(ConfigError, match="the target must be new"):
        load_demo_config(["target.data.classes=[mug, chair]"])


def test_the_method_that_is_merged_cannot_be_left_out():
    values = load_demo_config().model_dump()
    del values["methods"]["clora"]
    with pytest.raises(ConfigError, match="keep it in methods"):
        build(DemoConfig, values)


def test_an_unknown_setting_is_refused():
    with pytest.raises(ConfigError, match="did you mean 'num_points'"):
        load_demo_config(["num_pionts=3"])


@pytest.mark.parametrize("name", [WARMUP, *METHODS])
def test_the_configs_of_cfgs_demo_are_the_runs_of_the_demo(name):
    """The yaml files show how the demo is done by hand; they may not drift from what it does."""
    assert (
        load_run_config(ROOT / "cfgs" / "demo" / f"{name}.yaml")
        == run_configs(load_demo_config(), "runs/demo")[name]
    )
