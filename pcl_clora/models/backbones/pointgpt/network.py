"""PointGPT: a causal transformer over the patches of a cloud in the order of a greedy walk."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from pcl_clora import ops
from pcl_clora.config import Config
from pcl_clora.models.backbones.pointgpt.keys import CLASSIFICATION_KEYS, LARGE_CLASSIFICATION_KEYS
from pcl_clora.models.backbones.pointgpt.layers import (
    CausalBlock,
    Generator,
    LargePatchEncoder,
    StartTokens,
    TurnEmbedding,
    generation_loss,
    walk_directions,
    walk_order,
)
from pcl_clora.models.config import TransformerConfig
from pcl_clora.models.interface import ModelInterface, Tokens
from pcl_clora.models.key_map import KeyMap
from pcl_clora.models.layers.maximum import max_over_tokens
from pcl_clora.models.layers.patch_transformer import PatchTransformer
from pcl_clora.models.layers.product import Linear
from pcl_clora.models.published import Rewritten


class GenerativeConfig(Config):
    """Settings of generative pre-training that only the pre-training form of PointGPT has."""

    mask_ratio: float = Field(default=0.7, ge=0.0, le=1.0)  # share of the later places that no other sees
    keep_first: NonNegativeInt = 10  # places at the start that are never dropped


class PointGPTConfig(TransformerConfig):
    """Settings that the three sizes of PointGPT share."""

    generator_depth: PositiveInt = 4  # blocks of the generator
    generation_weight: NonNegativeFloat = 3.0  # of its loss in fine-tuning; 0 = it never runs
    drop_path: float = Field(default=0.0, ge=0.0, lt=1.0)  # published files name a rate that nothing reads
    pretraining: GenerativeConfig = GenerativeConfig()  # read with task="pretraining" only


class PointGPTSConfig(PointGPTConfig):
    """Settings of PointGPT-S; the defaults are the published network at 2,048 points."""

    name: Literal["pointgpt_s"] = "pointgpt_s"


class PointGPTLargeConfig(PointGPTConfig):
    """Settings of the sizes with the large patch encoder."""

    encoder_widths: tuple[PositiveInt, PositiveInt, PositiveInt] = (512, 1024, 2048)  # its last hidden widths
    encoder_first_width: PositiveInt = 256  # width of the hidden layer before them


class PointGPTBConfig(PointGPTLargeConfig):
    """Settings of PointGPT-B; the defaults are the published network at 2,048 points."""

    name: Literal["pointgpt_b"] = "pointgpt_b"
    embed_dim: PositiveInt = 768
    num_heads: PositiveInt = 12
    propagation_widths: tuple[PositiveInt, PositiveInt] = (3072, 2048)
    segmentation_widths: tuple[PositiveInt, PositiveInt] = (1024, 512)


class PointGPTLConfig(PointGPTLargeConfig):
    """Settings of PointGPT-L; the defaults are the published network at 2,048 points."""

    name: Literal["pointgpt_l"] = "pointgpt_l"
    embed_dim: PositiveInt = 1024
    depth: PositiveInt = 24
    num_heads: PositiveInt = 16
    fetch_layers: tuple[NonNegativeInt, ...] = (3, 7, 11)  # as released: blocks 12 to 23 are not looked at
    propagation_widths: tuple[PositiveInt, PositiveInt] = (4096, 2048)
    segmentation_widths: tuple[PositiveInt, PositiveInt] = (1024, 512)


class PointGPT(Rewritten, PatchTransformer):
    """PointGPT for classification, with the small patch encoder.

    The sequence is [start token, class token, patches in the order of `walk_order`], and attention is causal:
    the class token sees no patch, so that what the head knows of the cloud is the maximum over the patches.

    The generator predicts every patch from the ones before it. Nothing of it reaches the logits, so it runs
    only where its loss is wanted: in training, with gradients, if `generation_weight` is not 0. The loss of
    the last forward pass then stands in `auxiliary_losses`. `published_form` runs it always, as the
    released network does (5.69 instead of 4.78 G MACs for S at 2,048 points).

    Args:
        config: sizes of the network.

    Attributes:
        head_norm: a second LayerNorm in a row, which comes before the head's pooling.
        feature_norm: LayerNorm of the released network that classification never uses (segmentation does).
        increase_dim: layer of the released network that nothing uses. Both are kept because the files hold
            them; they are listed in `interface.unused` and are never trained.

    Source: Chen et al., PointGPT: Auto-regressively Generative Pre-training from Point Clouds, NeurIPS 2023;
    order, positions, residuals and head follow the released models.
    """

    official_keys: ClassVar[KeyMap] = CLASSIFICATION_KEYS
    may_miss: ClassVar[tuple[str, ...]] = ("increase_dim.", "generator.")  # no logit depends on them
    config: PointGPTConfig

    def __init__(self, config: PointGPTConfig) -> None:
        super().__init__(config)
        dim = config.embed_dim
        self.head_norm = self.make_head_norm()
        self.feature_norm = nn.LayerNorm(dim)
        self.increase_dim = Linear(dim, 3 * config.group_size)
        self.generator = Generator(
            dim, config.generator_depth, config.num_heads, config.mlp_ratio, config.group_size
        )
        self._auxiliary: dict[str, Tensor] = {}

    def make_pos_embed(self) -> nn.Module:
        """Build what turns centres (B, G, 3) into positions (B, G, D)."""
        return TurnEmbedding(self.config.embed_dim)

    def make_prefix(self) -> nn.Module:
        """Build the start token and the class token."""
        return StartTokens(self.config.embed_dim)

    def make_block(self, drop_path: float) -> nn.Module:
        """Build one block with its drop-path rate."""
        config = self.config
        return CausalBlock(config.embed_dim, config.num_heads, config.mlp_ratio, drop_path)

    def make_head_norm(self) -> nn.Module:
        """Build what normalises the tokens before the head pools them."""
        return nn.LayerNorm(self.config.embed_dim)

    def describe(self) -> ModelInterface:
        """Say where the parts are; the second norm is new in fine-tuning, so it belongs to the task."""
        generator = "generator.start" if self.config.generation_weight else "generator"
        parts = self.describe_parts(
            tokens=("prefix.token", "prefix.pos", "head_norm"),
            unused=("feature_norm", "increase_dim", generator),
        )
        return dataclasses.replace(parts, training_only=("generator",))

    def describe_parts(self, tokens: tuple[str, ...], unused: tuple[str, ...]) -> ModelInterface:
        """Make the interface: positions have no parameters, and norms are those of the extractor."""
        shared = super().describe()
        norms = tuple(name for name in shared.parts["norms"] if name.startswith(("blocks.", "norm")))
        parts = {**shared.parts, "tokens": tokens, "pos_embed": (), "norms": norms}
        return dataclasses.replace(shared, parts=parts, unused=unused, causal=True)

    def cut(self, points: Tensor) -> ops.PointGroups:
        """Cut clouds into patches, in the order of a greedy walk over their centres."""
        groups = super().cut(points)
        order = walk_order(groups.center)
        rows = torch.arange(len(order), device=order.device)[:, None]
        return ops.PointGroups(*(part[rows, order] for part in groups))

    def head_features(self, features: Tensor) -> Tensor:
        """(B, T, D) after the last norm -> (B, T, D) after the head's own."""
        result: Tensor = self.head_norm(features)
        return result

    def pool(self, features: Tensor) -> Tensor:
        """(B, 2 + G, D) -> (B, 2 D): the class token beside the maximum over the patch tokens."""
        return torch.cat([features[:, 1], max_over_tokens(features[:, 2:])], dim=1)

    def forward(self, points: Tensor) -> Tensor:
        """Classify clouds; in training also prepare `auxiliary_losses`.

        Args:
            points: (B, N, 3), float32, centred and scaled to the unit sphere, N >= num_groups.

        Returns:
            (B, num_classes) logits.
        """
        groups = self.group(points)
        tokens = self.embed_groups(groups.neighborhood, groups.center)
        features = self.encode(self.with_points(tokens, points))
        self._auxiliary = {}
        if self.training and torch.is_grad_enabled() and self.config.generation_weight:
            loss = self.generation_loss(features, groups)
            self._auxiliary["generation"] = self.config.generation_weight * loss
        elif self.published:
            self.generate(features, groups.center)
        return self.forward_head(features)

    def generate(self, features: Tensor, center: Tensor) -> Tensor:
        """Predict every patch from the features of the patches before it.

        Args:
            features: (B, T, D), what `forward_features` returns; what stands behind the patches is not read.
            center: (B, G, 3), patch centres in the order of the walk.

        Returns:
            (B, G, K, 3), after fine-tuning in the coordinates of the cloud.
        """
        before = torch.cat([features[:, :1], features[:, 2 : 1 + center.shape[1]]], dim=1)
        return self.generate_from(before, center)

    def generate_from(self, before: Tensor, center: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """Run the generator.

        Args:
            before: (B, G, D), for every patch the feature at the place before it.
            center: (B, G, 3), patch centres in the order of the walk.
            attn_mask: (G, G) bool, True where the row may look at the column; None for causal order.

        Returns:
            (B, G, K, 3).
        """
        tokens = Tokens(before, self.pos_embed(walk_directions(center)), center, 0, attn_mask)
        *_, x = self.block_outputs(tokens, self.generator.blocks)
        return self.generator.decode(x)

    def generation_loss(self, features: Tensor, groups: ops.PointGroups) -> Tensor:
        """Compute the auxiliary loss of fine-tuning, not weighted.

        Args:
            features: (B, 2 + G, D), tokens of these patches after the last norm.
            groups: what `group` returned. The target is every patch in the coordinates of the cloud, whereas
                pre-training predicts patches relative to their centres; both as released.

        Returns:
            (), see `pointgpt_layers.generation_loss`.
        """
        target = groups.neighborhood + groups.center[:, :, None]
        return generation_loss(self.generate(features, groups.center), target)

    def auxiliary_losses(self) -> Mapping[str, Tensor]:
        """Say what the last forward pass adds to the task's loss: name -> () weighted term.

        The same tensors however often they are asked for, until the next forward pass. Empty after a pass in
        evaluation mode, without gradients or with generation_weight = 0.
        """
        return dict(self._auxiliary)

    def __getstate__(self) -> dict[str, Any]:
        """Leave the loss out of copies: it belongs to the graph of this model's forward pass."""
        return {**self.__dict__, "_auxiliary": {}}


class PointGPTLarge(PointGPT):
    """PointGPT for classification, with the large patch encoder of B and L.

    Args:
        config: sizes of the network.

    Source: as `PointGPT`.
    """

    official_keys: ClassVar[KeyMap] = LARGE_CLASSIFICATION_KEYS
    config: PointGPTLargeConfig

    def make_patch_embed(self) -> nn.Module:
        """Build what turns patches (B, G, K, 3) into vectors (B, G, D)."""
        config = self.config
        widths = (config.encoder_first_width, *config.encoder_widths)
        return LargePatchEncoder(
            config.encoder_dim or config.embed_dim,
            widths,
            fold=config.fold_batchnorm,
            chunk=config.encoder_chunk,
        )
