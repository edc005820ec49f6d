"""Probes: the accuracies of scikit-learn on features that a frozen backbone gives."""

import pytest
import torch
from sklearn.datasets import make_classification
from sklearn.neighbors import KNeighborsClassifier

from pcl_clora.data import PointLoader, build_dataset
from pcl_clora.engine.probes import extract_features, knn_accuracy, svm_accuracy
from pcl_clora.models import create_model

TINY = {
    "embed_dim": 24,
    "depth": 1,
    "num_heads": 2,
    "num_groups": 8,
    "group_size": 4,
    "encoder_widths": (8, 16, 32),
}


def labelled_features():
    values, labels = make_classification(
        600, 16, n_informative=8, n_classes=4, n_clusters_per_class=2, random_state=0
    )
    values, labels = torch.from_numpy(values).float(), torch.from_numpy(labels).long()
    return (values[:400], labels[:400]), (values[400:], labels[400:])


@pytest.mark.parametrize("neighbors", [1, 5, 20])
def test_knn_is_that_of_scikit_learn(neighbors):
    train, test = labelled_features()
    mean = train[0].mean(0)
    oracle = KNeighborsClassifier(
        neighbors,
        metric="cosine",
        weights=lambda distance: torch.exp(-torch.as_tensor(distance) / 0.07).numpy(),
    )
    oracle.fit(train[0] - mean, train[1])
    expected = oracle.score(test[0] - mean, test[1])
    assert knn_accuracy(train, test, neighbors=neighbors) == pytest.approx(expected, abs=0.006)


def test_more_neighbors_than_clouds_are_all_clouds():
    train, test = labelled_features()
    few = (train[0][:7], train[1][:7])
    assert knn_accuracy(few, test, neighbors=50) == knn_accuracy(few, test, neighbors=7)


def test_the_machine_separates_what_is_separable_and_guesses_what_is_not():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 3
    apart = torch.nn.functional.one_hot(labels, 3) * 4.0 + torch.randn(300, 3, generator=generator)
    noise = torch.randn(300, 3, generator=generator)
    assert svm_accuracy((apart[:200], labels[:200]), (apart[200:], labels[200:])) > 0.9
    assert svm_accuracy((noise[:200], labels[:200]), (noise[200:], labels[200:])) < 0.5


@pytest.mark.parametrize("task", ["classification", "pretraining"])
def test_features_are_maximum_and_mean_of_the_patch_tokens(task):
    torch.manual_seed(0)
    model = create_model("point_mae", task=task, **TINY).train()
    clouds = build_dataset(
        {"name": "procedural", "classes": ["chair", "mug"], "test_size": 6, "num_points": 64}, "test"
    )
    features, labels = extract_features(model, PointLoader(clouds, 4), 64)
    assert model.training
    model.eval()
    with torch.no_grad():
        tokens = model.forward_features(clouds.read_batch(range(6)).points)[:, -8:]
    torch.testing.assert_close(features, torch.cat([tokens.amax(1), tokens.mean(1)], 1), atol=1e-5, rtol=0)
    assert labels.tolist() == clouds.labels.tolist()
