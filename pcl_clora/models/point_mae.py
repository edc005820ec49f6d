"""Point-MAE: a plain transformer over point patches, with the position added before every block."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pcl_clora import ops
from pcl_clora.models.config import TransformerConfig
from pcl_clora.models.heads import ClassificationHead
from pcl_clora.models.interface import ModelInterface, Tokens
from pcl_clora.models.layers import Block, PatchEncoder, PrefixTokens

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

    @model_validator(mode="after")
    def _check(self) -> PointMAEConfig:
        if self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim={self.embed_dim} is not a multiple of num_heads={self.num_heads}.")
        return self


class PointMAE(nn.Module):
    """Point-MAE for classification: points -> patches -> tokens -> blocks -> pooled feature -> logits.

    Args:
        config: sizes of the network.

    Source: Pang et al., Masked Autoencoders for Point Cloud Self-supervised Learning, ECCV 2022; the details
    that the paper leaves open (position before every block, head input, no q/k/v bias) follow the released
    models.
    """

    official_keys = OFFICIAL_KEYS

    def __init__(self, config: PointMAEConfig) -> None:
        super().__init__()
        self.config = config
        dim, encoder_dim = config.embed_dim, config.encoder_dim or config.embed_dim
        self.num_classes = config.num_classes
        self.patch_embed = PatchEncoder(encoder_dim, config.encoder_widths, fold=config.fold_batchnorm)
        self.reduce_dim = nn.Linear(encoder_dim, dim) if encoder_dim != dim else nn.Identity()
        self.pos_embed = nn.Sequential(nn.Linear(3, 128), nn.GELU(), nn.Linear(128, dim))
        self.prefix = PrefixTokens(1, dim)
        rates = torch.linspace(0, config.drop_path, config.depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(Block(dim, config.num_heads, config.mlp_ratio, rate) for rate in rates)
        self.norm = nn.LayerNorm(dim)
        self.head = self.make_classifier(config.num_classes)
        self.grad_checkpointing = False
        self.interface = self._describe()

    def _describe(self) -> ModelInterface:
        norms = tuple(name for name, module in self.named_modules() if isinstance(module, nn.LayerNorm))
        return ModelInterface(
            embed_dim=self.config.embed_dim,
            blocks=tuple(f"blocks.{index}" for index in range(len(self.blocks))),
            linears={"qkv": "attn.qkv", "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"},
            parts={
                "head": ("head",),
                "tokens": ("prefix",),
                "patch_embed": ("patch_embed", "reduce_dim"),
                "pos_embed": ("pos_embed",),
                "norms": norms,
            },
        )

    def group(self, points: Tensor) -> ops.PointGroups:
        """Cut clouds into patches: (B, N, 3) -> centres (B, G, 3) and centred neighbourhoods (B, G, K, 3).

        Raises:
            ValueError: if points is not (B, N, 3), or N is smaller than num_groups or group_size.
        """
        config = self.config
        if points.dim() != 3 or points.shape[-1] != 3:
            raise ValueError(
                f"points has shape {tuple(points.shape)}; expected (B, N, 3): clouds, points, x y z."
            )
        needed = max(config.num_groups, config.group_size)
        if points.shape[1] < needed:
            raise ValueError(
                f"A cloud of {points.shape[1]} points is too small for num_groups={config.num_groups} and "
                f"group_size={config.group_size}; give at least {needed} points or lower these settings."
            )
        return ops.group_points(points, config.num_groups, config.group_size, compat=config.fps_compat)

    def embed_groups(self, neighborhood: Tensor, center: Tensor) -> Tokens:
        """Turn patches into the token sequence; an exported graph starts here.

        Args:
            neighborhood: (B, G, K, 3) points minus their centre.
            center: (B, G, 3) patch centres.

        Returns:
            Tokens with T = 1 + G.
        """
        token, token_pos = self.prefix(center.shape[0])
        x = self.reduce_dim(self.patch_embed(neighborhood))
        return Tokens(
            x=torch.cat([token, x], dim=1),
            pos=torch.cat([token_pos, self.pos_embed(center)], dim=1),
            center=center,
            num_prefix=1,
        )

    def tokenize(self, points: Tensor) -> Tokens:
        """(B, N, 3) -> the token sequence before the first block."""
        groups = self.group(points)
        return self.embed_groups(groups.neighborhood, groups.center)

    def encode(self, tokens: Tokens) -> Tensor:
        """Run all blocks and the last norm: Tokens -> (B, T, D)."""
        x = tokens.x
        for block in self.blocks:
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, tokens.pos, tokens, use_reentrant=False)
            else:
                x = block(x, tokens.pos, tokens)
        return self.norm(x)

    def forward_features(self, points: Tensor) -> Tensor:
        """(B, N, 3) -> (B, 1 + G, D), class token first, after the last norm."""
        return self.encode(self.tokenize(points))

    def pool(self, features: Tensor) -> Tensor:
        """(B, 1 + G, D) -> (B, 2 D): the class token beside the maximum over the patch tokens."""
        return torch.cat([features[:, 0], features[:, 1:].amax(dim=1)], dim=1)

    def forward_head(self, features: Tensor) -> Tensor:
        """(B, 1 + G, D) -> (B, num_classes) logits."""
        return self.head(self.pool(features))

    def forward(self, points: Tensor) -> Tensor:
        """Classify clouds.

        Args:
            points: (B, N, 3), float32, centred and scaled to the unit sphere, N >= num_groups.

        Returns:
            (B, num_classes) logits.
        """
        return self.forward_head(self.forward_features(points))

    def get_classifier(self) -> nn.Module:
        """Return the head."""
        return self.head

    def make_classifier(self, num_classes: int) -> ClassificationHead:
        """Build a new head for this network without attaching it."""
        config = self.config
        return ClassificationHead(
            2 * config.embed_dim, num_classes, width=config.head_width, dropout=config.head_dropout
        )

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the head by a new one, on the device and in the dtype of the old one."""
        like = next(self.head.parameters())
        self.head = self.make_classifier(num_classes).to(like.device, like.dtype)
        self.num_classes = num_classes

    def no_weight_decay(self) -> set[str]:
        """Name what weight decay spares besides biases and 1-D tensors: the class token."""
        return {"prefix.token"}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep no activations inside the blocks while training; compute them again in the backward pass."""
        self.grad_checkpointing = enable
