"""Scores of how unlike known clouds a cloud is, published ones and ours; larger is less like them.

Each is fitted on the features that enter the head of a classifier, (n, F), its logits (n, C) and the labels
(n,), and is a set of tensors, so that a file can hold it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor
from typing_extensions import Self

from pcl_clora.errors import UserValueError

SHRINK = 0.1  # of the mean variance, added to every one: there are fewer clouds than features may want
PRINCIPAL = 64  # dimensions that ViM takes for known


class NoveltyScore(ABC):
    """A fitted score.

    Attributes:
        name: what files and tables call it.
    """

    name: ClassVar[str]

    @classmethod
    @abstractmethod
    def fit(cls, features: Tensor, logits: Tensor, labels: Tensor) -> Self:
        """Fit it on known clouds."""

    @abstractmethod
    def __call__(self, features: Tensor, logits: Tensor) -> Tensor:
        """Score clouds: (n,), float64."""

    @abstractmethod
    def tensors(self) -> dict[str, Tensor]:
        """Return what it is made of."""

    @classmethod
    @abstractmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Make it again of these."""


class NearestNeighbor(NoveltyScore):
    """Distance to the k-th nearest known cloud; features are brought to length 1.

    Source: Sun et al., Out-of-Distribution Detection with Deep Nearest Neighbors, ICML 2022. Few clouds are
    known here, so k = 1.
    """

    name = "knn"
    neighbors = 1

    def __init__(self, known: Tensor) -> None:
        self._known = known

    @classmethod
    def fit(cls, features: Tensor, logits: Tensor, labels: Tensor) -> Self:
        """Keep the features, in half precision."""
        return cls(F.normalize(features.double(), dim=1).half())

    def __call__(self, features: Tensor, logits: Tensor) -> Tensor:
        """Distance, in [0, 2]."""
        asked, known = F.normalize(features.double(), dim=1), F.normalize(self._known.double(), dim=1)
        cosine = torch.cat([rows @ known.T for rows in torch.split(asked, 1024)])
        count = min(self.neighbors, len(known))
        return (2 - 2 * cosine.topk(count, dim=1).values[:, -1]).clamp_min(0).sqrt()

    def tensors(self) -> dict[str, Tensor]:
        """Return the known features (n, F), float16."""
        return {"known": self._known}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Take the known features."""
        return cls(tensors["known"])


class Mahalanobis(NoveltyScore):
    """Distance to the nearest class mean, in units of the spread inside the classes.

    Source: Lee et al., A Simple Unified Framework for Detecting Out-of-Distribution Samples, NeurIPS 2018,
    section 2.1; last features only. The shared covariance is shrunk towards a multiple of the unit matrix.
    """

    name = "mahalanobis"

    def __init__(self, means: Tensor, whiten: Tensor) -> None:
        self._means, self._whiten = means, whiten

    @classmethod
    def fit(cls, features: Tensor, logits: Tensor, labels: Tensor) -> Self:
        """Fit class means and the shared covariance."""
        values = features.double()
        classes, place = torch.unique(labels, return_inverse=True)
        means = torch.stack([values[labels == label].mean(0) for label in classes])
        inside = values - means[place]
        whiten = _whitening(inside.T @ inside / len(values))
        return cls((means @ whiten).float(), whiten.float())

    def __call__(self, features: Tensor, logits: Tensor) -> Tensor:
        """Distance."""
        moved = features.double() @ self._whiten.double()
        return torch.cdist(moved, self._means.double()).amin(1)

    def tensors(self) -> dict[str, Tensor]:
        """Return the whitened means (C, F) and the whitening matrix (F, F)."""
        return {"means": self._means, "whiten": self._whiten}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Take both."""
        return cls(tensors["means"], tensors["whiten"])


class VirtualLogit(NoveltyScore):
    """Length of the feature outside the principal subspace, as a logit against those of the classes (ViM).

    Source: Wang et al., ViM: Out-of-Distribution with Virtual-logit Matching, CVPR 2022, section 4; features
    are centred by their mean instead of by the head's weights, since the head here has several layers.
    """

    name = "vim"

    def __init__(self, mean: Tensor, outside: Tensor, scale: Tensor) -> None:
        self._mean, self._outside, self._scale = mean, outside, scale

    @classmethod
    def fit(cls, features: Tensor, logits: Tensor, labels: Tensor) -> Self:
        """Fit the principal subspace, and the scale that makes its residual a logit."""
        values = features.double()
        mean = values.mean(0)
        _, vectors = torch.linalg.eigh((values - mean).T @ (values - mean) / len(values))
        outside = vectors[:, : max(vectors.shape[1] - PRINCIPAL, 1)]
        residual = ((values - mean) @ outside).norm(dim=1).mean()
        scale = logits.double().amax(1).mean() / residual.clamp_min(1e-12)
        return cls(mean.float(), outside.float(), scale)

    def __call__(self, features: Tensor, logits: Tensor) -> Tensor:
        """Virtual logit less the log-sum-exp of the others."""
        residual = ((features.double() - self._mean.double()) @ self._outside.double()).norm(dim=1)
        virtual: Tensor = self._scale.double() * residual - logits.double().logsumexp(1)
        return virtual

    def tensors(self) -> dict[str, Tensor]:
        """Return mean, basis of the residual and scale."""
        return {"mean": self._mean, "outside": self._outside, "scale": self._scale.reshape(1)}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Take the three."""
        return cls(tensors["mean"], tensors["outside"], tensors["scale"][0])


class NearestLogit(NoveltyScore):
    """Distance to the nearest known cloud, as a logit against those of the classes: ours.

    The virtual logit of ViM, with the distance of `NearestNeighbor` in place of the residual: clouds from
    elsewhere lie far from all that is known, and clouds of a class that resembles the known ones have small
    logits. The scale makes the distances of known clouds to one another as large as their largest logits.
    """

    name = "knn_logit"

    def __init__(self, nearest: NearestNeighbor, scale: Tensor) -> None:
        self._nearest, self._scale = nearest, scale

    @classmethod
    def fit(cls, features: Tensor, logits: Tensor, labels: Tensor) -> Self:
        """Keep the features, and fit the scale."""
        nearest = NearestNeighbor.fit(features, logits, labels)
        known = F.normalize(features.double(), dim=1)
        cosine = known @ known.T
        cosine.fill_diagonal_(-1.0)
        between = (2 - 2 * cosine.amax(1)).clamp_min(0).sqrt().mean()
        return cls(nearest, logits.double().amax(1).mean() / between.clamp_min(1e-12))

    def __call__(self, features: Tensor, logits: Tensor) -> Tensor:
        """Virtual logit less the log-sum-exp of the others."""
        virtual: Tensor = self._scale.double() * self._nearest(features, logits)
        return virtual - logits.double().logsumexp(1)

    def tensors(self) -> dict[str, Tensor]:
        """Return the known features (n, F), float16, and the scale."""
        return {**self._nearest.tensors(), "scale": self._scale.reshape(1)}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Take both."""
        return cls(NearestNeighbor.of(tensors), tensors["scale"][0])


class Energy(NoveltyScore):
    """Minus the log-sum-exp of the logits; nothing is fitted.

    Source: Liu et al., Energy-based Out-of-distribution Detection, NeurIPS 2020.
    """

    name = "energy"

    @classmethod
    def fit(cls, features: Tensor, logits: Tensor, labels: Tensor) -> Self:
        """Fit nothing."""
        return cls()

    def __call__(self, features: Tensor, logits: Tensor) -> Tensor:
        """Energy."""
        return -logits.double().logsumexp(1)

    def tensors(self) -> dict[str, Tensor]:
        """Return nothing."""
        return {}

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Self:
        """Take nothing."""
        return cls()


class MaxSoftmax(Energy):
    """Minus the largest probability, the baseline.

    Source: Hendrycks and Gimpel, A Baseline for Detecting Misclassified and Out-of-Distribution Examples in
        Neural Networks, ICLR 2017.
    """

    name = "softmax"

    def __call__(self, features: Tensor, logits: Tensor) -> Tensor:
        """Minus the probability."""
        return -logits.double().softmax(1).amax(1)


SCORES: Mapping[str, type[NoveltyScore]] = {
    score.name: score
    for score in (NearestLogit, NearestNeighbor, Mahalanobis, VirtualLogit, Energy, MaxSoftmax)
}


def _whitening(covariance: Tensor) -> Tensor:
    """Return W with W W^T the inverse of a covariance (F, F), shrunk."""
    spread = covariance.diagonal().mean().clamp_min(1e-12)
    unit = torch.eye(len(covariance), dtype=covariance.dtype)
    found: Tensor = torch.linalg.cholesky(torch.linalg.inv(covariance + SHRINK * spread * unit))
    return found


def auroc(known: Tensor, novel: Tensor) -> float:
    """Say how often a novel cloud has a larger score than a known one; equal scores count half. In [0, 1].

    Args:
        known: (n,) scores.
        novel: (m,) scores.

    Raises:
        ValueError: if there are none of one kind.
    """
    if not len(known) or not len(novel):
        raise UserValueError(f"AUROC of {len(known)} known and {len(novel)} novel clouds; give some of both.")
    ordered = known.double().sort().values
    below = torch.searchsorted(ordered, novel.double(), right=False)
    up_to = torch.searchsorted(ordered, novel.double(), right=True)
    return float((below + up_to).double().sum() / (2 * len(known) * len(novel)))
