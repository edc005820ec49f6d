"""Task heads."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from pcl_clora.models.layers.product import Linear

_relu = partial(nn.ReLU, inplace=True)


class ClassificationHead(nn.Sequential):
    """Three linear layers with BatchNorm, ReLU and dropout between them: the family's `cls_head_finetune`.

    Args:
        in_features: width of the pooled feature; 2 D for [class token, max over patch tokens].
        num_classes: number of logits.
        width: hidden width; 256 in all published models.
        dropout: probability of zeroing a hidden unit, 0.5 in all published models.
        activation: class of the activation; PPT has GELU.

    Source: Pang et al., Point-MAE, ECCV 2022, released classification head.
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        width: int = 256,
        dropout: float = 0.5,
        activation: Callable[[], nn.Module] = _relu,
    ) -> None:
        super().__init__(
            Linear(in_features, width),
            nn.BatchNorm1d(width),
            activation(),
            nn.Dropout(dropout),
            Linear(width, width),
            nn.BatchNorm1d(width),
            activation(),
            nn.Dropout(dropout),
            Linear(width, num_classes),
        )
        self.num_classes = num_classes
