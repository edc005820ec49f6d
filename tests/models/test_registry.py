"""Making models by name."""

import pytest
import torch

from pcl_clora.models import create_model, list_models, parse_model_config, register_model
from pcl_clora.models.backbones.point_mae.network import PointMAE, PointMAEConfig
from pcl_clora.models.interface import Backbone, get_interface

TINY = {
    "embed_dim": 48,
    "depth": 2,
    "num_heads": 3,
    "num_groups": 16,
    "group_size": 8,
    "encoder_widths": (16, 32, 64),
}


def test_list_models_filters_by_pattern():
    assert "point_mae" in list_models("point*")
    assert list_models("nothing*") == []


CLOUD_MODELS = [name for name in list_models() if name != "timm"]


def make(name):
    """A tiny model in evaluation mode, the same weights every time."""
    torch.manual_seed(0)
    sizes = {key: value for key, value in TINY.items() if key != "encoder_widths"}
    return create_model(
        name, num_classes=5, **(sizes if name in ("pointgpt_b", "pointgpt_l") else TINY)
    ).eval()


@pytest.mark.parametrize("name", CLOUD_MODELS)
def test_every_model_follows_the_backbone_protocol(name, points):
    model = make(name)
    assert isinstance(model, Backbone)
    assert get_interface(model).blocks == ("blocks.0", "blocks.1")
    assert torch.equal(model(points), model.forward_head(model.forward_features(points)))
    assert model.no_weight_decay() <= {key for key, _ in model.named_parameters()}
    model.reset_classifier(7)
    assert model(points).shape == (2, 7)
    assert model.get_classifier() is model.get_submodule(model.interface.parts["head"][0])


@pytest.mark.parametrize("name", CLOUD_MODELS)
def test_checkpointing_changes_no_gradient_of_any_model(name, points):
    plain, saving = make(name), make(name)
    saving.set_grad_checkpointing()
    for model in (plain, saving):
        model(points).square().sum().backward()
    ours, theirs = (
        {key: value.grad for key, value in model.named_parameters() if value.grad is not None}
        for model in (plain, saving)
    )
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_wrong_model_name_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'point_mae'"):
        create_model("pointmae")


def test_a_wrong_setting_names_the_nearest():
    with pytest.raises(ValueError, match="did you mean 'num_groups'"):
        create_model("point_mae", num_group=64)


@pytest.mark.parametrize("setting", [{"drop_path": 1.0}, {"head_dropout": 1.5}, {"mlp_ratio": 0}])
def test_a_number_out_of_range_is_named(setting):
    with pytest.raises(ValueError, match=rf"{next(iter(setting))}: Input should be (less|greater) than"):
        parse_model_config({"name": "point_mae", **setting})


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="embed_dim=48 is not a multiple of num_heads=5"):
        create_model("point_mae", embed_dim=48, num_heads=5)


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match="registered already"):
        register_model("point_mae", PointMAEConfig, tasks={"classification": PointMAE})


def test_a_config_survives_a_dump():
    config = parse_model_config({"name": "point_mae", **TINY})
    assert parse_model_config(config.model_dump(mode="json")) == config


def test_interface_names_slices_of_the_fused_projection():
    interface = get_interface(create_model("point_mae", **TINY))
    sites = interface.sites("v")
    assert [site.path for site in sites] == ["blocks.0.attn.qkv", "blocks.1.attn.qkv"]
    assert sites[0].rows == (96, 144)


def test_a_model_without_interface_is_refused():
    with pytest.raises(TypeError, match="publishes no ModelInterface"):
        get_interface(torch.nn.Linear(2, 2))
