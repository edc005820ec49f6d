"""Data of other classes than those that a run was trained on; names of runs; batches of one cloud."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pcl_clora.config import ConfigError
from pcl_clora.engine import RunFolder, Trainer, evaluate_run
from pcl_clora.predict import Predictor
from tests.engine.test_engine_run_folder import folder_of_clouds
from tests.support.engine_cases import CLORA, tiny_config
from tests.support.part_layouts import FOLDERS, IDS, make_part_text
from tests.support.rule_runs import PARTS

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


@pytest.fixture(scope="module")
def part_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run on the parts of caps and mugs: its folder and that of its data."""
    folder = tmp_path_factory.mktemp("parts")
    make_part_text(folder / "data")
    model = {**PARTS, "num_classes": 3}
    data = {"name": "shapenetpart_txt", "root": str(folder / "data"), "num_points": 48}
    optim = {"epochs": 1, "warmup_epochs": 0, "batch_size": 2}
    cfg = tiny_config({**CLORA, "model": model, "data": data, "optim": optim})
    Trainer(cfg, run_dir=folder / "run").fit()
    return folder / "run", folder / "data"


def renumbered(source: Path, root: Path, ids: dict[str, Any]) -> Path:
    """A copy of part data with other part labels, and categories in the order of `ids`."""
    shutil.copytree(source, root)
    (root / "seg_classes.json").write_text(json.dumps(ids))
    for category, folder in FOLDERS.items():
        if category not in ids:
            shutil.rmtree(root / folder)
            continue
        for file in (root / folder).iterdir():
            rows = np.loadtxt(file)
            place = rows[:, -1].astype(int) - IDS[category][0]
            rows[:, -1] = [ids[category][each] for each in place]
            np.savetxt(file, rows, fmt="%.6f")
    kept = {name: folder for name, folder in FOLDERS.items() if name in ids}
    (root / "synsetoffset2category.txt").write_text("".join(f"{n}\t{f}\n" for n, f in kept.items()))
    for listing in (root / "train_test_split").iterdir():
        lines = [line for line in json.loads(listing.read_text()) if line.split("/")[1] in kept.values()]
        listing.write_text(json.dumps(lines))
    return root


@pytest.mark.parametrize(
    "ids",
    [{"Mug": [0, 1, 2], "Cap": [3, 4]}, {"Mug": [4, 0, 2], "Cap": [1, 3]}, {"Mug": [0, 1, 2]}],
    ids=str,
)
def test_parts_are_matched_by_the_names_of_their_categories(
    part_run: tuple[Path, Path], tmp_path: Path, ids: dict[str, list[int]], caplog: pytest.LogCaptureFixture
) -> None:
    root = renumbered(part_run[1], tmp_path / "data", ids)

    found = evaluate_run(part_run[0], [f"data.root={root}"])["metrics"]

    expected = result_of(part_run[0])
    missing = [name for name in FOLDERS if name not in ids]
    assert found["per_category"] == pytest.approx({**expected["per_category"], **dict.fromkeys(missing)})
    if not missing:
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-5)
        assert found["instance_miou"] == pytest.approx(expected["instance_miou"])
    assert "matched by their names" in caplog.text


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ({"Cap": [0, 1, 5], "Mug": [2, 3, 4]}, r"knows the parts Cap/part0, Cap/part1, .* have Cap/part2"),
        ({"Cap": {"top": 0, "peak": 1}, "Mug": [2, 3, 4]}, r"have Cap/top, Cap/peak"),
    ],
    ids=str,
)
def test_parts_that_the_run_does_not_know_are_refused(
    part_run: tuple[Path, Path], tmp_path: Path, ids: dict[str, Any], message: str
) -> None:
    root = Path(shutil.copytree(part_run[1], tmp_path / "data"))
    (root / "seg_classes.json").write_text(json.dumps(ids))

    with pytest.raises(ConfigError, match=message):
        evaluate_run(part_run[0], [f"data.root={root}"])


def test_a_category_that_the_run_does_not_know_is_refused(
    part_run: tuple[Path, Path], tmp_path: Path
) -> None:
    root = Path(shutil.copytree(part_run[1], tmp_path / "data"))
    (root / "seg_classes.json").write_text(json.dumps({"Hat": [0, 1], "Mug": [2, 3, 4]}))
    categories = root / "synsetoffset2category.txt"
    categories.write_text(categories.read_text().replace("Cap", "Hat"))

    with pytest.raises(ConfigError, match=r"knows the categories Cap, Mug, and the data have Hat"):
        evaluate_run(part_run[0], [f"data.root={root}"])


def test_truth_and_prediction_of_other_labels_are_shown_as_one(
    part_run: tuple[Path, Path], tmp_path: Path
) -> None:
    root = renumbered(part_run[1], tmp_path / "data", {"Mug": [0, 1, 2], "Cap": [3, 4]})

    shown = Predictor(part_run[0], data=root).dataset()
    known = Predictor(part_run[0]).dataset()

    by_path = {Path(one.path).name: one for one in (known[k] for k in range(len(known)))}
    for index in range(len(shown)):
        expected = by_path[Path(shown[index].path).name]
        assert torch.equal(shown[index].part_labels, expected.part_labels)
        assert (shown[index].category, shown[index].label) == (expected.category, expected.label)
