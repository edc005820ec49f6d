"""A classifier of clouds with the interface of scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from typing_extensions import Self

from pcl_clora.data.arrays import HeldClouds
from pcl_clora.errors import UserValueError
from pcl_clora.estimators.base import Cloud, PointEstimator, check_clouds


class PointClassifier(PointEstimator):
    """Classifies clouds: an adapter and a head on a frozen backbone.

    Works in scikit-learn's `cross_val_score`, `GridSearchCV` and pipelines; alone it needs no scikit-learn.

    Args:
        model: id of a backbone, see `list_models`.
        weights: what it is filled with: "builtin", "hub:<id>", a file; "" for random ones.
        method: of fine-tuning, see `list_adapters`.
        num_points: points that the model sees of a cloud.
        steps: optimiser steps at least; epochs are filled up.
        batch_size: clouds a step; fewer where there are fewer.
        lr: learning rate after the warm-up.
        augment: of the training clouds, names joined by "+".
        up: axis that points up in the clouds.
        random_state: decides the head, the order and the augmentation.
        device: "auto", "cpu" or "cuda".
        settings: any others of a run, as its yaml file has them, such as {"adapter": {"rank": 4}}.

    Attributes:
        classes_: (C,), sorted; there after `fit`.

    Example:
        >>> from sklearn.model_selection import cross_val_score
        >>> cross_val_score(PointClassifier(steps=100), clouds, labels, cv=5)
    """

    classes_: NDArray[Any]
    _estimator_type = "classifier"

    def __sklearn_tags__(self) -> Any:
        """Describe the estimator to scikit-learn."""
        tags = super().__sklearn_tags__()
        from sklearn.utils import ClassifierTags

        tags.estimator_type, tags.classifier_tags = "classifier", ClassifierTags()
        return tags

    def fit(self, X: Sequence[Cloud], y: ArrayLike) -> Self:
        """Train.

        Args:
            X: n clouds, each (N, 3), of any size and unit.
            y: (n,), their classes: numbers or texts.

        Raises:
            ValueError: if a cloud is not (N, 3) or not finite, y has another length, or one class only.
        """
        clouds, labels = check_clouds(X), np.asarray(y)
        if labels.shape != (len(clouds),):
            raise UserValueError(f"y is {labels.shape} for {len(clouds)} clouds; give one class a cloud.")
        self.classes_, numbers = np.unique(labels, return_inverse=True)
        if len(self.classes_) < 2:
            raise UserValueError(f"y has {len(self.classes_)} class; a classifier needs two or more.")
        names = tuple(map(str, self.classes_.tolist()))
        self._train(HeldClouds(clouds, numbers.tolist(), names), {"num_classes": len(names)})
        return self

    def predict_proba(self, X: Sequence[Cloud]) -> NDArray[np.float32]:
        """Say the probability of every class: (n, C), float32, in the order of `classes_`."""
        return np.stack([said.probability for said in self._answers(X)])

    def predict(self, X: Sequence[Cloud]) -> NDArray[Any]:
        """Say the class of every cloud: (n,), of the type of y."""
        best = self.predict_proba(X).argmax(axis=1)
        return np.asarray(self.classes_[best])

    def score(self, X: Sequence[Cloud], y: ArrayLike) -> float:
        """Say which share of the clouds gets its class: overall accuracy, in [0, 1]."""
        return float(np.mean(self.predict(X) == np.asarray(y)))
