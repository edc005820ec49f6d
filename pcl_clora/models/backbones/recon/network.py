"""ReCon: a transformer over patches, and beside it a branch of three tokens that reads from it.

Published names mean two networks: the one here with its contrast branch (43.6 M parameters), and a plain
transformer of Point-MAE's architecture with the weights of the other branch (22.1 M), which is what
published parameter-efficient methods call ReCon. The second is `recon_plain`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from pydantic import PositiveInt
from torch import Tensor, nn

from pcl_clora.models.backbones.point_mae.network import PointMAE
from pcl_clora.models.backbones.recon.keys import CLASSIFICATION_KEYS, TOKEN_NAMES
from pcl_clora.models.config import MaskedConfig, PretrainingConfig, TransformerConfig
from pcl_clora.models.interface import ModelInterface, Tokens
from pcl_clora.models.layers.maximum import max_over_tokens
from pcl_clora.models.layers.patch_transformer import PatchTransformer
from pcl_clora.models.layers.transformer import Attention as SelfAttention
from pcl_clora.models.layers.transformer import (
    CrossAttention,
    DropPath,
    Mlp,
    PrefixTokens,
    plus,
)


class ReConPretrainingConfig(PretrainingConfig):
    """Settings that only the pre-training form of ReCon has."""

    image_dim: PositiveInt = 768  # width of the image features; 768 = ViT-B
    text_dim: PositiveInt = 512  # width of the text features; 512 = CLIP


class ReConConfig(MaskedConfig):
    """Settings of ReCon with its contrast branch; the defaults are the published network at 2,048 points."""

    name: Literal["recon"] = "recon"
    pretraining: ReConPretrainingConfig = ReConPretrainingConfig()  # read with task="pretraining" only
    drop_path: float = 0.2  # of the last block; grows linearly from 0


class ReConPlainConfig(TransformerConfig):
    """Settings of the plain transformer that takes ReCon's weights; the architecture is Point-MAE's."""

    name: Literal["recon_plain"] = "recon_plain"


class ContrastTokens(nn.ModuleDict):
    """The three learned tokens that stand before the patches: class, image and text."""

    def __init__(self, dim: int) -> None:
        super().__init__({name: PrefixTokens(1, dim) for name in TOKEN_NAMES})

    def forward(self, batch_size: int) -> tuple[Tensor, Tensor]:
        """Return tokens and positions, each (B, 3, D)."""
        tokens, positions = zip(*(self[name](batch_size) for name in TOKEN_NAMES), strict=True)
        return torch.cat(tokens, dim=1), torch.cat(positions, dim=1)


class ContrastBlock(nn.Module):
    """One block of both branches: patches attend to patches, the first three tokens read from the patches.

    Every residual starts from the NORMALISED value, unlike in a usual pre-norm block, and the tokens read
    the patches as they were before their own attention.

    Args:
        dim: width D of a token.
        num_heads: attention heads of both branches.
        mlp_ratio: hidden width of both MLPs / D.
        drop_path: probability of dropping each of the four residual branches for a sample.
        detach: cut the gradient from the tokens to the patches, as in pre-training.
    """

    num_tokens = len(TOKEN_NAMES)

    def __init__(
        self, dim: int, num_heads: int, mlp_ratio: float, drop_path: float, *, detach: bool = False
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = SelfAttention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.norm1_contrast = nn.LayerNorm(dim)
        self.attn_contrast = CrossAttention(dim, num_heads)
        self.norm2_contrast = nn.LayerNorm(dim)
        self.mlp_contrast = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)
        self.detach = detach

    def forward(self, x: Tensor, pos: Tensor, tokens: Tokens) -> Tensor:
        """Transform the tokens once: features (B, T, D) and positions (B, T, D) -> (B, T, D)."""
        return self.feed(self.attend(x + pos, tokens))

    def attend(self, x: Tensor, tokens: Tokens) -> Tensor:
        """First half: (B, T, D) with positions -> (B, T, D)."""
        contrast, patches = x.tensor_split([self.num_tokens], dim=1)
        contrast, patches = self.norm1_contrast(contrast), self.norm1(patches)
        context = patches.detach() if self.detach else patches
        contrast = contrast + self.drop_path(self.attn_contrast(contrast, context))
        patches = patches + self.drop_path(self.attn(patches))
        return torch.cat([contrast, patches], dim=1)

    def feed(self, x: Tensor, extra: Tensor | None = None) -> Tensor:
        """Second half: (B, T, D) -> (B, T, D); extra (B, T, D) is added to the output of both MLPs."""
        contrast, patches = x.tensor_split([self.num_tokens], dim=1)
        contrast, patches = self.norm2_contrast(contrast), self.norm2(patches)
        beside, behind = (None, None) if extra is None else extra.tensor_split([self.num_tokens], dim=1)
        contrast = contrast + self.drop_path(plus(self.mlp_contrast(contrast), beside))
        patches = patches + self.drop_path(plus(self.mlp(patches), behind))
        return torch.cat([contrast, patches], dim=1)


class ReCon(PatchTransformer):
    """ReCon for classification: the head sees class, image and text token and the maximum over the patches.

    Args:
        config: sizes of the network.

    Source: Qi et al., Contrast with Reconstruct: Contrastive 3D Representation Learning Guided by Generative
        Pretraining, ICML 2023; residuals on normalised values and token order as released.
    """

    official_keys = CLASSIFICATION_KEYS
    num_pooled = 4

    def make_prefix(self) -> nn.Module:
        """Build the learned tokens that stand before the patches."""
        return ContrastTokens(self.config.embed_dim)

    def make_block(self, drop_path: float) -> nn.Module:
        """Build one block."""
        config = self.config
        return ContrastBlock(config.embed_dim, config.num_heads, config.mlp_ratio, drop_path)

    def describe(self) -> ModelInterface:
        """Say where the parts are, the contrast branch included."""
        plain = super().describe()
        contrast = {
            "contrast_q": "attn_contrast.q",
            "contrast_kv": "attn_contrast.kv",
            "contrast_proj": "attn_contrast.proj",
            "contrast_fc1": "mlp_contrast.fc1",
            "contrast_fc2": "mlp_contrast.fc2",
        }
        return replace(plain, linears={**plain.linears, **contrast})

    def pool(self, features: Tensor) -> Tensor:
        """(B, 3 + G, D) -> (B, 4 D): the three tokens beside the maximum over the patch tokens."""
        tokens, patches = features.tensor_split([len(TOKEN_NAMES)], dim=1)
        return torch.cat([tokens.flatten(1), max_over_tokens(patches)], dim=1)

    def no_weight_decay(self) -> set[str]:
        """Name what weight decay spares besides biases and 1-D tensors: the three tokens."""
        return {f"prefix.{name}.token" for name in TOKEN_NAMES}


class ReConPlain(PointMAE):
    """Point-MAE's architecture for the weights of ReCon's generative branch, without image and text token."""
