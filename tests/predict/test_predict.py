import json

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from pcl_clora.config import ConfigError
from pcl_clora.data import PointLoader
from pcl_clora.engine import evaluate
from pcl_clora.io import read_points
from pcl_clora.predict import Predictor, nearest_kept, write_prediction


@pytest.fixture(scope="module")
def classifier(classification_run):
    return Predictor(classification_run)


@pytest.fixture(scope="module")
def segmenter(segmentation_run):
    return Predictor(segmentation_run)


def test_a_classifier_says_what_the_evaluation_says(classifier):
    dataset = classifier.dataset()
    loader = PointLoader(dataset, 6)
    expected = evaluate(
        classifier.model, loader, task=classifier.task, num_points=48, keep_logits=True
    ).logits

    found = [classifier(dataset[index].points).probability for index in range(len(dataset))]

    np.testing.assert_allclose(found, expected.softmax(-1).numpy(), atol=1e-5)
    assert classifier(dataset[0].points).names == ("chair", "sofa", "mug")


def test_a_segmenter_says_what_the_evaluation_says(segmenter):
    dataset = segmenter.dataset()
    loader = PointLoader(dataset, 6)
    logits = evaluate(segmenter.model, loader, task=segmenter.task, num_points=48, keep_logits=True).logits
    categories = dataset.labels
    expected = segmenter.task.meter("cpu").predict(logits, categories).numpy()

    found = [segmenter(dataset[k].points, int(categories[k])).label for k in range(len(dataset))]

    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("num_points", [1, 30, 48, 5000])
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_any_number_of_points_anywhere_gets_labels_of_its_category(segmenter, num_points, offset):
    points = np.random.default_rng(0).normal(size=(num_points, 3)) * [3, 1, 2] + offset

    found = segmenter(points, "mug")

    assert found.label.shape == (num_points,)
    assert set(found.label.tolist()) <= set(segmenter.taxonomy.ids[2])
    np.testing.assert_allclose(found.probability.sum(axis=1), 1.0, atol=1e-5)
    assert found.as_json()["points"] == num_points


def test_points_that_were_not_seen_take_the_label_of_the_nearest_one():
    generator = torch.Generator().manual_seed(0)
    cloud, kept = torch.rand(70_000, 3, generator=generator), torch.arange(0, 70_000, 700)

    found = nearest_kept(cloud, kept)

    _, expected = cKDTree(cloud[kept].double()).query(cloud.double())
    np.testing.assert_array_equal(found, expected)


def test_names_of_parts_come_from_the_run_without_its_data(segmentation_run, segmenter, monkeypatch):
    expected = segmenter.dataset().taxonomy

    for module in ("predictor", "opened"):
        refuse = lambda *_: pytest.fail("the data are not needed")  # noqa: E731
        monkeypatch.setattr(f"pcl_clora.predict.{module}.build_dataset", refuse)

    assert Predictor(segmentation_run).taxonomy == expected


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda p: p(np.zeros((0, 3)), "mug"), ValueError, r"expected \(N, 3\), N >= 1"),
        (lambda p: p(np.full((4, 3), np.nan), "mug"), ValueError, "not all finite"),
        (lambda p: p(np.zeros((4, 3))), ConfigError, "needs the category; choose one of chair, sofa, mug"),
        (lambda p: p(np.zeros((4, 3)), "cup"), ConfigError, "category 'cup' is not known"),
    ],
)
def test_what_cannot_be_predicted_is_refused(segmenter, call, error, message):
    with pytest.raises(error, match=message):
        call(segmenter)


def test_a_prediction_is_written_for_people_the_viewer_and_other_programs(segmenter, tmp_path):
    pytest.importorskip("plyfile")
    points = np.random.default_rng(0).normal(size=(300, 3)).astype(np.float32)
    prediction = segmenter(points, "chair")

    written = write_prediction(tmp_path, "scan", points, prediction, segmenter)

    assert json.loads((tmp_path / "scan.json").read_text())["category"] == "chair"
    for kind in ("npz", "ply"):
        found = read_points(written[kind])
        np.testing.assert_allclose(found.points, points)
        name = {"npz": "prediction", "ply": "labels"}[kind]
        np.testing.assert_array_equal(found.fields[name], prediction.label)
    assert found.fields["colors"].shape == (300, 3)


def test_a_scan_whose_format_says_another_axis_is_warned_about_once(
    classifier, tmp_path, caplog, monkeypatch
):
    from pcl_clora.io import write_points

    monkeypatch.setattr("pcl_clora.errors._said", set())
    points = np.random.default_rng(0).random((60, 3)).astype(np.float32)
    for number in range(2):
        write_points(tmp_path / f"{number}.bin", points)
        classifier.predict_file(tmp_path / f"{number}.bin")
    told = [record.message.partition(": ")[2] for record in caplog.records]
    assert told == ["z points up in .bin files, and y is taken to; up=z turns them."]
