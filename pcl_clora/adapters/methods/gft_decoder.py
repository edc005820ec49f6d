"""The part segmentation head of GFT: a small decoder over four levels of the transformer."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from pydantic import PositiveInt, model_validator
from torch import Tensor, nn

from pcl_clora.config import Config
from pcl_clora.errors import UserValueError
from pcl_clora.models.entry import FileFacts
from pcl_clora.models.key_map import Rule
from pcl_clora.models.layers.part_segmentation import interpolation_weights
from pcl_clora.models.layers.transformer import DropPath, attend

MLP_RATIO, RATE = 8, 0.1  # hidden width of a block's MLP / its width; its dropout and stochastic depth


class GFTDecoderConfig(Config):
    """Sizes of the part segmentation head; the defaults are the released ones."""

    width: PositiveInt = 128  # of its blocks
    num_heads: PositiveInt = 4  # of their attention
    propagation_widths: tuple[PositiveInt, PositiveInt] = (1024, 512)  # of what carries features to points
    head_widths: tuple[PositiveInt, PositiveInt] = (512, 256)  # hidden widths of the classifier
    category_width: PositiveInt = 64  # of a category's embedding

    @model_validator(mode="after")
    def _fits(self) -> GFTDecoderConfig:
        if self.width % self.num_heads:
            raise UserValueError(f"num_heads={self.num_heads} does not divide width={self.width}.")
        return self


class DecoderBlock(nn.Module):
    """Pre-norm block with biases on q, k, v and dropout, without positions."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.fc1, self.fc2 = nn.Linear(dim, MLP_RATIO * dim), nn.Linear(MLP_RATIO * dim, dim)
        self.dropout, self.drop_path = nn.Dropout(RATE), DropPath(RATE)
        self.num_heads = num_heads

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, W) -> (B, T, W)."""
        b, t, _ = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, t, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        x = x + self.drop_path(self.dropout(self.proj(attend(q, k, v))))
        hidden = self.dropout(F.gelu(self.fc1(self.norm2(x))))
        result: Tensor = x + self.drop_path(self.dropout(self.fc2(hidden)))
        return result


class GFTSegmentationHead(nn.Module):
    """Decode levels of the transformer, deepest first, and classify points.

    y = block_j(y + linear_j(level)); a point gets the features of its three nearest patches side by side,
    each times its weight, and what the whole cloud has: the mean over the prompts, the maximum over the
    graph's features, and its category.

    Args:
        dim: D, width of a level.
        num_levels: L.
        num_prompts: tokens of a level behind the patches.
        graph_width: width of the graph's features.
        num_parts: P.
        num_categories: categories the head is told.
        config: sizes.
    """

    def __init__(
        self,
        dim: int,
        num_levels: int,
        num_prompts: int,
        graph_width: int,
        num_parts: int,
        num_categories: int,
        config: GFTDecoderConfig,
    ) -> None:
        super().__init__()
        width, (wide, narrow), (first, second) = config.width, config.propagation_widths, config.head_widths
        self.reduce = nn.ModuleList(nn.Linear(dim, width) for _ in range(num_levels))
        self.blocks = nn.ModuleList(DecoderBlock(width, config.num_heads) for _ in range(num_levels))
        self.linear1, self.norm1 = nn.Linear(3 + 3 * width, wide), nn.BatchNorm1d(wide)
        self.linear2, self.norm2 = nn.Linear(wide, narrow), nn.BatchNorm1d(narrow)
        self.label = nn.Embedding(num_categories, config.category_width)
        num_global = width + graph_width + config.category_width
        self.classifier = nn.Sequential(
            nn.Linear(narrow + num_global, first),
            nn.LayerNorm(first),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(first, second),
            nn.LayerNorm(second),
            nn.ReLU(),
            nn.Linear(second, num_parts),
        )
        self.num_parts, self.num_categories = num_parts, num_categories
        self.num_prompts = num_prompts

    def forward(
        self, points: Tensor, center: Tensor, features: Tensor, category: Tensor, extra: Tensor
    ) -> Tensor:
        """Classify points.

        Args:
            points: (B, N, 3).
            center: (B, G, 3), where the patches are.
            features: (B, G + n, L D), levels side by side, the prompts behind the patches.
            category: (B,), int64.
            extra: (B, graph_width), maximum over the graph's features.

        Returns:
            (B, N, P) logits.
        """
        b, n, _ = points.shape
        levels = features.chunk(len(self.reduce), dim=2)
        y: Tensor | None = None
        for reduce, block, level in zip(self.reduce, self.blocks, reversed(levels), strict=True):
            y = block(reduce(level) if y is None else y + reduce(level))
        assert y is not None
        patches, prompts = y.tensor_split([center.shape[1]], dim=1)
        idx, weight = interpolation_weights(points, center)
        first = torch.arange(b, device=idx.device)[:, None, None] * center.shape[1]
        near = patches.flatten(0, 1).index_select(0, (idx + first).flatten()).view(b, n, 3, -1)
        x = torch.cat([points, (near * weight[..., None]).flatten(2)], dim=2).flatten(0, 1)
        x = F.relu(self.norm1(self.linear1(x)))
        x = F.relu(self.norm2(self.linear2(x))).view(b, n, -1)
        shared = torch.cat([prompts.mean(dim=1), extra, self.label(category)], dim=1)
        logits: Tensor = self.classifier(torch.cat([x, shared[:, None].expand(-1, n, -1)], dim=2))
        return logits


def decoder_sizes(file: FileFacts) -> dict[str, Any]:
    """Read the sizes of the head from the shapes of a released file."""

    def width(name: str) -> int:
        return file.shapes[f"segmentation_head_cls.{name}.weight"][0]

    return {
        "width": width("reduces.0"),
        "propagation_widths": [width("feat_propagate.mlp_convs.0"), width("feat_propagate.mlp_convs.1")],
        "head_widths": [width("cls_head.0"), width("cls_head.4")],
        "category_width": file.shapes["segmentation_head_cls.obj_proj.weight"][1],
    }


def head_rules() -> tuple[Rule, ...]:
    """Say what the released files call the tensors of the head."""
    there, here = "segmentation_head_cls.", "model.head."
    block = f"{there}transformer_blocks.*."
    return (
        Rule(f"{there}obj_proj.", f"{here}label."),
        Rule(f"{there}reduces.*.", f"{here}reduce.*."),
        *(Rule(f"{block}{name}.", f"{here}blocks.*.{name}.") for name in ("norm1", "norm2")),
        *(Rule(f"{block}attn.{name}.", f"{here}blocks.*.{name}.") for name in ("qkv", "proj")),
        *(Rule(f"{block}mlp.{name}.", f"{here}blocks.*.{name}.") for name in ("fc1", "fc2")),
        *(
            rule
            for number in (0, 1)
            for rule in (
                Rule(f"{there}feat_propagate.mlp_convs.{number}.", f"{here}linear{number + 1}.", conv=1),
                Rule(f"{there}feat_propagate.mlp_bns.{number}.", f"{here}norm{number + 1}."),
            )
        ),
        Rule(f"{there}cls_head.", f"{here}classifier."),
    )


def num_categories_of(model: nn.Module) -> int:
    """Return how many categories a segmenter knows."""
    return int(cast(int, model.num_categories))
