"""What the backbones of the family share: patches -> tokens -> blocks -> pooled feature -> logits.

A backbone is a subclass that replaces the parts in which it differs: the `make_*` methods build a part,
`embed_groups`, `encode` and `pool` use it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pcl_clora import ops
from pcl_clora.errors import UserValueError
from pcl_clora.models.config import TransformerConfig
from pcl_clora.models.interface import ModelInterface, Opening, Tokens
from pcl_clora.models.key_map import KeyMap
from pcl_clora.models.layers import shared_patches
from pcl_clora.models.layers.checks import check_input
from pcl_clora.models.layers.heads import ClassificationHead
from pcl_clora.models.layers.maximum import max_over_tokens
from pcl_clora.models.layers.product import Linear
from pcl_clora.models.layers.transformer import Block, PatchEncoder, PrefixTokens


class PatchTransformer(nn.Module):
    """A transformer over point patches with a classification head, as Point-MAE has it.

    Args:
        config: sizes of the network.

    Attributes:
        official_keys: what the official files call the tensors of this model.
        num_pooled: how many features of width D `pool` puts side by side for the head.
    """

    official_keys: ClassVar[KeyMap] = KeyMap(())
    num_pooled: ClassVar[int] = 2

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = self._asked = config
        self.num_classes = config.num_logits
        self.patch_embed = self.make_patch_embed()
        self.reduce_dim = self.make_reduce_dim()
        self.pos_embed = self.make_pos_embed()
        self.prefix = self.make_prefix()
        self.blocks = nn.ModuleList(self.make_blocks())
        self.norm = nn.LayerNorm(config.embed_dim)
        self.pooling = Opening()
        self.head = self.make_classifier(config.num_logits)
        self.grad_checkpointing = False

    @cached_property
    def interface(self) -> ModelInterface:
        """Where the parts are, as `describe` says it of the whole network."""
        return self.describe()

    def adopt(self, recorded: Mapping[str, object]) -> dict[str, object]:
        """Take over settings that weights were trained with, where those given here leave them open.

        Returns:
            What changed: name -> new value.
        """
        before, self.config = self.config, self._asked.adopt(recorded)
        return {
            name: getattr(self.config, name)
            for name in self.config.adoptable
            if getattr(self.config, name) != getattr(before, name)
        }

    def make_patch_embed(self) -> nn.Module:
        """Build what turns patches (B, G, K, 3) into vectors (B, G, C)."""
        config = self.config
        return PatchEncoder(
            config.encoder_dim or config.embed_dim,
            config.encoder_widths,
            fold=config.fold_batchnorm,
            chunk=config.encoder_chunk,
        )

    def make_reduce_dim(self) -> nn.Module:
        """Build what brings a patch (B, G, C) to the width of a token (B, G, D); nothing for equal widths."""
        dim, encoder_dim = self.config.embed_dim, self.config.encoder_dim or self.config.embed_dim
        return Linear(encoder_dim, dim) if encoder_dim != dim else nn.Identity()

    def make_pos_embed(self) -> nn.Module:
        """Build what turns centres (B, G, 3) into positions (B, G, D)."""
        return nn.Sequential(Linear(3, 128), nn.GELU(), Linear(128, self.config.embed_dim))

    def make_prefix(self) -> nn.Module:
        """Build the learned tokens that stand before the patches."""
        return PrefixTokens(1, self.config.embed_dim)

    def make_blocks(self) -> list[nn.Module]:
        """Build the blocks, the drop-path rate growing linearly with depth."""
        config = self.config
        rates = torch.linspace(0, config.drop_path, config.depth, device="cpu").tolist()
        return [self.make_block(rate) for rate in rates]

    def make_block(self, drop_path: float) -> nn.Module:
        """Build one block with its drop-path rate."""
        config = self.config
        return Block(config.embed_dim, config.num_heads, config.mlp_ratio, drop_path)

    def describe(self) -> ModelInterface:
        """Say where the parts are that adapters and reports may know of."""
        norms = tuple(name for name, module in self.named_modules() if isinstance(module, nn.LayerNorm))
        return ModelInterface(
            embed_dim=self.config.embed_dim,
            blocks=tuple(f"blocks.{index}" for index in range(len(self.blocks))),
            linears={"qkv": "attn.qkv", "proj": "attn.proj", "fc1": "mlp.fc1", "fc2": "mlp.fc2"},
            parts={
                "head": ("head",),
                "tokens": ("prefix",) if list(self.prefix.parameters()) else (),
                "patch_embed": ("patch_embed", "reduce_dim"),
                "pos_embed": ("pos_embed",),
                "norms": norms,
            },
            places={"norm": "norm", "pool": "pooling"},
            block_norms=("norm1", "norm2"),
            num_prefix=self.prefix(1)[0].shape[1],
            num_pooled=self.num_pooled,
            patch_entry=("patch_embed.linear1", "patch_embed.norm1", "patch_embed.linear2"),
            num_patches=self.config.num_groups,
        )

    def check_points(self, points: Tensor) -> None:
        """Require clouds that this network can cut into patches; shapes and types only, no value is read.

        Raises:
            TypeError: if points is no tensor of the model's type.
            ValueError: if points is not (B, N, 3), B is 0, or N is smaller than num_groups or group_size.
        """
        config = self.config
        check_input(points, self)
        if points.dim() != 3 or points.shape[-1] != 3:
            raise UserValueError(
                f"points has shape {tuple(points.shape)}; expected (B, N, 3): clouds, points, x y z."
            )
        needed = max(config.num_groups, config.group_size)
        if points.shape[1] < needed:
            raise UserValueError(
                f"A cloud of {points.shape[1]} points is too small for num_groups={config.num_groups} and "
                f"group_size={config.group_size}; give at least {needed} points or lower these settings."
            )

    def group(self, points: Tensor) -> ops.PointGroups:
        """Cut clouds into patches: (B, N, 3) -> centres (B, G, 3) and centred neighbourhoods (B, G, K, 3).

        Raises:
            TypeError: see `check_points`.
            ValueError: see `check_points`.
        """
        self.check_points(points)
        shared = shared_patches.current()
        return self.cut(points) if shared is None else shared.groups(points, lambda: self.cut(points))

    def cut(self, points: Tensor) -> ops.PointGroups:
        """Cut clouds into patches; `group` checks them first, and asks once a batch if it is shared."""
        config = self.config
        return ops.group_points(points, config.num_groups, config.group_size, compat=config.fps_compat)

    def embed_groups(self, neighborhood: Tensor, center: Tensor) -> Tokens:
        """Turn patches into the token sequence; an exported graph starts here.

        Args:
            neighborhood: (B, G, K, 3) points minus their centre.
            center: (B, G, 3) patch centres.

        Returns:
            Tokens with T = P + G, P learned tokens before the patches.
        """
        token, token_pos = self.prefix(center.shape[0])
        x, pos = self.embed_patches(neighborhood, center)
        return Tokens(
            x=torch.cat([token, x], dim=1),
            pos=torch.cat([token_pos, pos], dim=1),
            center=center,
            num_prefix=token.shape[1],
            embed=self.embed_patches,
        )

    def embed_patches(self, neighborhood: Tensor, center: Tensor) -> tuple[Tensor, Tensor]:
        """Patches (B, M, K, 3) and their centres (B, M, 3) -> features and positions, each (B, M, D)."""
        shared = shared_patches.current()
        if shared is None:
            return self._embed(neighborhood, center)
        return shared.embedded(neighborhood, lambda: self._embed(neighborhood, center))

    def _embed(self, neighborhood: Tensor, center: Tensor) -> tuple[Tensor, Tensor]:
        shared = shared_patches.current()
        if shared is None:
            tokens = self.patch_embed(neighborhood)
        else:
            tokens = shared.encoded(neighborhood, lambda: self.patch_embed(neighborhood))
        return self.reduce_dim(tokens), self.pos_embed(center)

    def tokenize(self, points: Tensor) -> Tokens:
        """(B, N, 3) -> the token sequence before the first block."""
        groups = self.group(points)
        return self.with_points(self.embed_groups(groups.neighborhood, groups.center), points)

    def with_points(self, tokens: Tokens, points: Tensor) -> Tokens:
        """Tell a sequence which clouds (B, N, 3) it was made of."""

        def regroup(num_groups: int, group_size: int) -> tuple[Tensor, Tensor]:
            groups = ops.group_points(points, num_groups, group_size, compat=self.config.fps_compat)
            return groups.neighborhood, groups.center

        return replace(tokens, points=points, regroup=regroup)

    def block_outputs(self, tokens: Tokens, blocks: nn.ModuleList | None = None) -> Iterator[Tensor]:
        """Run blocks one after another, by default the network's; yields what each puts out, (B, T, D)."""
        x = tokens.x
        for block in self.blocks if blocks is None else blocks:
            if self.grad_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, tokens.pos, tokens, use_reentrant=False)
            else:
                x = block(x, tokens.pos, tokens)
            yield x

    def encode(self, tokens: Tokens) -> Tensor:
        """Run all blocks and the last norm: Tokens -> (B, T, D)."""
        x = tokens.x
        for x in self.block_outputs(tokens):  # noqa: B007 - the last one counts
            pass
        result: Tensor = self.norm(x)
        return result

    def forward_features(self, points: Tensor) -> Tensor:
        """(B, N, 3) -> (B, P + G, D), the learned tokens first, after the last norm."""
        return self.encode(self.tokenize(points))

    def pool(self, features: Tensor) -> Tensor:
        """(B, 1 + G, D) -> (B, num_pooled D): the class token beside the maximum over the patch tokens."""
        return torch.cat([features[:, 0], max_over_tokens(features[:, 1:])], dim=1)

    def head_features(self, features: Tensor) -> Tensor:
        """(B, T, D) after the last norm -> (B, T, D), what the head pools."""
        return features

    def forward_head(self, features: Tensor) -> Tensor:
        """(B, P + G, D) -> (B, num_classes) logits."""
        result: Tensor = self.head(self.pooling(self.pool, self.head_features(features)))
        return result

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

    def make_classifier(self, num_classes: int, num_pooled: int | None = None) -> nn.Module:
        """Build a new head for this network without attaching it.

        Args:
            num_classes: logits.
            num_pooled: features of width D that it reads; None for what `pool` gives.
        """
        config = self.config
        return ClassificationHead(
            (num_pooled or self.num_pooled) * config.embed_dim,
            num_classes,
            width=config.head_width,
            dropout=config.head_dropout,
        )

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the head by a new one, on the device, in the dtype and in the mode of the old one."""
        like, training = next(self.head.parameters()), self.head.training
        self.head = self.make_classifier(num_classes).to(like.device, like.dtype).train(training)
        self.num_classes = num_classes

    def no_weight_decay(self) -> set[str]:
        """Name what weight decay spares besides biases and 1-D tensors: the class token."""
        return {"prefix.token"}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep no activations inside the blocks while training; compute them again in the backward pass."""
        self.grad_checkpointing = enable
