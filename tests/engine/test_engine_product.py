"""train.product: the library that multiplies is chosen once, written down, and kept."""

from __future__ import annotations

import logging

import pytest

from pcl_clora.config import ConfigError, config_hash
from pcl_clora.engine import RunFolder, Trainer, TrainingInterrupted
from pcl_clora.engine.evaluate_run import evaluate_run
from pcl_clora.engine.product_route import product_of_run
from pcl_clora.engine.run.checkpoint import CheckpointError, read_checkpoint
from pcl_clora.errors import UserValueError
from pcl_clora.io import read_json, write_json
from pcl_clora.models.layers import product
from pcl_clora.predict import Predictor
from tests.support.engine_cases import tiny_config

pytestmark = pytest.mark.skipif(not product.has_onednn(), reason="this torch has one product only")

OTHER = {"torch": "onednn", "onednn": "torch"}


@pytest.fixture
def faster(monkeypatch):
    """Say which library is faster here."""
    return lambda name: monkeypatch.setattr(product, "_found", {"choice": product.Choice(name, "test")})


def interrupted(folder, step=3):
    """Train until a step."""
    trainer = Trainer(tiny_config(), run_dir=folder, on_event=lambda event: stop(event))

    def stop(event):
        if event["kind"] == "train" and event["step"] == step:
            trainer._stop.requested = True

    with pytest.raises(TrainingInterrupted):
        trainer.fit()


@pytest.mark.parametrize("name", product.ROUTES)
def test_the_route_is_in_result_environment_checkpoint_and_evaluation(tmp_path, faster, name) -> None:
    faster(name)
    trained = Trainer(tiny_config(), run_dir=tmp_path).fit().result
    files = RunFolder(tmp_path)
    assert trained["product"] == name
    assert read_json(files.env)["product"] == name
    assert read_checkpoint(files.checkpoint)[1]["train.product"] == name
    faster(OTHER[name])
    again = evaluate_run(tmp_path)
    assert (again["product"], again["metrics"]) == (name, trained["metrics"])
    assert Predictor(tmp_path).product == name
    assert evaluate_run(tmp_path, [f"train.product={OTHER[name]}"])["product"] == OTHER[name]


@pytest.mark.parametrize("name", product.ROUTES)
def test_a_run_goes_on_by_the_route_by_which_it_began(tmp_path, faster, name) -> None:
    faster(name)
    Trainer(tiny_config(), run_dir=tmp_path / "whole").fit()
    interrupted(tmp_path / "parts")
    faster(OTHER[name])
    Trainer(tiny_config(), run_dir=tmp_path / "parts").fit()
    whole, parts = (read_json(tmp_path / part / "result.json") for part in ("whole", "parts"))
    assert (whole["product"], whole["metrics"]) == (parts["product"], parts["metrics"])
    assert whole["adapter_sha256"] == parts["adapter_sha256"]


def test_a_route_given_by_name_is_a_setting_like_others(tmp_path, faster) -> None:
    faster("onednn")
    interrupted(tmp_path)
    with pytest.raises(CheckpointError, match=r"train.product: 'onednn' -> 'torch'"):
        Trainer(tiny_config({"train": {"product": "torch"}}), run_dir=tmp_path).fit()


def test_runs_of_before_the_choice_multiplied_by_torch(tmp_path, faster) -> None:
    faster("onednn")
    files = RunFolder(tmp_path)
    write_json(files.result, {"precision": "float32"})
    assert product_of_run(tmp_path, tiny_config()) == "torch"
    assert config_hash(tiny_config()) == config_hash(tiny_config({"train": {"product": "auto"}}))


def test_a_route_that_is_not_there_is_said_before_the_run(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(product, "has_onednn", lambda: False)
    with pytest.raises(UserValueError, match=r"train.product=onednn.*use torch"):
        Trainer(tiny_config({"train": {"product": "onednn"}}), run_dir=tmp_path / "run").fit()
    assert not (tmp_path / "run" / "result.json").exists()
    with pytest.raises(ConfigError, match=r"train.product"):
        tiny_config({"train": {"product": "mkl"}})


def test_a_finished_run_is_used_without_its_route_and_says_so(tmp_path, monkeypatch, caplog) -> None:
    monkeypatch.setattr(product, "has_onednn", lambda: False)
    caplog.set_level(logging.WARNING, "pcl_clora")
    write_json(RunFolder(tmp_path).result, {"product": "onednn"})
    assert product_of_run(tmp_path, tiny_config()) == "torch"
    assert "last digits" in caplog.text
