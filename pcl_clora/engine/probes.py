"""What frozen features are worth: nearest-neighbour and linear-SVM accuracy; the network is not trained."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcl_clora.data import PointLoader, fps_resample
from pcl_clora.engine.evaluate import evaluation_mode
from pcl_clora.errors import MissingPackageError
from pcl_clora.models.layers.transformer import pool_max_mean

NEIGHBORS = 20
TEMPERATURE = 0.07
SVM_COST = 0.01


def extract_features(model: nn.Module, loader: PointLoader, num_points: int) -> tuple[Tensor, Tensor]:
    """Describe clouds by the patch tokens of a frozen backbone: their maximum beside their mean.

    Tokens before the patches (class token) are left out: masked autoencoders do not train them.

    Args:
        model: a backbone of `create_model`, of any task; put into evaluation mode, and back as it was.
        loader: which clouds.
        num_points: points that the model gets, thinned by farthest point sampling.

    Returns:
        Features (n, 2 D), float32, and labels (n,), int64, on the CPU, in the order of the loader.

    Source: maximum and mean pooling follow the linear evaluation of the masked autoencoders of the family.
    """
    network = cast(Any, model)
    device = next(model.parameters()).device
    features, labels = [], []
    with evaluation_mode(model), torch.inference_mode():
        for batch in loader.batches(0):
            tokens = network.tokenize(fps_resample(batch.points.to(device), num_points))
            patches = network.encode(tokens)[:, tokens.num_prefix :]
            features.append(pool_max_mean(patches).float().cpu())
            labels.append(batch.label.cpu())
    return torch.cat(features).clone(), torch.cat(labels).clone()


def knn_accuracy(
    train: tuple[Tensor, Tensor],
    test: tuple[Tensor, Tensor],
    *,
    neighbors: int = NEIGHBORS,
    temperature: float = TEMPERATURE,
) -> float:
    """Classify test features by their nearest training features.

    Every one of the k nearest by cosine votes for its class with weight exp(cosine / temperature). All
    features are centred by the training mean first (our choice: pooled tokens share a large common part).

    Args:
        train: features (n, C) and labels (n,).
        test: features (m, C) and labels (m,).
        neighbors: k; all training clouds where there are fewer.
        temperature: of the votes.

    Returns:
        Overall accuracy in [0, 1].

    Source: Wu et al., Unsupervised Feature Learning via Non-parametric Instance Discrimination, CVPR 2018,
        section 3.4.
    """
    mean = train[0].mean(0)
    known, asked = F.normalize(train[0] - mean, dim=1), F.normalize(test[0] - mean, dim=1)
    num_classes = int(max(train[1].max(), test[1].max())) + 1
    right = 0
    for rows, labels in zip(asked.split(1024), test[1].split(1024), strict=True):
        cosine, index = (rows @ known.T).topk(min(neighbors, len(known)), dim=1)
        votes = torch.zeros(len(rows), num_classes)
        votes.scatter_add_(1, train[1][index], ((cosine - 1) / temperature).exp())
        right += int((votes.argmax(1) == labels).sum())
    return right / len(test[1])


def svm_accuracy(
    train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], *, cost: float = SVM_COST
) -> float:
    """Classify test features by a linear support vector machine, one class against the rest.

    Features are scaled to mean 0 and deviation 1 by those of the training clouds.

    Args:
        train: features (n, C) and labels (n,).
        test: features (m, C) and labels (m,).
        cost: weight C of the margin violations.

    Returns:
        Overall accuracy in [0, 1].

    Raises:
        ImportError: if scikit-learn is not installed; the message says how to get it.

    Source: the linear-SVM protocol of self-supervised point cloud learning (for example CrossPoint, CVPR
        2022); solver and scaling are our choice.
    """
    require_svm()
    from sklearn.svm import LinearSVC

    mean, deviation = train[0].mean(0), train[0].std(0).clamp_min(1e-6)
    machine = LinearSVC(C=cost, dual="auto", random_state=0)
    machine.fit(((train[0] - mean) / deviation).numpy(), train[1].numpy())
    return float(machine.score(((test[0] - mean) / deviation).numpy(), test[1].numpy()))


def require_svm() -> None:
    """Raise an ImportError that says what to do, unless scikit-learn is installed."""
    if find_spec("sklearn") is None:
        raise MissingPackageError(
            "The linear-SVM probe needs scikit-learn: pip install scikit-learn. The k-NN probe does not: set "
            "probe.svm=false, or --no-svm for `pcl-clora probe`."
        )
