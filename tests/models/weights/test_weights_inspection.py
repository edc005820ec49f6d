"""What a file is, and in what two files differ."""

import json

import pytest
import torch
from safetensors.torch import save_file

from pcl_clora.models import WeightsError, create_model
from pcl_clora.models.weights._identify import Identity
from pcl_clora.models.weights.compare import compare_weights, group_of
from pcl_clora.models.weights.inspect import inspect_weights

SIZES = {"embed_dim": 48, "depth": 2, "num_heads": 3, "num_groups": 16, "group_size": 8}


def make(num_classes=15, seed=0):
    torch.manual_seed(seed)
    return create_model("point_mae", num_classes=num_classes, **SIZES)


@pytest.fixture
def files(tmp_path):
    """A file, and a copy whose tensors a test changes before it is written."""
    first = make().state_dict()
    save_file(first, tmp_path / "first.safetensors")
    second = {name: value.clone() for name, value in first.items()}

    def compare():
        save_file(second, tmp_path / "second.safetensors")
        return compare_weights(tmp_path / "first.safetensors", tmp_path / "second.safetensors")

    return second, compare


def test_a_file_compared_with_itself_has_no_difference(files):
    _, compare = files
    found = compare()
    assert found.changes == found.only_first == found.only_second == ()
    assert sum(found.equal.values()) == len(make().state_dict())
    assert found.verdict() == "The backbone is the same bit by bit, statistics included."


def test_statistics_that_moved_under_a_frozen_backbone_are_shown(files):
    second, compare = files
    second["patch_embed.norm1.running_mean"] += 0.25
    second["patch_embed.norm1.num_batches_tracked"] += 7
    second["head.8.bias"] += 1.0
    found = compare()
    assert found.count("backbone") == (0, found.count("backbone")[1])
    assert found.count("backbone statistics") == (2, 6)
    assert found.count("head")[0] == 1
    assert "frozen in name only" in found.verdict()
    moved = {change.name: change for change in found.changes}
    assert moved["encoder.first_conv.1.running_mean"].max_abs == 0.25
    assert moved["encoder.first_conv.1.running_mean"].share == 1.0
    assert moved["encoder.first_conv.1.running_mean"].relative == float("inf")  # the first one is zero


def test_differences_are_those_of_the_definition(files):
    second, compare = files
    name = "blocks.1.mlp.fc1.weight"
    before = second[name].clone()
    second[name][0, :3] += torch.tensor([1e-3, -2e-3, 5e-4])
    (change,) = compare().changes
    delta = (second[name].double() - before.double()).norm() / before.double().norm()
    assert change.group == "backbone"
    assert change.max_abs == pytest.approx(2e-3, rel=1e-3)
    assert change.relative == pytest.approx(float(delta), rel=1e-12)
    assert change.share == 3 / before.numel()


def test_other_shapes_and_lone_tensors_are_listed(files):
    second, compare = files
    second["head.8.weight"] = torch.ones(7, 256)
    del second["norm.bias"]
    found = compare()
    (change,) = (change for change in found.changes if change.shapes)
    assert change.shapes == ((15, 256), (7, 256))
    assert found.only_first == ("norm.bias",)


def test_files_with_different_names_are_compared_by_the_official_ones(golden, tmp_path):
    from pcl_clora.models.weights.convert import convert_weights

    source = golden / "ckpt_pointmae_finetuned_tiny.pth"
    convert_weights(source, tmp_path / "hub.safetensors", to="hub")
    found = compare_weights(source, tmp_path / "hub.safetensors")
    assert found.changes == ()
    assert found.only_first == ()


def test_a_pretrained_and_a_finetuned_file_share_the_backbone_alone(golden):
    found = compare_weights(
        golden / "ckpt_pointmae_pretrain_tiny.pth", golden / "ckpt_pointmae_finetuned_tiny.pth"
    )
    assert found.count("backbone") == (0, 51)
    assert {name.split(".")[0] for name in found.only_second} == {"cls_token", "cls_pos", "cls_head_finetune"}
    json.dumps(found.as_json())


def test_files_without_a_common_tensor_are_said_to_have_none(tmp_path, golden):
    save_file({"fc.weight": torch.ones(2)}, tmp_path / "other.safetensors")
    found = compare_weights(golden / "ckpt_pointmae_pretrain_tiny.pth", tmp_path / "other.safetensors")
    assert found.verdict() == "The files have no backbone in common."


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("blocks.blocks.3.attn.qkv.weight", "backbone"),
        ("blocks.blocks.3.norm1_contrast.weight", "backbone"),
        ("encoder.first_conv.1.running_var", "backbone statistics"),
        ("cls_head_finetune.5.running_var", "head"),
        ("propagation_0_cls.mlp_bns.0.running_mean", "head"),
        ("cls_token", "tokens"),
        ("blocks.sos", "tokens"),
        ("mask_token", "other"),
        ("MAE_decoder.blocks.0.norm1.weight", "other"),
        ("transformer_k.norm.weight", "other"),
        ("blocks.cls_norm.weight", "head"),
        ("img_pos", "tokens"),
        ("sos_pos", "tokens"),
        ("generator_blocks.layers.0.ln_1.weight", "other"),
        ("something.else", "other"),
    ],
)
def test_tensors_are_grouped_by_what_owns_them(name, group):
    assert group_of(name) == group


def test_inspection_says_what_a_pretrained_file_is(golden):
    info = inspect_weights(golden / "ckpt_pointmae_pretrain_tiny.pth")
    assert info.holds == "Point-MAE, pre-training"
    assert (info.kind, info.container, info.naming) == ("torch", "base_model", "official")
    assert set(info.wrappers) == {"module.", "MAE_encoder."}
    assert info.sizes["embed_dim"] == 48
    assert info.extras["epoch"] == 300
    loads = {(load.model, load.task): load for load in info.loads}
    assert loads["point_mae", "classification"].matched == 57
    assert loads["point_mae", "pretraining"].missing == 0
    assert all(not load.refused for load in info.loads if load.task != "pretraining")
    json.dumps(info.as_json())


def test_inspection_names_values_that_are_no_numbers(tmp_path):
    state = make().state_dict()
    state["norm.bias"] = torch.full((48,), float("nan"))
    save_file(state, tmp_path / "bad.safetensors")
    assert inspect_weights(tmp_path / "bad.safetensors").not_finite == {"norm.bias": 48}


def test_the_call_that_inspection_prints_makes_a_model_that_takes_the_file(golden):
    from pcl_clora.models import load_weights

    file = golden / "ckpt_pointmae_finetuned_tiny.pth"
    sizes = dict(inspect_weights(file).sizes)
    assert not load_weights(create_model("point_mae", num_heads=3, **sizes), file).missing


def test_an_adapter_file_is_called_one(tmp_path):
    from pcl_clora.adapters import attach_adapter

    adapted = attach_adapter(make(), {"method": "lora"})
    adapted.save_adapter(tmp_path / "adapter.safetensors")
    assert (
        "an adapter of pcl_clora (lora); use load_adapter()"
        in inspect_weights(tmp_path / "adapter.safetensors").holds
    )


def test_a_file_of_nobody_here_loads_into_nothing(tmp_path):
    save_file({"layer1.0.conv1.weight": torch.ones(4, 4, 3, 3)}, tmp_path / "resnet.safetensors")
    info = inspect_weights(tmp_path / "resnet.safetensors")
    assert info.holds == "a convolutional image network"
    assert info.loads == ()


def test_what_cannot_be_read_cannot_be_inspected(tmp_path):
    with pytest.raises(WeightsError, match="does not exist"):
        inspect_weights(tmp_path / "gone.pth")


def test_the_call_for_a_pretraining_file_of_act_is_one_that_works():
    call = Identity("act", "ACT", "pretraining", sizes={"embed_dim": 48, "depth": 2}).as_call()
    assert call == 'create_model("act", embed_dim=48, depth=2)'
