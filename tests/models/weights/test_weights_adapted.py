"""Weights below adapters: the backbone is filled, the adapter keeps what is its own, and that is said."""

import logging
import re

import pytest
import torch

from pcl_clora.adapters import attach_adapter
from pcl_clora.models import create_model, load_weights
from pcl_clora.models.weights.load import preview

SIZES = {"embed_dim": 48, "depth": 2, "num_heads": 3, "num_groups": 16, "group_size": 8}


def make(seed):
    torch.manual_seed(seed)
    return create_model("point_mae", num_classes=15, **SIZES).eval()


def points():
    return torch.rand(2, 64, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("method", ["clora", "lora", "linear_probe", "full"])
def test_the_backbone_below_an_adapter_is_filled(method):
    adapted, source = attach_adapter(make(0), {"method": method}).eval(), make(1)
    report = load_weights(adapted, source.state_dict())
    assert report.matched == tuple(source.state_dict())
    with adapted.disabled(), torch.no_grad():
        assert torch.equal(adapted(points()), source(points()))


@pytest.mark.parametrize("method", ["clora", "lora", "linear_probe", "full"])
def test_what_the_adapter_trains_keeps_its_values(method):
    adapted = attach_adapter(make(0), {"method": method})
    before = {name: value.clone() for name, value in adapted.adapter_state().items()}
    load_weights(adapted, make(1).state_dict())
    assert all(torch.equal(value, before[name]) for name, value in adapted.adapter_state().items())


def test_copies_that_keep_their_values_are_named_in_report_and_log(caplog):
    adapted = attach_adapter(make(0), {"method": "lora"})
    with caplog.at_level(logging.WARNING, logger="pcl_clora"):
        report = load_weights(adapted, make(1).state_dict())
    said = r"the active adapter has copies of its own of head, .*which keep their values"
    assert re.search(said, str(report))
    assert "the active adapter has copies of its own of head" in caplog.text


def test_without_an_active_adapter_nothing_is_kept_and_nothing_said(caplog):
    adapted = attach_adapter(make(0), {"method": "lora"})
    adapted.set_active(None)
    source = make(1)
    with caplog.at_level(logging.WARNING, logger="pcl_clora"):
        assert load_weights(adapted, source.state_dict()).notes == ()
    assert caplog.text == ""
    with torch.no_grad():
        assert torch.equal(adapted.eval()(points()), source(points()))


def test_a_merged_model_is_refused_and_left_as_it_was():
    adapted = attach_adapter(make(0), {"method": "lora"}).eval()
    adapted.merge()
    with torch.no_grad():
        before = adapted(points())
        with pytest.raises(RuntimeError, match=r"is merged; call unmerge\(\) before"):
            load_weights(adapted, make(1).state_dict())
        assert torch.equal(adapted(points()), before)


def test_weights_in_the_package_are_found_for_the_backbone_below_an_adapter():
    adapted = attach_adapter(create_model("point_mae_tiny", num_classes=3), {"method": "lora"})
    assert load_weights(adapted, "builtin").source == "builtin point_mae_tiny"
    assert preview(adapted, "builtin").missing == load_weights(adapted, "builtin").missing
