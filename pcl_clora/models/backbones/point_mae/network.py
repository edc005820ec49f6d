"""Point-MAE: a plain transformer over point patches, with the position added before every block."""

from __future__ import annotations

from typing import Literal

from pcl_clora.models.config import MaskedConfig, ViewsPretrainingConfig
from pcl_clora.models.key_map import KeyMap, Rule
from pcl_clora.models.layers.patch_transformer import PatchTransformer

# What the official files of the family call the parts that all of them have; see key_map.py.
PATCH_EMBED_RULES: tuple[Rule, ...] = (
    Rule("encoder.first_conv.0.", "patch_embed.linear1.", conv=True),
    Rule("encoder.first_conv.1.", "patch_embed.norm1."),
    Rule("encoder.first_conv.3.", "patch_embed.linear2.", conv=True),
    Rule("encoder.second_conv.0.", "patch_embed.linear3.", conv=True),
    Rule("encoder.second_conv.1.", "patch_embed.norm2."),
    Rule("encoder.second_conv.3.", "patch_embed.linear4.", conv=True),
)
TRANSFORMER_RULES: tuple[Rule, ...] = (
    Rule("pos_embed.", "pos_embed."),
    Rule("blocks.blocks.*.", "blocks.*."),
    Rule("norm.", "norm."),
)
CLASSIFIER_RULES: tuple[Rule, ...] = (
    Rule("cls_token", "prefix.token"),
    Rule("cls_pos", "prefix.pos"),
    Rule("cls_head_finetune.", "head."),
)
OFFICIAL_KEYS = KeyMap(PATCH_EMBED_RULES + TRANSFORMER_RULES + CLASSIFIER_RULES)


class PointMAEConfig(MaskedConfig):
    """Settings of Point-MAE; the defaults are the published network at 2,048 points."""

    name: Literal["point_mae"] = "point_mae"
    pretraining: ViewsPretrainingConfig = ViewsPretrainingConfig()  # read with task="pretraining" only


class PointMAE(PatchTransformer):
    """Point-MAE for classification: points -> patches -> tokens -> blocks -> pooled feature -> logits.

    Args:
        config: sizes of the network.

    Source: Pang et al., Masked Autoencoders for Point Cloud Self-supervised Learning, ECCV 2022; the details
    that the paper leaves open (position before every block, head input, no q/k/v bias) follow the released
    models.
    """

    official_keys = OFFICIAL_KEYS
