import struct

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import jaccard_score
from torch import nn

from pcl_clora import ops
from pcl_clora.data import PartTaxonomy
from pcl_clora.engine.run_pictures import CELL
from pcl_clora.io import DataError, write_points
from pcl_clora.predict import Predictor
from pcl_clora.vis import render_html
from pcl_clora.vis.files import read_cloud, read_labels
from pcl_clora.vis.look import watching
from pcl_clora.vis.segmentation import (
    cloud_iou,
    segment_points,
    segment_sample,
    segment_test_set,
    side_by_side,
)
from tests.support.vis_cases import page_data


@pytest.fixture(scope="module")
def segmenter(segmentation_run):
    return Predictor(segmentation_run)


def look(model, points, *more):
    with watching(model) as seen, torch.inference_mode():
        model(points[None], *(value[None] for value in more))
    return seen(points)


def hooks(model):
    """Count them, without the one by which a predictor takes the features of a cloud."""
    taps = len(model.get_classifier()._forward_pre_hooks)
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()) - taps


def test_the_attention_of_the_class_token_is_that_of_the_last_block(classification_run):
    model = Predictor(classification_run).model
    points = torch.rand(1, 48, 3, generator=torch.Generator().manual_seed(0))
    before = model(points)

    seen = look(model, points[0])

    tokens = model.base.tokenize(points)
    x = tokens.x
    for block in model.base.blocks[:-1]:
        x = block(x, tokens.pos, tokens)
    block = model.base.blocks[-1]
    qkv = block.attn.qkv(block.norm1(x + tokens.pos)).view(1, 9, 3, 2, 12).permute(2, 0, 3, 1, 4)
    weights = F.scaled_dot_product_attention(qkv[0], qkv[1], torch.eye(9).expand(1, 2, 9, 9))
    torch.testing.assert_close(seen.attention, 8 * weights[0, :, 0, 1:].mean(dim=0), atol=1e-5, rtol=1e-5)
    assert seen.of_class_token
    assert torch.equal(model(points), before)
    assert hooks(model) == 0


def test_without_a_class_token_the_attention_is_the_mean_and_shares_sum_to_one(segmenter):
    points = torch.rand(48, 3, generator=torch.Generator().manual_seed(0))

    seen = look(segmenter.model, points, torch.tensor(0))

    assert not seen.of_class_token
    assert float(seen.attention.mean()) == pytest.approx(1.0, abs=1e-5)
    expected = torch.cdist(points, seen.center).argmin(dim=1)
    assert torch.equal(seen.patch, expected)


def test_hooks_are_removed_also_when_the_model_fails(segmenter):
    with pytest.raises((TypeError, RuntimeError)):
        look(segmenter.model, torch.rand(48, 3))  # the category is missing

    assert hooks(segmenter.model) == 0


def test_a_model_without_patches_is_refused():
    class Holder:
        base = nn.Linear(3, 3)

    with pytest.raises(ValueError, match="Linear does not cut clouds into patches"):
        look(Holder(), torch.rand(4, 3))


def test_the_iou_of_a_cloud_is_the_jaccard_index_of_its_parts():
    generator = np.random.default_rng(0)
    taxonomy = PartTaxonomy.counted({"a": ["x"], "b": ["p", "q", "r"]})
    truth, said = generator.integers(1, 4, 200), generator.integers(1, 4, 200)

    ious, miou = cloud_iou(taxonomy, 1, truth, said)

    expected = jaccard_score(truth, said, labels=[1, 2, 3], average=None)
    assert [ious[part] for part in (1, 2, 3)] == pytest.approx(expected.tolist())
    assert miou == pytest.approx(expected.mean())


def test_a_cloud_of_the_test_set_shows_everything_that_is_known(segmenter):
    (found,) = segment_test_set(segmenter, [1])

    panels = found.panels()

    shown = [panel.show for panel in panels]
    assert shown == ["truth", "prediction", "error", "patches", "confidence", "attention, mean over tokens"]
    wrong = next(layer for layer in panels[2].layers if layer.name == "error")
    assert wrong.counts[1] == int((found.truth != found.prediction).sum())
    assert len(panels[0].centers) == 8
    assert found.item().thumbnail.startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="index 99 is not there: the test split has 6 clouds"):
        next(segment_test_set(segmenter, [99]))


def test_a_cloud_passes_the_model_and_its_sampling_once(segmentation_run, monkeypatch):
    segmenter = Predictor(segmentation_run)
    sample, passes, samplings = segmenter.dataset()[0], [], []
    segmenter.model.register_forward_hook(lambda *_: passes.append(1))
    choose = ops.farthest_point_sample
    monkeypatch.setattr(
        ops, "farthest_point_sample", lambda *given, **how: samplings.append(1) or choose(*given, **how)
    )

    segmenter(sample.points, sample.category)
    alone = len(samplings)
    answer = segment_sample(segmenter, sample)

    assert len(passes) == 2
    assert len(samplings) <= 2 * alone
    assert answer.patch is not None


def test_a_mesh_is_answered_as_predict_answers_it(classification_run, tmp_path):
    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    faces = [[0, 1, 2], [0, 1, 3], [0, 2, 3], [1, 2, 3]]
    lines = ["OFF", "4 4 0", *(" ".join(map(str, corner)) for corner in corners)]
    lines += [" ".join(map(str, (3, *face))) for face in faces]
    (tmp_path / "a.off").write_text("\n".join(lines) + "\n")
    classifier = Predictor(classification_run)

    answer = segment_points(classifier, "a", corners.astype(np.float32), path=tmp_path / "a.off")

    expected = classifier.predict_file(tmp_path / "a.off")
    name = expected.names[int(expected.label)]
    assert answer.said == f"{name}, {100 * float(expected.confidence):.1f} %"
    assert answer.patch.shape == (4,)


def test_two_methods_stand_side_by_side_with_one_truth(segmenter):
    several = [next(segment_test_set(segmenter, [0], method=name)) for name in ("clora", "full")]

    titles = [panel.title for panel in side_by_side(several)]

    assert titles == ["truth", "prediction, clora", "prediction, full", "error, clora", "error, full"]


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        (np.zeros(3, np.int64), "labels for 60 points"),
        (np.full(60, 999), r"labels \[999\] are no parts of 'mug'"),
    ],
)
def test_true_labels_of_another_length_or_taxonomy_are_refused(segmenter, truth, message):
    points = np.random.default_rng(0).normal(size=(60, 3))
    with pytest.raises(ValueError, match=message):
        segment_points(segmenter, "cloud", points, category="mug", truth=truth)


def test_two_classifiers_stand_side_by_side_and_take_no_labels_of_points(classification_run):
    classifier = Predictor(classification_run)
    points = np.random.default_rng(0).normal(size=(60, 3))

    several = [segment_points(classifier, "cloud", points, method=name) for name in ("a", "b")]

    assert [panel.title for panel in side_by_side(several)][::2] == ["patches, a", "patches, b"]
    with pytest.raises(ValueError, match="a classification run has no parts"):
        segment_points(classifier, "cloud", points, truth=np.zeros(60, np.int64))


def test_a_file_with_labels_and_prediction_shows_both_and_the_errors(tmp_path):
    points = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    truth, said = np.arange(20) % 3, np.arange(20) % 2
    write_points(tmp_path / "a.npz", points, {"labels": truth, "prediction": said})

    cloud = read_cloud(tmp_path / "a.npz")

    panels = page_data(render_html(None, cloud.panels()).text)["items"][0]["panels"]
    assert [panel["title"] for panel in panels] == ["truth", "prediction", "error"]
    assert panels[2]["layers"][2]["counts"] == [int((truth == said).sum()), int((truth != said).sum())]


@pytest.mark.parametrize("name", ["labels.npy", "labels.txt", "labels.npz"])
def test_labels_come_from_a_file_of_their_own(tmp_path, name):
    labels = np.arange(7)
    if name.endswith("txt"):
        np.savetxt(tmp_path / name, labels, fmt="%d")
    elif name.endswith("npy"):
        np.save(tmp_path / name, labels)
    else:
        np.savez(tmp_path / name, labels=labels)

    np.testing.assert_array_equal(read_labels(tmp_path / name), labels)
    np.save(tmp_path / "points.npy", np.zeros((3, 3)))
    with pytest.raises(DataError, match=r"holds 7 labels, .*points\.npy has 3 points"):
        read_cloud(tmp_path / "points.npy", tmp_path / name)


@pytest.mark.parametrize(
    ("values", "message"),
    [([0.5, 1.0], "expected whole numbers"), ([[1, 2], [3, 4]], "expected whole numbers")],
)
def test_labels_that_are_no_integers_are_refused(tmp_path, values, message):
    np.save(tmp_path / "l.npy", np.array(values))

    with pytest.raises(DataError, match=message):
        read_labels(tmp_path / "l.npy")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("l.npz", b"PK\x03\x04 torn"),
        ("l.npy", b"\x93NUMPY"),
        ("l.txt", b"1 2\n3\n"),
        ("l.txt", b"\xff\x00\n"),
    ],
)
def test_a_broken_file_of_labels_is_an_error_of_ours(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=r"is not? (a )?complete"):
        read_labels(tmp_path / name)
    np.save(tmp_path / "l.npy", np.array([None, 1]))
    with pytest.raises(DataError, match="never loaded; save its numbers") as refusal:
        read_labels(tmp_path / "l.npy")
    assert "allow_pickle" not in str(refusal.value)


def test_training_shows_segmentations_in_tensorboard(segmentation_run):
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = reader.EventAccumulator(str(segmentation_run / "tensorboard"), size_guidance={"images": 0})
    events.Reload()

    name = "test: truth, prediction, errors"
    assert name in events.Tags()["images"]
    images = events.Images(name)
    assert len(images) == 2  # the curve's evaluation and the result's
    assert struct.unpack(">II", images[0].encoded_image_string[16:24]) == (3 * CELL, 4 * CELL)
    assert "eval/test/instance_miou" in events.Tags()["scalars"]


@pytest.mark.parametrize("column", [-1, 6])
def test_labels_may_stand_in_a_column_without_a_name(tmp_path, column):
    labels = np.arange(5) % 3
    np.savetxt(tmp_path / "a.txt", np.c_[np.eye(5, 3), np.ones((5, 3)), labels])

    np.testing.assert_array_equal(read_cloud(tmp_path / "a.txt", label_column=column).truth, labels)
    assert read_cloud(tmp_path / "a.txt").truth is None


@pytest.mark.parametrize(
    ("width", "column", "message"),
    [
        (4, 2, "columns 0 to 3, and labels in column 2"),
        (4, 4, "columns 0 to 3, and labels in column 4"),
        (4, -5, "labels in column -5"),
        (3, -1, "no column without a name besides x, y, z"),
        (5, -1, "expected whole numbers"),
    ],
)
def test_a_column_that_holds_no_labels_is_refused(tmp_path, width, column, message):
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(6, width)))

    with pytest.raises(DataError, match=message):
        read_cloud(tmp_path / "a.npy", label_column=column)


def test_labels_that_are_given_twice_are_refused(tmp_path):
    with pytest.raises(ValueError, match="given twice"):
        read_cloud(tmp_path / "a.txt", tmp_path / "l.txt", -1)


@pytest.mark.parametrize("name", ["labels", "prediction", "confidence"])
def test_labels_of_another_length_inside_a_file_are_refused(tmp_path, name):
    np.savez(tmp_path / "a.npz", points=np.eye(5, 3), **{name: np.zeros(3)})

    with pytest.raises(DataError, match=rf"'{name}' is \(3,\), there are 5 points"):
        read_cloud(tmp_path / "a.npz")
