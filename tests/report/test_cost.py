import json

import pytest
import torch

from pcl_clora.adapters import AdaptedModel, attach_adapter, list_adapters
from pcl_clora.models import create_model
from pcl_clora.report import cost_report, count_cost
from pcl_clora.report.cost import merged_copy
from tests.support.report_cases import make_tiny

KEYS = {
    "params": {"total", "trainable", "adapter", "head", "tokens"},
    "macs": {"published", "executed", "executed_merged"},
    "flops": {"executed", "grouping"},
    "memory_mib": {"inference", "training_step", "method"},
    "latency_ms": {"unmerged", "merged", "batch_size"},
}


@pytest.mark.parametrize("method", list_adapters())
def test_a_report_has_every_number_for_every_method(method):
    report = cost_report(make_tiny(method), 64, repeats=1, batch_size=2)
    for section, names in KEYS.items():
        assert names <= report[section].keys()
    assert report["flops"]["executed"] == 2 * report["macs"]["executed"]
    assert min(report["latency_ms"]["unmerged"], report["latency_ms"]["merged"]) > 0
    assert min(report["memory_mib"]["training_step"], report["memory_mib"]["inference"]) > 0
    assert json.loads(json.dumps(report)) == report


@pytest.mark.parametrize("method", list_adapters(mergeable=True))
def test_a_merged_adapter_costs_what_the_backbone_costs(method):
    bare, adapted = count_cost(make_tiny(), 64), count_cost(make_tiny(method), 64)
    for name in ("published", "layers", "executed_merged"):
        assert adapted["macs"][name] == bare["macs"][name]


@pytest.mark.parametrize("method", sorted({*list_adapters()} - {*list_adapters(mergeable=True)}))
def test_an_adapter_that_does_not_merge_is_deployed_as_it_is(method):
    model = make_tiny(method)
    macs = count_cost(model, 64)["macs"]
    assert macs["executed_merged"] == macs["executed"] > count_cost(make_tiny(), 64)["macs"]["executed"]
    assert isinstance(merged_copy(model), AdaptedModel)


def test_unmerged_clora_costs_its_formula_more():
    spaces, rank, dim, tokens, places = 4, 2, 48, 17, 6
    macs = count_cost(make_tiny("clora", rank=rank, num_spaces=spaces), 64)["macs"]
    width = spaces * rank
    extra = places * (tokens * 2 * dim * width + width * rank * dim)  # x D, (x D)(Q U), and Q U once
    assert macs["executed"] - macs["executed_merged"] == extra


@pytest.mark.parametrize("method", list_adapters())
def test_measuring_leaves_the_model_as_it_was(method):
    model = make_tiny(method).train()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    random_state = torch.get_rng_state()
    cost_report(model, 64, repeats=1, batch_size=2)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("name", ["num_points", "repeats", "batch_size"])
def test_a_number_below_one_is_refused_by_name(name):
    settings = {"num_points": 64, "repeats": 1, "batch_size": 1, name: 0}
    with pytest.raises(ValueError, match=f"{name}=0"):
        cost_report(make_tiny(), **settings)


def test_a_merged_model_is_refused():
    model = make_tiny("clora")
    model.merge()
    with pytest.raises(ValueError, match="unmerge"):
        merged_copy(model)


def test_a_single_cloud_has_no_training_step():
    assert cost_report(make_tiny("clora"), 64, repeats=1, batch_size=1)["memory_mib"]["training_step"] is None


def test_a_frozen_backbone_needs_less_memory_for_a_training_step():
    narrow = {"rank": 2, "num_spaces": 2}  # as narrow beside the tiny width as the defaults beside a real one
    models = [make_tiny("linear_probe"), make_tiny("clora", **narrow), make_tiny("full")]
    reports = [cost_report(model, 128, repeats=1, batch_size=8, with_latency=False) for model in models]
    probe, clora, full = (report["memory_mib"]["training_step"] for report in reports)
    assert probe < clora < full


def test_modules_add_up_to_the_whole():
    report = count_cost(make_tiny("lora"), 64)
    top = [row for name, row in report["modules"].items() if "." not in name]
    assert sum(row["params"] for row in top) == sum(p.numel() for p in make_tiny().parameters())
    assert sum(row["macs_published"] for row in top) == report["macs"]["published"]
    assert sum(row["macs_executed"] for row in top) == report["macs"]["executed_merged"]


@pytest.mark.slow
def test_clora_on_full_size_point_mae_has_the_counts_of_the_paper():
    model = attach_adapter(create_model("point_mae", num_classes=15), {"method": "clora"})
    report = count_cost(model, 2048)
    assert report["params"] | {"total": 0} == {
        "total": 0,
        "trainable": 329_743,
        "adapter": 61_440,
        "head": 267_535,
        "tokens": 768,
    }
    assert round(report["macs"]["published"] / 1e9, 3) == 4.761
    assert round(report["macs"]["layers"] / 1e9, 2) == 4.24
    assert round(report["macs"]["executed_merged"] / 1e9, 3) == 4.394


def test_counts_of_a_bare_backbone_name_head_and_tokens():
    params = count_cost(make_tiny(), 64)["params"]
    model = make_tiny()
    assert params["total"] == params["trainable"] == sum(p.numel() for p in model.parameters())
    assert params["head"] == sum(p.numel() for p in model.head.parameters())
    assert params["tokens"] == 2 * 48
