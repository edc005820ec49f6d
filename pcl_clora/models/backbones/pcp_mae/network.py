"""PCP-MAE: Point-MAE with positions made from sines and cosines of the centre."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import NonNegativeFloat, model_validator
from torch import Tensor, nn

from pcl_clora.errors import UserValueError
from pcl_clora.models.backbones.pcp_mae.keys import CLASSIFICATION_KEYS
from pcl_clora.models.config import MaskedConfig, PretrainingConfig
from pcl_clora.models.layers.patch_transformer import PatchTransformer
from pcl_clora.models.layers.product import Linear


class PCPMAEPretrainingConfig(PretrainingConfig):
    """Settings that only the pre-training form of PCP-MAE has."""

    embed: Literal["all"] = "all"  # the hidden patches go through the encoder too
    position_weight: NonNegativeFloat = 0.1  # of the error of the predicted positions


class PCPMAEConfig(MaskedConfig):
    """Settings of PCP-MAE; the defaults are the published network at 2,048 points."""

    name: Literal["pcp_mae"] = "pcp_mae"
    pretraining: PCPMAEPretrainingConfig = PCPMAEPretrainingConfig()  # read with task="pretraining" only

    @model_validator(mode="after")
    def _check_width(self) -> PCPMAEConfig:
        if self.embed_dim % 6:
            raise UserValueError(
                f"embed_dim={self.embed_dim} is not a multiple of 6: the positions of pcp_mae are sines and "
                "cosines, as many for each of three axes."
            )
        return self


def sin_cos_features(center: Tensor, dim: int) -> Tensor:
    """Write coordinates as sines and cosines of D / 6 frequencies between 1 and nearly 1 / 10,000.

    Args:
        center: (..., 3), in the unit sphere.
        dim: D, a multiple of 6.

    Returns:
        (..., D): sines of x, cosines of x, sines of y, ..., cosines of z.

    Source: Zhang et al., PCP-MAE, NeurIPS 2024; frequencies and order as released.
    """
    steps = torch.arange(dim // 6, device=center.device, dtype=center.dtype)
    angle = center[..., None] * 10_000.0 ** (-steps / (dim // 6))
    return torch.stack([angle.sin(), angle.cos()], dim=-2).flatten(-3)


class SinCosPosEmbed(nn.Sequential):
    """Two linear layers over the sines and cosines of a centre."""

    def __init__(self, dim: int) -> None:
        super().__init__(Linear(dim, dim), nn.GELU(), Linear(dim, dim))
        self.dim = dim

    def forward(self, center: Tensor) -> Tensor:
        """(B, G, 3) -> (B, G, D)."""
        return self.embed(sin_cos_features(center, self.dim))

    def embed(self, features: Tensor) -> Tensor:
        """Embed sines and cosines, given or predicted: (B, G, D) -> (B, G, D)."""
        result: Tensor = super().forward(features)  # type: ignore[no-untyped-call]
        return result


class PCPMAE(PatchTransformer):
    """PCP-MAE for classification: Point-MAE but for its positions.

    Args:
        config: sizes of the network.

    Source: Zhang et al., PCP-MAE: Learning to Predict Centers for Point Masked Autoencoders, NeurIPS 2024.
    """

    official_keys = CLASSIFICATION_KEYS

    def make_pos_embed(self) -> nn.Module:
        """Build what turns centres (B, G, 3) into positions (B, G, D)."""
        return SinCosPosEmbed(self.config.embed_dim)
