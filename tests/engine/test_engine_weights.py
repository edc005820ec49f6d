"""Weights of a finished run, of a file and of the hub are given as the same strings everywhere."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pcl_clora.cli.train import missing_files
from pcl_clora.engine import Trainer
from pcl_clora.engine.setup import make_backbone
from pcl_clora.models import create_model, load_weights
from pcl_clora.models.weights.compare import compare_weights
from pcl_clora.models.weights.hub import cached_path
from tests.support.engine_cases import VALUES, tiny_config

SIZES = {name: value for name, value in VALUES["model"].items() if name != "name"}
HUB_ID = "hub:point-mae-base.pretrain.yatian-pang"


@pytest.mark.slow
def test_a_model_starts_from_the_folder_of_a_finished_run(tmp_path: Path) -> None:
    settings = tiny_config({"optim": {"epochs": 2}, "adapter": {"method": "lora", "rank": 2}})
    trained = Trainer(settings, run_dir=tmp_path / "run").fit().model
    merged = trained.merge_and_unload().state_dict()
    random_state = torch.get_rng_state()
    model = create_model("point_mae", **SIZES)
    report = load_weights(model, tmp_path / "run")
    assert all(torch.equal(value, merged[name]) for name, value in model.state_dict().items())
    assert report.notes == ("best model of a finished run, merged",)
    torch.set_rng_state(random_state)
    again = create_model("point_mae", weights=tmp_path / "run", **SIZES)
    assert all(torch.equal(value, merged[name]) for name, value in again.state_dict().items())
    assert compare_weights(tmp_path / "run", tmp_path / "run").changes == ()
    alone = (
        "import sys; from pcl_clora.models import create_model, load_weights;"
        "early = 'pcl_clora.engine' in sys.modules;"
        f"model = create_model('point_mae', **{SIZES!r});"
        f"print(early, len(load_weights(model, {str(tmp_path / 'run')!r}).matched))"
    )
    made = subprocess.run([sys.executable, "-c", alone], capture_output=True, check=True, text=True)
    assert made.stdout.split() == ["False", str(len(merged))]


def test_a_config_names_an_id_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PCL_CLORA_CACHE", str(tmp_path))
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    cfg = tiny_config({"weights": {"path": HUB_ID}})
    assert "not in the cache" in missing_files(cfg)[0]
    torch.manual_seed(3)
    expected = create_model("point_mae", **SIZES).state_dict()
    cached_path(HUB_ID).parent.mkdir(parents=True)
    save_file(expected, cached_path(HUB_ID))
    model, report = make_backbone(cfg)
    assert missing_files(cfg) == []
    assert report is not None
    assert report.source == HUB_ID
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
