"""Metrics against the golden file, scikit-learn and torchmetrics; losses against their definition."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as oracle
from torchmetrics.functional.classification import multiclass_jaccard_index

from pcl_clora.engine import ConfusionMatrix
from pcl_clora.engine.losses import classification_loss
from pcl_clora.engine.metrics.classification import metrics_from_counts

NUM_CLASSES = 6
pairs = st.lists(
    st.tuples(st.integers(0, NUM_CLASSES - 1), st.integers(0, NUM_CLASSES - 1)), min_size=1, max_size=60
)


def count(label: torch.Tensor, predicted: torch.Tensor, num_classes: int = NUM_CLASSES) -> ConfusionMatrix:
    matrix = ConfusionMatrix(num_classes)
    matrix.update(predicted, label)
    return matrix


def test_the_golden_accuracies_come_out(golden: Path) -> None:
    arrays = np.load(golden / "metrics.npz")
    label, predicted = (torch.from_numpy(arrays[key]).long() for key in ("cls_target", "cls_pred"))
    result = count(label, predicted, int(label.max()) + 1).metrics()
    assert 100 * result.oa == pytest.approx(float(arrays["cls_oa"]), abs=1e-10)
    assert 100 * result.macc == pytest.approx(float(arrays["cls_macc"]), abs=1e-10)


@settings(max_examples=40, deadline=None)
@given(pairs)
def test_all_metrics_agree_with_independent_libraries(items: list[tuple[int, int]]) -> None:
    label, predicted = torch.tensor(items).unbind(1)
    result = count(label, predicted).metrics()
    classes = list(range(NUM_CLASSES))
    assert result.confusion.tolist() == oracle.confusion_matrix(label, predicted, labels=classes).tolist()
    assert result.oa == pytest.approx(oracle.accuracy_score(label, predicted))
    present = sorted(set(label.tolist()))
    recall = oracle.recall_score(label, predicted, labels=present, average=None, zero_division=0)
    assert result.macc == pytest.approx(recall.mean())
    assert [result.per_class[index] for index in present] == pytest.approx(recall.tolist())
    assert all(math.isnan(result.per_class[index]) for index in classes if index not in present)
    iou = multiclass_jaccard_index(predicted, label, NUM_CLASSES, average="none").tolist()
    occurring = sorted({*present, *predicted.tolist()})
    # torchmetrics divides in float32
    assert [result.iou[index] for index in occurring] == pytest.approx([iou[i] for i in occurring], abs=1e-6)


@settings(max_examples=20, deadline=None)
@given(pairs, pairs)
def test_matrices_of_two_processes_add_up(one: list[tuple[int, int]], two: list[tuple[int, int]]) -> None:
    matrices = [count(*torch.tensor(items).unbind(1)).counts for items in (one, two)]
    together = count(*torch.tensor(one + two).unbind(1)).counts
    assert torch.equal(matrices[0] + matrices[1], together)
    assert together.dtype == torch.int64


def test_logits_count_as_their_largest_class() -> None:
    logits = torch.tensor([[0.0, 2.0, 1.0], [3.0, 0.0, 1.0]])
    assert torch.equal(
        count(torch.tensor([1, 2]), logits, 3).counts,
        count(torch.tensor([1, 2]), torch.tensor([1, 0]), 3).counts,
    )


def test_an_empty_matrix_has_no_metrics() -> None:
    with pytest.raises(ValueError, match="no cloud was evaluated"):
        metrics_from_counts(torch.zeros(3, 3, dtype=torch.int64))


def test_the_json_form_names_classes_and_has_no_nan() -> None:
    content = count(torch.tensor([0, 0, 1]), torch.tensor([0, 1, 1]), 3).metrics().as_json(["a", "b", "c"])
    assert content["per_class"] == {"a": 0.5, "b": 1.0, "c": None}
    assert content["confusion"] == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]
    json.dumps({key: value for key, value in content.items() if key != "loss"}, allow_nan=False)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_the_loss_is_the_smoothed_cross_entropy_plus_the_methods_terms(smoothing: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, 4, generator=generator, dtype=torch.float64)
    label = torch.randint(4, (7,), generator=generator)
    target = (1 - smoothing) * F.one_hot(label, 4) + smoothing / 4
    expected = -(target * logits.log_softmax(dim=1)).sum(dim=1).mean() + 0.5 + 0.25
    terms = classification_loss(
        logits, label, {"a": torch.tensor(0.5), "b": torch.tensor(0.25)}, label_smoothing=smoothing
    )
    # the loss is computed in float32
    assert float(terms.total) == pytest.approx(float(expected), rel=1e-6)
    numbers = terms.log()
    assert numbers["loss_a"] == 0.5
    assert numbers["share_b"] == pytest.approx(0.25 / numbers["loss"])
    assert numbers["loss_task"] + 0.75 == pytest.approx(numbers["loss"])


def test_a_method_without_terms_logs_the_loss_alone() -> None:
    terms = classification_loss(torch.zeros(2, 3), torch.tensor([0, 1]))
    assert terms.log().keys() == {"loss"}
    assert list(terms.log(norm=torch.tensor(2.0, dtype=torch.float64)).items())[1:] == [("norm", 2.0)]


def test_half_precision_logits_give_a_float32_loss() -> None:
    terms = classification_loss(torch.zeros(2, 3, dtype=torch.bfloat16), torch.tensor([0, 1]))
    assert terms.total.dtype == torch.float32
