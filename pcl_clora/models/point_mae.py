"""Point-MAE: a plain transformer over point patches, with the position added before every block."""

from __future__ import annotations

from typing import Literal

from pcl_clora.models.config import TransformerConfig
from pcl_clora.models.patch_transformer import PatchTransformer

# Official key -> ours, as (regular expression, replacement); see weights.py for how they are applied.
OFFICIAL_KEYS: tuple[tuple[str, str], ...] = (
    (r"^encoder\.first_conv\.0\.", "patch_embed.linear1."),
    (r"^encoder\.first_conv\.1\.", "patch_embed.norm1."),
    (r"^encoder\.first_conv\.3\.", "patch_embed.linear2."),
    (r"^encoder\.second_conv\.0\.", "patch_embed.linear3."),
    (r"^encoder\.second_conv\.1\.", "patch_embed.norm2."),
    (r"^encoder\.second_conv\.3\.", "patch_embed.linear4."),
    (r"^blocks\.blocks\.", "blocks."),
    (r"^cls_token$", "prefix.token"),
    (r"^cls_pos$", "prefix.pos"),
    (r"^cls_head_finetune\.", "head."),
)


class PointMAEConfig(TransformerConfig):
    """Settings of Point-MAE; the defaults are the published network at 2,048 points."""

    name: Literal["point_mae"] = "point_mae"


class PointMAE(PatchTransformer):
    """Point-MAE for classification: points -> patches -> tokens -> blocks -> pooled feature -> logits.

    Args:
        config: sizes of the network.

    Source: Pang et al., Masked Autoencoders for Point Cloud Self-supervised Learning, ECCV 2022; the details
    that the paper leaves open (position before every block, head input, no q/k/v bias) follow the released
    models.
    """

    official_keys = OFFICIAL_KEYS
