"""PointGPT's pre-training form: predict every patch from the ones before it."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from pcl_clora.models.backbones.pointgpt.keys import LARGE_PRETRAINING_KEYS, PRETRAINING_KEYS
from pcl_clora.models.backbones.pointgpt.layers import CausalAttention, StartTokens, generation_loss
from pcl_clora.models.backbones.pointgpt.network import PointGPT, PointGPTConfig, PointGPTLarge
from pcl_clora.models.interface import ModelInterface, Tokens
from pcl_clora.models.key_map import KeyMap
from pcl_clora.models.layers.masked_autoencoder import PretrainingOutput, WithoutClassifier, init_transformer


class PointGPTPretraining(WithoutClassifier, PointGPT):
    """PointGPT's pre-training form, with the small patch encoder.

    The sequence is [start token, patches 0 to G - 2], and what comes out at place i becomes patch i, relative
    to its centre. Attention is causal, and some places besides are seen by no other place: one draw for the
    whole batch, for all blocks and the generator.

    Args:
        config: sizes of the network; the section `pretraining` says how many places are dropped.

    Source: Chen et al., PointGPT, NeurIPS 2023, section 3; mask, initial values and loss as released.
    """

    official_keys: ClassVar[KeyMap] = PRETRAINING_KEYS
    may_miss: ClassVar[tuple[str, ...]] = ("increase_dim.",)  # nothing uses it, and the hub drops it

    def __init__(self, config: PointGPTConfig) -> None:
        super().__init__(config)
        self.num_classes = 0
        init_transformer(self)
        for part in self.modules():
            if isinstance(part, CausalAttention):
                nn.init.xavier_uniform_(part.qkv.weight)  # is no linear layer in the released network

    def make_prefix(self) -> nn.Module:
        """Build the start token; pre-training has no class token."""
        return StartTokens(self.config.embed_dim, with_class=False)

    def make_head_norm(self) -> nn.Module:
        """Pre-training has no head."""
        return nn.Identity()

    def describe(self) -> ModelInterface:
        """Say where the parts are; no task owns a token here, and everything but the spare tensors runs."""
        return self.describe_parts(tokens=(), unused=("feature_norm", "increase_dim", "generator.start"))

    def embed_groups(self, neighborhood: Tensor, center: Tensor) -> Tokens:
        """Turn patches into the sequence [start token, patches 0 to G - 2].

        All patches go through the patch encoder, as released, so that its BatchNorms see the last ones too.

        Args:
            neighborhood: (B, G, K, 3) points minus their centre.
            center: (B, G, 3) patch centres in the order of the walk.

        Returns:
            Tokens with T = G.
        """
        tokens = super().embed_groups(neighborhood, center)
        return Tokens(tokens.x[:, :-1], tokens.pos[:, :-1], center, tokens.num_prefix)

    def draw_dropped(self, generator: torch.Generator | None = None) -> Tensor:
        """Choose the places that no other place sees.

        Args:
            generator: CPU generator; None draws from the global one, as dropout does.

        Returns:
            (G,) bool. The first `keep_first` places are never dropped, of the others the share `mask_ratio`,
            rounded down.
        """
        settings, places = self.config.pretraining, self.config.num_groups
        rest = max(places - settings.keep_first, 0)
        dropped = torch.zeros(places, dtype=torch.bool, device="cpu")
        order = torch.randperm(rest, generator=generator, device="cpu") + places - rest
        dropped[order[: int(rest * settings.mask_ratio)]] = True
        return dropped

    def forward(self, points: Tensor, generator: torch.Generator | None = None) -> PretrainingOutput:  # type: ignore[override]
        """Predict every patch of every cloud.

        Args:
            points: (B, N, 3), float32, centred and scaled to the unit sphere, N >= num_groups.
            generator: CPU generator that draws the dropped places; None draws from the global one.

        Returns:
            The loss with everything it was computed from. Every patch is predicted without being seen, so
            `mask` is True everywhere, and `predicted` and `target` are (B, G, K, 3) in the order of the walk.
        """
        groups = self.group(points)
        return self.predict(groups.neighborhood, groups.center, self.draw_dropped(generator))

    def predict(self, neighborhood: Tensor, center: Tensor, dropped: Tensor) -> PretrainingOutput:
        """Predict given patches; nothing is random here but drop-path in training mode.

        Args:
            neighborhood: (B, G, K, 3) points minus their centre.
            center: (B, G, 3) in the order of the walk.
            dropped: (G,) bool, True at places that no other place sees.
        """
        places = torch.arange(len(dropped), device=center.device)
        causal, own = places[:, None] >= places, places[:, None] == places
        may_look = causal & (own | ~dropped.to(center.device))
        tokens = self.embed_groups(neighborhood, center)
        features = self.encode(Tokens(tokens.x, tokens.pos, center, tokens.num_prefix, may_look))
        predicted = self.generate_from(features, center, may_look)
        loss = generation_loss(predicted, neighborhood)
        mask = torch.ones(center.shape[:2], dtype=torch.bool, device=center.device)
        return PretrainingOutput(loss, {"generation": loss}, predicted, neighborhood, center, mask)

    def no_weight_decay(self) -> set[str]:
        """Name what weight decay spares besides biases and 1-D tensors: nothing."""
        return set()


class PointGPTLargePretraining(PointGPTPretraining, PointGPTLarge):
    """PointGPT's pre-training form, with the large patch encoder of B and L.

    Args:
        config: sizes of the network.

    Source: as `PointGPTPretraining`.
    """

    official_keys: ClassVar[KeyMap] = LARGE_PRETRAINING_KEYS
