"""A folder of labelled files becomes a segmenter: parts, interval, page."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from scipy.stats import bootstrap as scipy_bootstrap

import pcl_clora
from pcl_clora.data.readers.labelled_folder import LabelledFolderConfig
from pcl_clora.errors import UserValueError
from pcl_clora.fit import fit
from pcl_clora.fit.judged import bootstrap
from pcl_clora.fit.look import look
from pcl_clora.io import DataError, read_points
from tests.support.fit_cases import SMALL, silent, write_labelled


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """A fit of 8 labelled files with a test split."""
    folder = tmp_path_factory.mktemp("parts")
    root, lines = write_labelled(folder / "scans", splits=True), []
    settings = {"steps": 40, "num_points": 64, "overrides": (*SMALL, "optim.batch_size=4")}
    return fit(root, folder / "run", tell=lines.append, **settings), lines


@pytest.mark.slow
def test_a_labelled_folder_is_learnt_and_judged_by_the_mean_iou(fitted):
    found, lines = fitted
    assert found.judged == 2
    assert found.score > 0.8
    assert found.interval[0] <= found.score <= found.interval[1]
    assert any("8 clouds with 2 parts, of their points: plate " in line for line in lines)
    content = json.loads((found.run_dir / "fit.json").read_text())
    assert set(content["per_part"]) == {"plate", "rod"}
    assert sum(map(sum, content["confusion"])) == 2 * 64
    assert found.score == pytest.approx(content["miou"])


@pytest.mark.slow
def test_the_run_uses_the_small_head_and_names_the_parts_of_new_files(fitted):
    found, _ = fitted
    predictor = pcl_clora.load(found.run_dir, device="cpu")
    assert predictor.cfg.model.segmentation_head == "small"
    file = found.run_dir.parent / "scans" / "test" / "0.ply"
    said, truth = predictor(file), read_points(file, labels="part").fields["labels"]
    assert said.names == ("plate", "rod")
    assert np.mean(said.label == (truth == 4)) > 0.9


@pytest.mark.slow
def test_the_page_shows_every_part_and_how_sure_the_mean_is(fitted):
    page = fitted[0].page.read_text(encoding="utf-8")
    for text in ("mean IoU", "in 95 of 100 cases", "Parts, hardest first", "<td>rod</td>", "--points 2048"):
        assert text in page
    assert "http" not in page


def look_at(root, **settings):
    config = LabelledFolderConfig(root=str(root), num_points=64, repeat=True, labels="part", **settings)
    return look(config, up="y", model="point_mae_tiny", weights="builtin")


def test_rare_and_missing_parts_are_named(tmp_path):
    write_labelled(tmp_path, each=6)
    (tmp_path / "parts.yaml").write_text("{1: plate, 4: rod, 5: knob}")
    assert any("no point is labelled knob" in text for text in look_at(tmp_path).warnings)
    content = read_points(tmp_path / "0.ply", labels="part")
    labels = content.fields["labels"].copy()
    labels[:2] = 5
    from pcl_clora.io import write_points

    write_points(tmp_path / "0.ply", content.points, {"part": labels})
    warnings = " ".join(look_at(tmp_path, seed=2).warnings)
    assert "parts that fewer than 5 clouds have: knob (1)" in warnings
    assert "parts with less than 1 % of the points: knob" in warnings


def test_all_broken_files_are_one_error(tmp_path):
    write_labelled(tmp_path, each=6)
    for number in (1, 4):
        (tmp_path / f"{number}.ply").write_text("ply\nbroken")
    with pytest.raises(DataError, match=r"(?s)2 problems.*1\.ply.*4\.ply"):
        look_at(tmp_path)


def test_one_file_leaves_nothing_to_judge_by(tmp_path):
    write_labelled(tmp_path, each=1)
    with pytest.raises(UserValueError, match="leaves none that judges the model; give five or more"):
        fit(tmp_path, tmp_path / "run", tell=silent)


def test_labels_without_names_of_parts_are_refused(tmp_path):
    with pytest.raises(
        UserValueError, match=r"labels='part' names the labels of points.*put parts\.yaml into"
    ):
        fit(tmp_path, tmp_path / "run", labels="part", tell=silent)


def test_the_interval_of_a_mean_is_that_of_a_bootstrap():
    values = np.random.default_rng(0).beta(8, 2, size=40)
    wanted = scipy_bootstrap(
        (values,), np.mean, n_resamples=9999, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    # The tolerance is that of 2,000 resamples: about a twentieth of the interval's width.
    assert bootstrap(torch.from_numpy(values)) == pytest.approx((wanted.low, wanted.high), abs=0.005)
