"""What official weights were trained with comes along with them, and create_model tells what it loaded."""

import logging

import pytest
import torch

from pcl_clora.adapters import attach_adapter, load_adapter
from pcl_clora.config import config_hash
from pcl_clora.engine import RunFolder, Trainer, load_run, load_run_config
from pcl_clora.models import create_model, load_weights, parse_model_config
from pcl_clora.models.weights._naming import key_map_of
from pcl_clora.models.weights.convert import convert_weights
from tests.support.engine_cases import VALUES, tiny_config
from tests.support.model_cases import TINY

NAMES = ["point_mae", "act", "pcp_mae", "recon", "recon_plain", "point_bert", "pointgpt_s"]


def make(name="point_mae", **settings):
    torch.manual_seed(0)
    return create_model(name, **{"num_classes": 5, **TINY, **settings}).eval()


def official(model):
    """A state dict under the names of the published code."""
    named = ((key_map_of(model).translate(name, to="official"), value) for name, value in own(model))
    return {key: value.clone() for key, value in named if key}


def own(model):
    return model.state_dict().items()


@pytest.fixture
def near_origin(generator):
    """Clouds with points nearer to the origin than the two rules of sampling agree on."""
    points = torch.rand(2, 64, 3, generator=generator) * 0.06 - 0.03
    points[:, :8] = torch.rand(2, 8, 3, generator=generator)
    return points


@pytest.mark.parametrize("task", ["classification", "part_segmentation"])
@pytest.mark.parametrize("name", NAMES)
def test_official_weights_bring_their_rule_of_sampling(name, task, near_origin, caplog):
    sizes = {"task": task}
    if (name, task) == ("point_bert", "part_segmentation"):
        sizes |= {"num_upsampled": (32, 16), "propagation_widths": (32, 48), "segmentation_widths": (16, 16)}
    weights = official(make(name, **sizes))
    asked, left_open = make(name, fps_compat="pointnet2", **sizes), make(name, **sizes)
    inputs = (near_origin,) if task == "classification" else (near_origin, torch.zeros(2, dtype=torch.int64))
    with caplog.at_level(logging.INFO, logger="pcl_clora"):
        load_weights(asked, weights)
        assert "fps_compat" not in caplog.text
        report = load_weights(left_open, weights)
    assert caplog.text.count("the model takes fps_compat='pointnet2'") == 1
    assert "fps_compat=pointnet2 is adopted from the weights" in str(report)
    assert torch.equal(left_open(*inputs), asked(*inputs))
    other = make(name, fps_compat="none", **sizes)
    load_weights(other, weights)
    assert other.config.fps_compat == "none"
    assert not torch.equal(other(*inputs), asked(*inputs))


def test_settings_left_open_are_written_and_hashed_as_before():
    left_open = parse_model_config({"name": "point_mae"})
    assert left_open.model_dump(mode="json")["fps_compat"] == "none"
    assert config_hash(left_open) == config_hash(
        parse_model_config({"name": "point_mae", "fps_compat": "none"})
    )


def test_weights_of_this_package_bring_no_rule_that_they_did_not_record(tmp_path):
    assert create_model("point_mae_tiny", weights="builtin").config.fps_compat == "none"
    model = make()
    load_weights(model, make().state_dict())
    assert model.config.fps_compat == "none"
    torch.save(make().state_dict(), tmp_path / "ours.pth")
    convert_weights(tmp_path / "ours.pth", tmp_path / "official.safetensors", to="official")
    load_weights(model, tmp_path / "official.safetensors")
    assert model.config.fps_compat == "none"


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("to", ["native", "hub", "official"])
def test_official_weights_under_other_names_keep_their_rule(to, suffix, tmp_path):
    torch.save({"base_model": official(make())}, tmp_path / "official.pth")
    convert_weights(tmp_path / "official.pth", tmp_path / f"again{suffix}", to=to)
    model = make()
    load_weights(model, tmp_path / f"again{suffix}")
    assert model.config.fps_compat == "pointnet2"


def test_an_adapter_file_brings_the_rule_of_its_base(tmp_path, near_origin):
    base = make()
    load_weights(base, official(make()))
    trained = attach_adapter(base, {"method": "lora"}).eval()
    trained.save_adapter(tmp_path / "adapter.safetensors")
    left_open = make()
    again = load_adapter(tmp_path / "adapter.safetensors", left_open).eval()
    assert left_open.config.fps_compat == "pointnet2"
    assert torch.equal(again(near_origin), trained(near_origin))


def official_run(tmp_path, **changes):
    """Settings of a tiny run on official weights."""
    torch.manual_seed(0)
    model = create_model(**VALUES["model"])
    torch.save({"base_model": official(model)}, tmp_path / "official.pth")
    return tiny_config(
        {"output": str(tmp_path), "weights": {"path": str(tmp_path / "official.pth")}}, changes
    )


def test_a_run_records_what_its_weights_brought_and_is_rebuilt_with_it(tmp_path):
    cfg = official_run(tmp_path)
    Trainer(cfg).fit()
    files = RunFolder(tmp_path / cfg.name)
    assert load_run_config(files.config).model.fps_compat == "pointnet2"
    _, model = load_run(files.path)
    assert model.base.config.fps_compat == "pointnet2"
    assert Trainer(cfg).fit().result["metrics"]  # goes on with the same settings, which leave the rule open
    again = create_model(**{**VALUES["model"]})
    load_weights(again, files.path)
    assert again.config.fps_compat == "pointnet2"


def test_a_run_that_was_trained_without_the_rule_stays_without_it(tmp_path):
    """As runs of earlier versions are: settings that say none, on official weights."""
    explicit = official_run(
        tmp_path,
        adapter={"method": "linear_probe"},
        optim={"epochs": 1, "warmup_epochs": 0},
        model={"fps_compat": "none"},
    )
    Trainer(explicit).fit()
    _, model = load_run(tmp_path / explicit.name)
    assert model.base.config.fps_compat == "none"
    left_open = official_run(
        tmp_path, adapter={"method": "linear_probe"}, optim={"epochs": 1, "warmup_epochs": 0}
    )
    assert "fps_compat" not in left_open.model.model_fields_set
    trainer = Trainer(left_open)
    trainer.fit()
    assert trainer.cfg.model.fps_compat == "none"


def test_a_model_tells_what_it_was_filled_with(caplog):
    with caplog.at_level(logging.INFO, logger="pcl_clora"):
        model = create_model("point_mae_tiny", num_classes=7, weights="builtin")
    told, record = caplog.records
    assert (told.levelno, record.levelno) == (logging.INFO, logging.WARNING)
    assert told.message == str(model.load_report)
    assert "stay random (head, prefix)" in record.message
    assert model.load_report.source == "builtin point_mae_tiny"
    assert "head.8.weight" in model.load_report.missing


def test_a_model_that_is_filled_completely_tells_so_quietly(tmp_path, caplog):
    torch.save(make().state_dict(), tmp_path / "whole.pth")
    with caplog.at_level(logging.INFO, logger="pcl_clora"):
        model = make(weights=tmp_path / "whole.pth")
    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert not model.load_report.missing
    assert str(model.load_report) in record.message


def test_a_head_for_other_classes_is_told_at_warning(tmp_path, caplog):
    torch.save(make(num_classes=5).state_dict(), tmp_path / "five.pth")
    with caplog.at_level(logging.INFO, logger="pcl_clora"):
        model = make(num_classes=7, weights=tmp_path / "five.pth")
    told, record = caplog.records
    assert (told.levelno, record.levelno) == (logging.INFO, logging.WARNING)
    assert told.message == str(model.load_report)
    assert "stay random (head)" in record.message
    assert "head for other classes" in record.message
    assert model.load_report.missing
