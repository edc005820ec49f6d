"""Point-MAE: a plain transformer over point patches, with the position added before every block."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt

from pcl_clora.models.backbones.point_mae.keys import CLASSIFICATION_KEYS
from pcl_clora.models.config import MaskedConfig, ViewsPretrainingConfig
from pcl_clora.models.layers.patch_transformer import PatchTransformer


class PointMAEConfig(MaskedConfig):
    """Settings of Point-MAE; the defaults are the published network at 2,048 points."""

    name: Literal["point_mae"] = "point_mae"
    pretraining: ViewsPretrainingConfig = ViewsPretrainingConfig()  # read with task="pretraining" only


class TinyPretrainingConfig(ViewsPretrainingConfig):
    """Settings of the pre-training form; its decoder is half as deep as published."""

    decoder_depth: PositiveInt = 2  # blocks of the decoder


class PointMAETinyConfig(MaskedConfig):
    """Settings of the size that this package has weights for: 2.8 M parameters. Our choice."""

    name: Literal["point_mae_tiny"] = "point_mae_tiny"
    embed_dim: PositiveInt = 192  # D, width of a token
    depth: PositiveInt = 6  # number of blocks
    num_heads: PositiveInt = 6  # attention heads, must divide embed_dim
    num_groups: PositiveInt = 32  # G, patches a cloud
    group_size: PositiveInt = 32  # K, points a patch
    encoder_widths: tuple[PositiveInt, PositiveInt, PositiveInt] = (64, 128, 256)  # of the patch encoder
    drop_path: float = Field(default=0.05, ge=0.0, lt=1.0)  # of the last block; grows linearly from 0
    pretraining: TinyPretrainingConfig = TinyPretrainingConfig()  # read with task="pretraining" only


class PointMAE(PatchTransformer):
    """Point-MAE for classification: points -> patches -> tokens -> blocks -> pooled feature -> logits.

    Args:
        config: sizes of the network.

    Source: Pang et al., Masked Autoencoders for Point Cloud Self-supervised Learning, ECCV 2022; the details
    that the paper leaves open (position before every block, head input, no q/k/v bias) follow the released
    models.
    """

    official_keys = CLASSIFICATION_KEYS
