"""Point-BERT: Point-MAE's transformer behind a narrower patch encoder, with a smaller head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from pydantic import NonNegativeInt, PositiveInt, model_validator
from torch import nn

from pcl_clora.config import Config
from pcl_clora.errors import UserValueError
from pcl_clora.models.backbones.point_bert.keys import CLASSIFICATION_KEYS
from pcl_clora.models.config import TransformerConfig
from pcl_clora.models.key_map import KeyMap
from pcl_clora.models.layers.patch_transformer import PatchTransformer
from pcl_clora.models.layers.product import Linear
from pcl_clora.models.layers.transformer import PrefixTokens


class MaskedTokensConfig(Config):
    """Settings of masked point modelling that only the pre-training form of Point-BERT has."""

    mask_ratio: tuple[float, float] = (0.25, 0.45)  # share of the patches that is hidden: least, most
    num_tokens: PositiveInt = 8192  # V, size of the tokenizer's vocabulary, a multiple of 4
    mix: bool = True  # in training, also learn from clouds mixed of two
    contrast_width: PositiveInt = 512  # of the head that the released contrastive loss uses
    tokenizer_widths: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt, PositiveInt] = (
        128,
        256,
        512,
        512,
        1024,
    )  # hidden widths of the tokenizer, all but the first multiples of 4

    @model_validator(mode="after")
    def _check(self) -> MaskedTokensConfig:
        least, most = self.mask_ratio
        if not 0.0 < least <= most < 1.0:
            raise UserValueError(f"mask_ratio={[least, most]} must be two shares with 0 < least <= most < 1.")
        if any(width % 4 for width in (self.num_tokens, *self.tokenizer_widths[1:])):
            raise UserValueError(
                f"num_tokens={self.num_tokens} and all but the first of "
                f"tokenizer_widths={list(self.tokenizer_widths)} must be multiples of 4: the tokenizer "
                "normalises its features in 4 groups."
            )
        return self


class PointBERTConfig(TransformerConfig):
    """Settings of Point-BERT; the defaults are the published network at 2,048 points."""

    name: Literal["point_bert"] = "point_bert"
    encoder_dim: NonNegativeInt = 256  # width of the patch encoder's result; 0 = embed_dim
    propagation_widths: tuple[PositiveInt, PositiveInt] = (1536, 384)  # part segmentation; the second is D
    segmentation_widths: tuple[PositiveInt, PositiveInt] = (512, 128)  # of the graphs, and before the logits
    num_upsampled: tuple[PositiveInt, PositiveInt] = (512, 256)  # points that features climb to, many and few
    pretraining: MaskedTokensConfig = MaskedTokensConfig()  # read with task="pretraining" only

    @classmethod
    def small_head(cls, embed_dim: int) -> Mapping[str, object]:
        """Give the widths of `segmentation_head="small"`: our choice; what propagates ends in D channels.

        Args:
            embed_dim: D, width of a token.
        """
        return {"propagation_widths": (128, embed_dim), "segmentation_widths": (128, 64)}

    @model_validator(mode="after")
    def _check_pretraining(self) -> PointBERTConfig:
        if self.task == "pretraining" and int(self.pretraining.mask_ratio[0] * self.num_groups) == 0:
            raise UserValueError(
                f"mask_ratio={list(self.pretraining.mask_ratio)} may hide none of "
                f"num_groups={self.num_groups} patches; raise one of them."
            )
        return self


class TwoLayerHead(nn.Sequential):
    """Two linear layers with ReLU and dropout between them, without BatchNorm.

    Args:
        in_features: width of the pooled feature.
        num_classes: number of logits.
        width: hidden width; 256 as published.
        dropout: probability of zeroing a hidden unit; 0.5 as published.

    Source: Yu et al., Point-BERT, CVPR 2022, released classification head.
    """

    def __init__(self, in_features: int, num_classes: int, *, width: int = 256, dropout: float = 0.5) -> None:
        super().__init__(
            Linear(in_features, width),
            nn.ReLU(inplace=True),
            nn.Dropout(dropout),
            Linear(width, num_classes),
        )
        self.num_classes = num_classes


class PointBERT(PatchTransformer):
    """Point-BERT for classification.

    The files of its pre-training hold the class token and its position, so that only the head is new.

    Args:
        config: sizes of the network.

    Source: Yu et al., Point-BERT: Pre-training 3D Point Cloud Transformers with Masked Point Modeling, CVPR
    2022, as released.
    """

    official_keys: ClassVar[KeyMap] = CLASSIFICATION_KEYS

    def make_reduce_dim(self) -> nn.Module:
        """Build what brings a patch to the width of a token; it is there for equal widths too."""
        config = self.config
        return Linear(config.encoder_dim or config.embed_dim, config.embed_dim)

    def make_prefix(self) -> nn.Module:
        """Build the class token, with the released initial values: zero, at a random position."""
        prefix = PrefixTokens(1, self.config.embed_dim)
        nn.init.zeros_(prefix.token)
        nn.init.normal_(prefix.pos)
        return prefix

    def make_classifier(self, num_classes: int, num_pooled: int | None = None) -> nn.Module:
        """Build a new head for this network without attaching it; see `PatchTransformer`."""
        config = self.config
        return TwoLayerHead(
            (num_pooled or self.num_pooled) * config.embed_dim,
            num_classes,
            width=config.head_width,
            dropout=config.head_dropout,
        )
