"""`PointClassifier` and `PointSegmenter` in scikit-learn's hands, and without it."""

import pickle
import subprocess
import sys

import numpy as np
import pytest

import pcl_clora
from pcl_clora.data import build_dataset
from pcl_clora.estimators import PointClassifier, PointSegmenter, mean_iou, mean_iou_scorer
from tests.support.cli_cases import TINY

SMALL = {key: value for key, value in TINY["model"].items() if key not in ("name", "num_classes")}
FAST = {
    "model": "point_mae", "weights": "", "method": "linear_probe", "num_points": 48, "steps": 4,
    "batch_size": 6,
}  # fmt: skip
CLASSIFIER = {**FAST, "settings": {"model": SMALL}}
SEGMENTER = {
    **FAST,
    "settings": {"model": {**SMALL, "propagation_widths": [16, 12], "segmentation_widths": [12, 8],
                           "label_width": 4, "fetch_layers": [0, 1]}},
}  # fmt: skip


@pytest.fixture(scope="module")
def shapes():
    """Twelve clouds of two classes and of different sizes, with the parts of their points."""
    data = {
        "name": "procedural",
        "classes": ["chair", "mug"],
        "train_size": 12,
        "test_size": 2,
        "num_points": 80,
    }
    dataset = build_dataset(data, "train")
    samples = [dataset[k] for k in range(len(dataset))]
    clouds = [sample.points.numpy()[: 80 - k] * 7 + 3 for k, sample in enumerate(samples)]
    classes = np.array([dataset.class_names[sample.label] for sample in samples])
    parts = [np.where(cloud[:, 1] > np.median(cloud[:, 1]), "top", "bottom") for cloud in clouds]
    return clouds, classes, parts


@pytest.fixture(scope="module")
def classifier(shapes):
    return PointClassifier(**CLASSIFIER).fit(shapes[0], shapes[1])


@pytest.fixture(scope="module")
def segmenter(shapes):
    return PointSegmenter(**SEGMENTER).fit(shapes[0], shapes[2])


def test_a_classifier_speaks_in_the_classes_it_was_given(classifier, shapes):
    clouds, classes, _ = shapes

    probability, said = classifier.predict_proba(clouds), classifier.predict(clouds)

    assert classifier.classes_.tolist() == ["chair", "mug"]
    assert probability.shape == (12, 2)
    np.testing.assert_allclose(probability.sum(axis=1), 1, atol=1e-5)
    assert said.tolist() == classifier.classes_[probability.argmax(axis=1)].tolist()
    assert classifier.score(clouds, classes) == np.mean(said == classes)
    assert classifier.transform(clouds).shape == (12, 48)


def test_enough_steps_learn_what_they_are_shown(shapes):
    clouds, classes, _ = shapes

    found = PointClassifier(**{**CLASSIFIER, "method": "full", "steps": 100, "lr": 5e-3}).fit(clouds, classes)

    assert found.score(clouds, classes) >= 0.9


def test_a_segmenter_labels_every_point_as_it_was_given(segmenter, shapes):
    clouds, _, parts = shapes

    said, probability = segmenter.predict(clouds), segmenter.predict_proba(clouds)

    assert [each.shape for each in said] == [each.shape for each in parts]
    assert set(np.concatenate(said)) <= {"bottom", "top"}
    assert probability[3].shape == (len(clouds[3]), 2)
    assert segmenter.score(clouds, parts) == mean_iou(parts, said)
    assert segmenter.transform(clouds).shape[0] == 12


def test_the_mean_iou_is_that_of_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    random = np.random.default_rng(0)
    truth, said = ([random.integers(0, 3, 50) for _ in range(4)] for _ in range(2))

    expected = np.mean(
        [metrics.jaccard_score(a, b, average="macro") for a, b in zip(truth, said, strict=True)]
    )

    assert mean_iou(truth, said) == pytest.approx(expected)
    with pytest.raises(ValueError, match="cloud 0: labels"):
        mean_iou([np.zeros(3)], [np.zeros(4)])


def test_cross_validation_and_search_of_scikit_learn_take_both(shapes):
    selection = pytest.importorskip("sklearn.model_selection")
    clouds, classes, parts = shapes

    accuracy = selection.cross_val_score(PointClassifier(**CLASSIFIER), clouds, classes, cv=2)
    search = selection.GridSearchCV(PointClassifier(**CLASSIFIER), {"lr": [1e-3, 1e-2]}, cv=2, refit=False)
    search.fit(clouds, classes)
    folds = selection.KFold(2)
    iou = selection.cross_val_score(
        PointSegmenter(**SEGMENTER), clouds, parts, cv=folds, scoring=mean_iou_scorer, error_score="raise"
    )

    assert accuracy.shape == (2,)
    assert search.best_params_["lr"] in (1e-3, 1e-2)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert ((iou > 0) & (iou <= 1)).all()


def test_pipelines_of_scikit_learn_take_it_first_and_last(shapes):
    pytest.importorskip("sklearn")
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer
    from sklearn.svm import LinearSVC

    clouds, classes, _ = shapes
    halve = FunctionTransformer(lambda given: [cloud[::2] for cloud in given])

    last = make_pipeline(halve, PointClassifier(**CLASSIFIER)).fit(clouds, classes)
    first = make_pipeline(PointClassifier(**CLASSIFIER), LinearSVC()).fit(clouds, classes)

    assert 0 <= last.score(clouds, classes) <= 1
    assert first.predict(clouds).shape == (12,)


def test_parameters_are_cloned_set_and_shown():
    base = pytest.importorskip("sklearn.base")
    model = PointClassifier(steps=7, lr=0.1)

    copied = base.clone(model)

    assert copied is not model
    assert copied.get_params() == model.get_params()
    assert model.set_params(steps=8).steps == 8
    assert repr(model) == "PointClassifier(steps=8, lr=0.1)"
    assert base.is_classifier(model)
    assert not base.is_classifier(PointSegmenter())
    with pytest.raises(ValueError, match="has no parameter 'stepps'; it has model, weights"):
        model.set_params(stepps=1)


def test_what_is_fitted_can_be_pickled_and_saved(classifier, shapes, tmp_path):
    clouds = shapes[0][:3]
    expected = classifier.predict_proba(clouds)

    back = pickle.loads(pickle.dumps(classifier))
    classifier.save(tmp_path / "shapes.safetensors")
    loaded = pcl_clora.load(tmp_path / "shapes.safetensors")

    np.testing.assert_array_equal(back.predict_proba(clouds), expected)
    np.testing.assert_allclose(loaded(clouds[0]).probability, expected[0], atol=1e-5)
    assert loaded.names == ("chair", "mug")


def test_training_again_gives_the_same(classifier, shapes):
    again = PointClassifier(**CLASSIFIER).fit(shapes[0], shapes[1])

    np.testing.assert_array_equal(again.predict_proba(shapes[0]), classifier.predict_proba(shapes[0]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda x, y, p: PointClassifier().predict(x), r"not fitted; call fit\(clouds, labels\) first"),
        (lambda x, y, p: PointClassifier().fit(x[0], y), "X is one cloud"),
        (lambda x, y, p: PointClassifier().fit(x, y[:3]), r"y is \(3,\) for 12 clouds"),
        (lambda x, y, p: PointClassifier().fit(x, ["a"] * 12), "y has 1 class; a classifier needs two"),
        (
            lambda x, y, p: PointClassifier().fit([x[0], x[1] * np.nan], y[:2]),
            r"X\[1\] has values that are not",
        ),
        (lambda x, y, p: PointClassifier().fit([x[0], x[1][:, :2]], y[:2]), r"X\[1\] is float32 \(79, 2\)"),
        (lambda x, y, p: PointClassifier().fit([x[0], x[1][:0]], y[:2]), r"X\[1\] is float32 \(0, 3\)"),
        (lambda x, y, p: PointClassifier(batch_size=1).fit(x, y), "in batches of 1; give two or more"),
        (lambda x, y, p: PointClassifier(steps=0).fit(x, y), "steps=0; give 1 or more"),
        (lambda x, y, p: PointSegmenter().fit(x, p[:2]), "y has labels of 2 clouds, X has 12"),
        (lambda x, y, p: PointSegmenter().fit(x, [*p[:11], p[11][1:]]), r"y\[11\] is \(68,\) for 69 points"),
        (lambda x, y, p: PointSegmenter().fit(x, [np.zeros(len(c)) for c in x]), "y has 1 label"),
    ],
)
def test_what_cannot_be_learnt_is_refused(shapes, make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make(*shapes)


def test_no_scikit_learn_is_imported_by_itself():
    code = "import sys; from pcl_clora.estimators import PointClassifier; sys.exit('sklearn' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_held_clouds_are_no_data_set_for_a_config_file():
    with pytest.raises(ValueError, match="for clouds in the memory of a program"):
        build_dataset({"name": "arrays"}, "train")
