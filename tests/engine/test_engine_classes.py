"""Data of other classes than those that a run was trained on; names of runs; batches of one cloud."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pcl_clora.config import ConfigError
from pcl_clora.engine import RunFolder, Trainer, evaluate_run
from tests.engine.test_engine_run_folder import folder_of_clouds
from tests.support.engine_cases import CLORA, tiny_config

SHORT = {**CLORA, "optim": {"epochs": 3, "warmup_epochs": 0}}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run on ball, box and pole: its folder and that of its data."""
    folder = tmp_path_factory.mktemp("classes")
    folder_of_clouds(folder / "data", {"ball": 4, "box": 5, "pole": 6})
    data = {"name": "folder", "root": str(folder / "data"), "num_points": 64}
    Trainer(tiny_config({**SHORT, "data": data}), run_dir=folder / "run").fit()
    return folder / "run", folder / "data"


def result_of(folder: Path) -> Any:
    return json.loads(RunFolder(folder).result.read_text())["metrics"]


def test_eval_refuses_classes_that_the_run_does_not_know(run: tuple[Path, Path], tmp_path: Path) -> None:
    root = Path(shutil.copytree(run[1], tmp_path / "data"))
    for split in ("train", "test"):
        (root / split / "pole").rename(root / split / "apillar")
    with pytest.raises(ConfigError, match=r"knows the classes ball, box, pole, and the data have apillar"):
        evaluate_run(run[0], [f"data.root={root}"])


@pytest.mark.parametrize("left_out", ["ball", "pole"])
def test_some_of_the_classes_are_matched_by_name(
    run: tuple[Path, Path], tmp_path: Path, left_out: str, caplog: pytest.LogCaptureFixture
) -> None:
    root = Path(shutil.copytree(run[1], tmp_path / "data"))
    for split in ("train", "test"):
        shutil.rmtree(root / split / left_out)
    found = evaluate_run(run[0], [f"data.root={root}"])["metrics"]
    expected = {**result_of(run[0])["per_class"], left_out: None}
    assert found["per_class"] == expected
    assert "matched by the names of their classes" in caplog.text


@pytest.mark.slow
def test_classes_in_another_order_give_the_same_numbers(tmp_path: Path) -> None:
    Trainer(tiny_config(SHORT), run_dir=tmp_path).fit()
    found = evaluate_run(tmp_path, ["data.classes=[table, bottle, chair]"])["metrics"]
    assert list(found["per_class"]) == ["bottle", "chair", "table"]
    assert sum(map(sum, found["confusion"])) == 24
    with pytest.raises(ConfigError, match=r"the data have sofa"):
        evaluate_run(tmp_path, ["data.classes=[bottle, chair, sofa]"])


@pytest.mark.parametrize(
    "name",
    [
        "..",
        ".",
        "../x",
        "/tmp/x",
        "~",
        "~root",
        "a/b",
        "a\\b",
        "a\nb",
        "a\x1b[2J",
        "a\u202eb",
        "",
        " ",
        "x" * 201,
    ],
)
def test_a_name_that_is_not_one_folder_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="name: "):
        tiny_config({"name": name})


@pytest.mark.parametrize("name", ["a b", "a;b", "modelnet40_tiny", "caf\u00e9", "x" * 200, "v1.2", "-x"])
def test_other_names_are_taken(name: str) -> None:
    assert tiny_config({"name": name}).name == name


def test_a_batch_of_one_is_refused_before_training(tmp_path: Path) -> None:
    cfg = tiny_config({**SHORT, "optim": {"epochs": 1, "warmup_epochs": 0, "batch_size": 1}})
    torch.manual_seed(0)
    with pytest.raises(ConfigError, match=r"optim\.batch_size=1, but .* set optim\.batch_size=2 or more"):
        Trainer(cfg, run_dir=tmp_path).fit()
    assert not RunFolder(tmp_path).metrics.exists()


def test_a_batch_of_one_is_taken_by_a_model_without_such_a_norm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pcl_clora.models import build_model

    cfg = tiny_config({**SHORT, "optim": {"epochs": 1, "warmup_epochs": 0, "batch_size": 1}})
    model: Any = build_model(cfg.model)
    for name, module in list(model.named_modules()):
        for child, inner in list(module.named_children()):
            if isinstance(inner, torch.nn.BatchNorm1d) and name.startswith("head"):
                setattr(module, child, torch.nn.Identity())
    assert Trainer(cfg, run_dir=tmp_path, model=model).fit().result["steps"] == 60


def test_what_is_told_shows_no_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    import sys

    from pcl_clora.engine.progress import make_progress

    progress: Callable[..., Any] = make_progress
    shown = progress("plain", sys.stderr)
    shown.start(1, 1, 0)
    shown.update({"kind": "message", "text": "class \x1b[2J\u202e\nsecond line"})
    assert "class \\x1b[2J\\u202e\nsecond line" in capsys.readouterr().err
