"""Weights in the package: made from a run, loaded by name, refused where they do not fit."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from pcl_clora.cli import app
from pcl_clora.config import ConfigError, build, config_hash
from pcl_clora.engine import RunConfig, Trainer, load_run, load_run_config
from pcl_clora.engine import pretraining_export as export
from pcl_clora.models import WeightsError, builtin, create_model, load_weights, parse_model_config
from pcl_clora.models.weights.inspect import inspect_weights
from pcl_clora.models.weights.load import missing_source

SIZES: dict[str, Any] = {
    "embed_dim": 24,
    "depth": 2,
    "num_heads": 2,
    "num_groups": 8,
    "group_size": 8,
    "encoder_widths": (8, 16, 16),
}
VALUES: dict[str, Any] = {
    "name": "pretrain_tiny",
    "model": {"name": "point_mae_tiny", "task": "pretraining", **SIZES},
    "adapter": {"method": "full"},
    "data": {"name": "procedural_corpus", "train_size": 24, "test_size": 8, "num_points": 64},
    "optim": {"epochs": 1, "batch_size": 12, "warmup_epochs": 0},
    "train": {"device": "cpu", "progress": "off"},
    "probe": {
        "data": {"name": "procedural", "train_size": 62, "test_size": 31, "num_points": 64},
        "num_train": 20,
        "num_test": 10,
    },
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished pre-training."""
    folder = tmp_path_factory.mktemp("run")
    Trainer(build(RunConfig, VALUES), run_dir=folder).fit()
    return folder


@pytest.fixture
def package(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for that of the package, with weights of small sizes in it."""
    export.export_builtin(run, tmp_path)
    monkeypatch.setattr(builtin, "FOLDER", tmp_path)
    return tmp_path


@pytest.mark.parametrize("task", ["classification", "part_segmentation"])
def test_weights_in_the_package_fill_the_backbone(package: Path, run: Path, task: str) -> None:
    model = create_model("point_mae_tiny", task=task, weights="builtin", **{**SIZES, "num_groups": 16})
    _, trained = load_run(run)
    expected = trained.merge_and_unload().state_dict()
    filled = [name for name in load_file(package / "point_mae_tiny.safetensors") if name in expected]
    own = model.state_dict()
    assert len(filled) > 40
    for name in filled:
        torch.testing.assert_close(own[name], expected[name], rtol=1e-3, atol=1e-6)  # half precision


def test_nothing_but_the_encoder_is_stored_matrices_in_half_precision(package: Path) -> None:
    tensors = load_file(package / "point_mae_tiny.safetensors")
    assert {name.split(".")[0] for name in tensors} == {"patch_embed", "pos_embed", "blocks", "norm"}
    assert {tensor.dtype for tensor in tensors.values() if tensor.dim() > 1} == {torch.float16}
    assert tensors["norm.weight"].dtype == torch.float32


def test_the_card_says_where_the_weights_come_from(package: Path) -> None:
    card = builtin.builtin_card("point_mae_tiny")
    file = package / "point_mae_tiny.safetensors"
    assert card["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert (card["bytes"], card["steps"], card["clouds_seen"]) == (file.stat().st_size, 2, 24)
    assert card["probes"][0]["knn_acc"] <= 1
    assert card["command"].endswith("builtin/point_mae_tiny.yaml")
    assert config_hash(load_run_config(package / "point_mae_tiny.yaml")) == card["config_hash"]
    page = (package / "point_mae_tiny.md").read_text(encoding="utf-8")
    assert card["sha256"] in page
    assert "| epoch | k-NN | linear SVM |" in page


def test_other_widths_are_refused_with_what_exists(package: Path) -> None:
    message = r"embed_dim=48 \(there: 24\).*In the package: create_model\(\"point_mae_tiny\"\): embed_dim=24"
    with pytest.raises(WeightsError, match=message):
        create_model("point_mae_tiny", weights="builtin", **{**SIZES, "embed_dim": 48})


def test_other_models_are_refused_with_what_exists(package: Path) -> None:
    with pytest.raises(WeightsError, match=r"no weights for 'point_mae'\. In the package: create_model"):
        create_model("point_mae", weights="builtin", **SIZES)


def test_pretraining_goes_on_from_a_run_not_from_the_package(package: Path) -> None:
    with pytest.raises(WeightsError, match="are not in the file"):
        create_model("point_mae_tiny", task="pretraining", weights="builtin", **SIZES)


def test_a_package_without_weights_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtin, "FOLDER", tmp_path)
    assert "has no weights in it" in missing_source("builtin")
    with pytest.raises(WeightsError, match="In the package: nothing"):
        create_model("point_mae_tiny", weights="builtin")


def test_the_only_weights_need_no_model_to_be_looked_at(package: Path) -> None:
    info = inspect_weights("builtin")
    assert info.num_tensors == len(load_file(package / "point_mae_tiny.safetensors"))
    assert info.create == 'create_model("point_mae_tiny", weights="builtin")'
    shown = CliRunner().invoke(app, ["weights", "list", "point_mae_t*"])
    assert 'point_mae_tiny, weights="builtin"' in shown.stdout.replace("\n", "")
    listed = json.loads(CliRunner().invoke(app, ["weights", "list", "point_mae_t*", "--json"]).stdout)
    assert [(each["id"], each["model"]) for each in listed] == [("builtin", "point_mae_tiny")]
    assert "builtin" not in CliRunner().invoke(app, ["weights", "list", "act*"]).stdout
    (package / "point_mae_tiny.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"does not say which weights\. In the package: nothing"):
        inspect_weights("builtin")


def test_other_backbones_can_be_exported_and_parameters_are_those_of_the_encoder(tmp_path: Path) -> None:
    model = {**VALUES["model"], "name": "pointgpt_s"}
    cfg = build(RunConfig, {**{key: VALUES[key] for key in VALUES if key != "probe"}, "model": model})
    Trainer(cfg, run_dir=tmp_path / "run").fit()
    card = export.export_builtin(tmp_path / "run", tmp_path)
    stored = load_file(tmp_path / "pointgpt_s.safetensors")
    learned = [name for name in stored if "running" not in name and "num_batches" not in name]
    assert card["parameters"] == sum(stored[name].numel() for name in learned)
    assert card["views"] == 1


def test_half_a_run_is_not_exported(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not finished"):
        export.export_builtin(tmp_path)


def test_a_file_that_is_too_large_is_not_written(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "LARGEST_BYTES", 1000)
    with pytest.raises(ValueError, match="carries at most 1,000"):
        export.export_builtin(run, tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", list(builtin.list_builtin()))
def test_what_ships_is_what_its_card_says(name: str) -> None:
    card, file = builtin.builtin_card(name), builtin.list_builtin()[name]
    assert card["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert file.stat().st_size <= export.LARGEST_BYTES
    report = load_weights(create_model(name), "builtin")
    assert {missing.split(".")[0] for missing in report.missing} == {"prefix", "head"}
    assert config_hash(load_run_config(file.with_suffix(".yaml"))) == card["config_hash"]
    assert parse_model_config({"name": name}).num_groups == card["num_groups"]


def test_the_default_sizes_fit_into_the_package() -> None:
    model = create_model("point_mae_tiny", num_groups=64)
    encoder = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if not name.startswith(("head.", "prefix."))
    }
    size = sum(tensor.numel() * (2 if tensor.dim() > 1 else 4) for tensor in encoder.values())
    assert 2_500_000 < sum(tensor.numel() for tensor in encoder.values()) < 3_000_000
    assert size + 20_000 < export.LARGEST_BYTES
