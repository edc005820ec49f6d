"""Frozen features classified by their nearest labelled neighbours."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

NEIGHBORS = 20
TEMPERATURE = 0.07


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
    for rows, labels in zip(torch.split(asked, 1024), torch.split(test[1], 1024), strict=True):
        cosine, index = (rows @ known.T).topk(min(neighbors, len(known)), dim=1)
        votes = torch.zeros(len(rows), num_classes)
        votes.scatter_add_(1, train[1][index], ((cosine - 1) / temperature).exp())
        right += int((votes.argmax(1) == labels).sum())
    return right / len(test[1])
