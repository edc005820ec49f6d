"""Settings that every backbone has."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from pcl_clora.config import Config

Task = Literal["classification", "part_segmentation", "pretraining"]


class ModelConfig(Config):
    """Settings of a backbone with its head; a backbone's own settings are in a subclass next to its code."""

    name: str  # which backbone, see list_models()
    task: Task = "classification"  # which head stands on it
    num_classes: PositiveInt = 40  # number of logits


class TransformerConfig(ModelConfig):
    """Settings that the patch transformers of the Point-MAE family share."""

    embed_dim: PositiveInt = 384  # D, width of a token
    depth: PositiveInt = 12  # number of blocks
    num_heads: PositiveInt = 6  # attention heads, must divide embed_dim
    num_groups: PositiveInt = 128  # G, patches a cloud: 64 for 1,024 points, 128 for 2,048
    group_size: PositiveInt = 32  # K, points a patch
    encoder_dim: NonNegativeInt = 0  # width of the patch encoder's result; 0 = embed_dim
    encoder_widths: tuple[PositiveInt, PositiveInt, PositiveInt] = (128, 256, 512)  # its hidden widths
    mlp_ratio: PositiveFloat = 4.0  # hidden width of a block's MLP / embed_dim
    drop_path: float = Field(default=0.1, ge=0.0, lt=1.0)  # of the last block; grows linearly from 0
    head_width: PositiveInt = 256  # hidden width of the classification head
    head_dropout: float = Field(default=0.5, ge=0.0, lt=1.0)  # dropout of the head
    fps_compat: Literal["none", "pointnet2"] = (
        "none"  # "pointnet2" never picks points within 0.0316 of the origin
    )
    fold_batchnorm: bool = True  # fold the patch encoder's BatchNorm in evaluation mode

    @model_validator(mode="after")
    def _check_heads(self) -> TransformerConfig:
        if self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim={self.embed_dim} is not a multiple of num_heads={self.num_heads}.")
        return self
