"""A segmenter of clouds with the interface of scikit-learn, and its score."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from typing_extensions import Self

from pcl_clora.data.arrays import HeldClouds
from pcl_clora.errors import UserValueError
from pcl_clora.estimators.base import Cloud, PointEstimator, check_clouds


class PointSegmenter(PointEstimator):
    """Labels every point of a cloud: an adapter and a segmentation head on a frozen backbone.

    In scikit-learn, use `KFold` and `scoring=mean_iou_scorer`, or its own `score`, which is the same.

    Args:
        **params: those of `PointClassifier`.

    Attributes:
        classes_: (P,), the labels of points, sorted; there after `fit`.

    Example:
        >>> cross_val_score(PointSegmenter(), clouds, labels, cv=KFold(5), scoring=mean_iou_scorer)
    """

    classes_: NDArray[Any]

    def fit(self, X: Sequence[Cloud], y: Sequence[ArrayLike]) -> Self:
        """Train.

        Args:
            X: n clouds, each (N, 3), of any size and unit.
            y: for every cloud the labels of its points, (N,): whole numbers or texts.

        Raises:
            ValueError: if a cloud is not (N, 3) or not finite, labels have another length, or there is one
                label only.
        """
        clouds = check_clouds(X)
        labels = _check_labels(clouds, y)
        self.classes_ = np.unique(np.concatenate(labels))
        if len(self.classes_) < 2:
            raise UserValueError(f"y has {len(self.classes_)} label; a segmenter needs two or more.")
        numbers = [np.searchsorted(self.classes_, each).astype(np.int64) for each in labels]
        names = tuple(map(str, self.classes_.tolist()))
        head = {"task": "part_segmentation", "num_parts": len(names), "num_categories": 1}
        self._train(
            HeldClouds(clouds, None, names, numbers),
            {**head, "segmentation_head": "small", "num_classes": 40},
        )
        return self

    def predict_proba(self, X: Sequence[Cloud]) -> list[NDArray[np.float32]]:
        """Say the probability of every label for every point: n arrays (N, P), float32."""
        return [said.probability for said in self._answers(X)]

    def predict(self, X: Sequence[Cloud]) -> list[NDArray[Any]]:
        """Say the label of every point: n arrays (N,), of the type of y."""
        found = self._answers(X)
        return [np.asarray(self.classes_[said.label]) for said in found]

    def score(self, X: Sequence[Cloud], y: Sequence[ArrayLike]) -> float:
        """Return the mean IoU of the clouds, in [0, 1]; see `mean_iou`."""
        return mean_iou(y, self.predict(X))


def _check_labels(clouds: Sequence[Cloud], y: Sequence[ArrayLike]) -> list[NDArray[Any]]:
    labels = [np.asarray(each) for each in y]
    if len(labels) != len(clouds):
        raise UserValueError(f"y has labels of {len(labels)} clouds, X has {len(clouds)}.")
    for place, (cloud, each) in enumerate(zip(clouds, labels, strict=True)):
        if each.shape != (len(cloud),):
            raise UserValueError(
                f"y[{place}] is {each.shape} for {len(cloud)} points; give one label a point."
            )
    return labels


def mean_iou(truth: Sequence[ArrayLike], prediction: Sequence[ArrayLike]) -> float:
    """Measure how well points are labelled: of every cloud the mean IoU of its labels, and the mean of these.

    The labels of a cloud are those that stand in its truth or its prediction.

    Args:
        truth: for every cloud (N,) labels.
        prediction: the same.

    Returns:
        In [0, 1].

    Raises:
        ValueError: if there are no clouds, or lengths differ.
    """
    if not len(truth) or len(truth) != len(prediction):
        raise UserValueError(
            f"labels of {len(truth)} and {len(prediction)} clouds; give as many, one or more."
        )
    found = []
    for place, (right, said) in enumerate(
        zip(map(np.asarray, truth), map(np.asarray, prediction), strict=True)
    ):
        if right.shape != said.shape or right.ndim != 1 or not right.size:
            raise UserValueError(f"cloud {place}: labels {right.shape} and {said.shape}; give (N,) of both.")
        of_each = [
            np.sum((right == label) & (said == label)) / np.sum((right == label) | (said == label))
            for label in np.union1d(right, said)
        ]
        found.append(float(np.mean(of_each)))
    return float(np.mean(found))


def mean_iou_scorer(estimator: Any, X: Sequence[Cloud], y: Sequence[ArrayLike]) -> float:
    """Score an estimator by its mean IoU, as the parameter `scoring` of scikit-learn asks."""
    return mean_iou(y, estimator.predict(X))
