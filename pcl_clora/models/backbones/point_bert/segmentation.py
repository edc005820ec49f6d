"""Point-BERT's part segmentation head: features climb from the patches to 256, to 512, to all points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcl_clora import ops
from pcl_clora.errors import UserValueError
from pcl_clora.models.backbones.point_bert.keys import SEGMENTATION_KEYS
from pcl_clora.models.backbones.point_bert.network import PointBERT, PointBERTConfig
from pcl_clora.models.interface import ModelInterface
from pcl_clora.models.layers.edge_conv import EdgeConv
from pcl_clora.models.layers.part_segmentation import (
    FeaturePropagation,
    Near,
    PartSegmenter,
    PointwiseLayer,
    interpolation_weights,
)
from pcl_clora.models.layers.product import Linear
from pcl_clora.models.published import Rewritten

NUM_NEIGHBORS = 4  # of every point in the graphs


class GraphPropagation(nn.Module):
    """Carry features from a few points to more along a graph, then along a graph among those.

    Args:
        width: of the features on both sides.
        hidden: between the two layers.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.layer1 = EdgeConv(width, hidden)
        self.layer2 = EdgeConv(hidden, width)

    def forward(self, points: Tensor, features: Tensor, center: Tensor, known: Tensor) -> Tensor:
        """Points (B, N, 3) with features (B, N, C), center (B, M, 3) with known (B, M, C) -> (B, N, C)."""
        x = self.layer1(features, known, ops.knn(center, points, NUM_NEIGHBORS).idx)
        result: Tensor = self.layer2(x, x, ops.knn(points, points, NUM_NEIGHBORS).idx)
        return result


class PointBERTSegmentationHead(Rewritten, nn.Module):
    """Classify every point from the features of three blocks.

    Args:
        dim: D, width of the features of one block.
        num_parts: P, logits a point.
        num_categories: categories the network is told.
        num_points: how many points the features climb to before they reach all: (512, 256) as published.
        propagation_widths: of the feature propagations; the second is D.
        widths: hidden width of the graphs, and of the classifier.
        dropout: before the last layer.
        fold: fold BatchNorm in evaluation mode.
        fps_compat: see `ops.farthest_point_sample`.

    Source: Yu et al., Point-BERT, CVPR 2022, released part segmentation model.
    """

    def __init__(
        self,
        dim: int,
        num_parts: int,
        num_categories: int,
        *,
        num_points: Sequence[int] = (512, 256),
        propagation_widths: Sequence[int] = (1536, 384),
        widths: Sequence[int] = (512, 128),
        dropout: float = 0.5,
        fold: bool = True,
        fps_compat: ops.Compat = "none",
    ) -> None:
        super().__init__()
        hidden, last = widths
        self.propagation2 = FeaturePropagation(dim, propagation_widths, fold=fold)
        self.propagation1 = FeaturePropagation(dim, propagation_widths, fold=fold)
        self.propagation0 = FeaturePropagation(dim, propagation_widths, fold=fold, num_extra=num_categories)
        self.graph1 = GraphPropagation(dim, hidden)
        self.graph2 = GraphPropagation(dim, hidden)
        self.linear1 = Linear(propagation_widths[1], last)
        self.norm1 = nn.BatchNorm1d(last)
        self.dropout = nn.Dropout(dropout)
        self.linear2 = Linear(last, num_parts)
        self.num_parts, self.num_categories = num_parts, num_categories
        self.num_points = tuple(num_points)
        self.fold, self.fps_compat = fold, fps_compat

    def forward(
        self,
        points: Tensor,
        center: Tensor,
        features: Tensor,
        category: Tensor,
        extra: Tensor | None = None,
        level: Tensor | None = None,
        near: Near | None = None,
    ) -> Tensor:
        """Classify points.

        Args:
            points: (B, N, 3), at least as many as num_points.
            center: (B, G, 3), where the features are.
            features: (B, G, 3 D), of three blocks side by side.
            category: (B,), int64.
            extra: not used.
            level: (B, 512, 3), what `choose_level` gives, if it is at hand.
            near: for the points, the level and its first 256, one behind another, the three places that
                features come from, in level and twice in center, if that is at hand.

        Returns:
            (B, N, P) logits.
        """
        low, middle, high = features.chunk(3, dim=-1)
        level1 = self.choose_level(points) if level is None else level
        level2 = level1[:, : self.num_points[1]].contiguous()
        of_points, of_level1, of_level2 = self.split_near(near, points)
        x2 = self.propagation2(level2, center, middle, near=of_level2)
        x1 = self.propagation1(level1, center, low, near=of_level1)
        x2 = self.graph2(level2, x2, center, high)
        x1 = self.graph1(level1, x1, level2, x2)
        code = F.one_hot(category, self.num_categories).to(x1.dtype)
        x = self.propagation0(points, level1, x1, code, of_points)
        last = PointwiseLayer(self.linear1, self.norm1, fold=self.fold)
        x = last.published(x) if self.published else last(x)
        logits: Tensor = self.linear2(self.dropout(x))
        return logits

    def split_near(self, near: Near | None, points: Tensor) -> tuple[Near | None, Near | None, Near | None]:
        """Cut `near` of `forward` into that of the points, of the level, and of its first ones."""
        if near is None:
            return None, None, None
        idx, weight = near
        count, end = points.shape[1], points.shape[1] + self.num_points[0]
        cuts = (slice(count), slice(count, end), slice(end, None))
        first, second, third = ((idx[:, cut], weight[:, cut]) for cut in cuts)
        return first, second, third

    def choose_level(self, points: Tensor) -> Tensor:
        """Choose the points that features climb to: (B, N, 3) -> (B, 512, 3), of which the first are 256.

        Farthest point sampling adds points one by one, so the few are the first of the many.
        """
        many = self.num_points[0]
        if points.shape[1] < many:
            raise UserValueError(
                f"A cloud of {points.shape[1]} points is too small for "
                f"num_upsampled={list(self.num_points)}; give more points or lower this setting."
            )
        chosen = ops.farthest_point_sample(points, many, compat=self.fps_compat)
        return ops.gather_points(points, chosen)


class PointBERTSegmenter(PartSegmenter, PointBERT):
    """Point-BERT for part segmentation, with a head of its own; the class token stays, the head ignores it.

    Source: Yu et al., Point-BERT, CVPR 2022, released part segmentation model.
    """

    official_keys = SEGMENTATION_KEYS
    keeps_prefix = True
    config: PointBERTConfig
    head: PointBERTSegmentationHead  # type: ignore[assignment]

    def describe(self) -> ModelInterface:
        """Say where the parts are; the head reads each block apart, so its input cannot be taken over."""
        interface = super().describe()
        return replace(interface, places={"norm": interface.places["norm"]})

    def choose_for_head(self, points: Tensor, center: Tensor) -> dict[str, Any]:
        """Choose the points that the head looks up, from places alone; an exported graph is handed them."""
        level = self.head.choose_level(points)
        pairs = ((points, level), (level, center), (level[:, : self.head.num_points[1]], center))
        idx, weight = zip(*(interpolation_weights(*pair) for pair in pairs), strict=True)
        return {"level": level, "near": (torch.cat(idx, dim=1), torch.cat(weight, dim=1))}

    def adopt(self, recorded: Mapping[str, object]) -> dict[str, object]:
        """Take over settings that weights were trained with; the head chooses points too."""
        taken = super().adopt(recorded)
        self.head.fps_compat = self.config.fps_compat
        return taken

    def make_classifier(  # type: ignore[override]
        self, num_classes: int, num_categories: int | None = None
    ) -> PointBERTSegmentationHead:
        """Build a new head for this network without attaching it.

        Args:
            num_classes: P, parts of all categories together.
            num_categories: of the new taxonomy; None for as many as before.
        """
        config = self.config
        if num_categories is None:
            num_categories = self.num_categories if hasattr(self, "head") else config.num_categories
        if len(config.fetched) != 3:
            raise UserValueError(
                f"Point-BERT's head looks at three blocks, not at {list(config.fetched)}; set fetch_layers."
            )
        return PointBERTSegmentationHead(
            config.embed_dim,
            num_classes,
            num_categories,
            num_points=config.num_upsampled,
            propagation_widths=config.propagation_widths,
            widths=config.segmentation_widths,
            dropout=config.head_dropout,
            fold=config.fold_batchnorm,
            fps_compat=config.fps_compat,
        )
