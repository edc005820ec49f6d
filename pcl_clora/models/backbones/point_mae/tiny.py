"""Point-MAE in the size that this package has weights for: 2.8 M parameters, for two CPU cores."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt

from pcl_clora.models.config import MaskedConfig, ViewsPretrainingConfig


class TinyPretrainingConfig(ViewsPretrainingConfig):
    """Settings of the pre-training form; its decoder is half as deep as published."""

    decoder_depth: PositiveInt = 2  # blocks of the decoder


class PointMAETinyConfig(MaskedConfig):
    """Settings of the tiny Point-MAE; the defaults are those of the weights that ship. Our choice."""

    name: Literal["point_mae_tiny"] = "point_mae_tiny"
    embed_dim: PositiveInt = 192  # D, width of a token
    depth: PositiveInt = 6  # number of blocks
    num_heads: PositiveInt = 6  # attention heads, must divide embed_dim
    num_groups: PositiveInt = 32  # G, patches a cloud
    group_size: PositiveInt = 32  # K, points a patch
    encoder_widths: tuple[PositiveInt, PositiveInt, PositiveInt] = (64, 128, 256)  # of the patch encoder
    drop_path: float = Field(default=0.05, ge=0.0, lt=1.0)  # of the last block; grows linearly from 0
    pretraining: TinyPretrainingConfig = TinyPretrainingConfig()  # read with task="pretraining" only
