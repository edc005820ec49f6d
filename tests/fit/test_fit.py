"""A folder of files becomes a model: splits, folds, pose, warnings, page."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest
from typer.testing import CliRunner

import pcl_clora
from pcl_clora.cli import app
from pcl_clora.data.dataset import split_folds
from pcl_clora.data.readers.folder import FolderConfig
from pcl_clora.errors import UserValueError
from pcl_clora.fit import fit
from pcl_clora.fit.judged import wilson
from pcl_clora.fit.look import look
from pcl_clora.io import DataError
from tests.support.fit_cases import SMALL, shape, silent, write_folder


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A fit of 24 files, cross-validated in two folds."""
    folder = tmp_path_factory.mktemp("fit")
    root, lines = write_folder(folder / "scans"), []
    settings = {"steps": 12, "num_points": 64, "folds": 2, "up": "y", "overrides": SMALL}
    return fit(root, folder / "run", tell=lines.append, **settings), lines


@pytest.mark.slow
def test_every_cloud_is_judged_once_by_a_model_that_had_not_seen_it(fitted):
    found, lines = fitted
    assert found.cross_validated
    assert found.judged == 24
    assert found.interval[0] <= found.score <= found.interval[1]
    assert any("fold 2 of 2" in line for line in lines)


@pytest.mark.slow
def test_the_folder_of_the_run_predicts_files(fitted):
    found, _ = fitted
    said = pcl_clora.load(found.run_dir, device="cpu")(shape("rod", np.random.default_rng(9)))
    assert said.name in {"ball", "plate", "rod"}
    content = json.loads((found.run_dir / "fit.json").read_text())
    assert content["judged"] == 24
    assert sum(map(sum, content["confusion"])) == 24


@pytest.mark.slow
def test_the_page_says_how_sure_it_is_and_loads_nothing(fitted):
    found, _ = fitted
    page = found.page.read_text(encoding="utf-8")
    assert "in 95 of 100 cases" in page
    assert "24 clouds" in page
    assert "http" not in page


@pytest.mark.slow
def test_the_command_goes_on_where_it_is_finished_already(fitted):
    found, _ = fitted
    root = found.run_dir.parent / "scans"
    command = ["fit", root, "--out", found.run_dir, "--steps", 12, "--points", 64, "--folds", 2, "--up", "y"]
    done = CliRunner().invoke(app, [*map(str, command), *SMALL, "--json"], catch_exceptions=False)
    assert json.loads(done.stdout)["accuracy"] == found.score


@pytest.mark.slow
def test_a_folder_with_splits_is_judged_on_its_test_split(tmp_path):
    root = write_folder(tmp_path / "scans", splits=True)
    found = fit(root, tmp_path / "run", steps=4, num_points=64, up="mixed", overrides=SMALL, tell=silent)
    assert (found.cross_validated, found.judged) == (False, 6)
    with pytest.raises(UserValueError, match="folds=3, but the files have splits of their own"):
        fit(root, tmp_path / "other", folds=3, num_points=64, up="y", tell=silent)


def look_at(root: Path, **settings: object):
    config = FolderConfig(root=str(root), num_points=64, repeat=True)
    return look(config, **{"up": "y", "model": "point_mae_tiny", "weights": "builtin", **settings})


def test_small_and_uneven_classes_are_named(tmp_path):
    write_folder(tmp_path, each=22, kinds=("ball",))
    write_folder(tmp_path, each=2, kinds=("rod",))
    warnings = " ".join(look_at(tmp_path).warnings)
    assert "fewer than 5 clouds: rod (2)" in warnings
    assert "ball has 22 clouds and rod 2" in warnings


def test_copies_are_found_across_classes_and_splits(tmp_path):
    write_folder(tmp_path, splits=True)
    (tmp_path / "train" / "rod" / "copy.npy").write_bytes((tmp_path / "test" / "rod" / "0.npy").read_bytes())
    (tmp_path / "train" / "ball" / "copy.npy").write_bytes(
        (tmp_path / "train" / "rod" / "2.npy").read_bytes()
    )
    warnings = " ".join(look_at(tmp_path).warnings)
    assert "are the same file, in train and in test" in warnings
    assert "are the same file under two classes (ball, rod)" in warnings


def test_a_test_cloud_in_another_order_and_unit_is_nearly_a_training_cloud(tmp_path):
    write_folder(tmp_path, splits=True)
    points = np.load(tmp_path / "test" / "rod" / "0.npy")
    np.save(tmp_path / "train" / "rod" / "copy.npy", 1000 * points[::-1])
    config = FolderConfig(root=str(tmp_path), num_points=96, repeat=True)
    warnings = " ".join(look(config, up="y", model="point_mae_tiny", weights="builtin").warnings)
    assert "1 test clouds are nearly the same as a training cloud" in warnings


def test_a_folder_without_faults_has_no_warning_about_them(tmp_path):
    assert look_at(write_folder(tmp_path)).warnings == ()


def test_the_pose_is_looked_for_where_it_is_not_told(tmp_path):
    found = look_at(write_folder(tmp_path), up=None)
    assert set(found.pose.accuracies) == {"x", "y", "z"}
    assert found.up == "y"


@pytest.mark.parametrize("right", [0, 3, 17, 40])
def test_the_interval_is_wilsons(right):
    wanted = binomtest(right, 40).proportion_ci(0.95, method="wilson")
    assert wilson(right, 40) == pytest.approx((wanted.low, wanted.high), abs=1e-9)


@pytest.mark.parametrize("folds", [2, 3, 5])
def test_folds_test_every_sample_once_and_every_class_evenly(folds):
    labels = [0] * 11 + [1] * 5 + [2] * 7
    parts = split_folds(labels, folds, 0)
    assert sorted(at for _, test in parts for at in test.tolist()) == list(range(23))
    for train, test in parts:
        assert not set(train.tolist()) & set(test.tolist())
        for label, count in ((0, 11), (1, 5), (2, 7)):
            assert abs(sum(labels[at] == label for at in test.tolist()) - count / folds) < 1


@pytest.mark.parametrize(
    ("values", "message"),
    [({"folds": 1}, "folds=1"), ({"folds": 3, "fold": 3}, "a fold below it"), ({"fold": 1}, "or neither")],
    ids=str,
)
def test_wrong_folds_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        FolderConfig(root="scans", **values)


def test_one_class_is_refused_with_the_remedy(tmp_path):
    write_folder(tmp_path, kinds=("ball",))
    with pytest.raises(UserValueError, match="holds one class"):
        look_at(tmp_path)


def test_a_folder_without_classes_is_refused(tmp_path):
    (tmp_path / "scan.xyz").write_text("0 0 0\n")
    with pytest.raises(DataError, match="class"):
        fit(tmp_path, tmp_path / "run", tell=silent)
