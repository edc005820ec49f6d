"""Point-BERT's pre-training form: tell the tokens of hidden patches from the others."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcl_clora import ops
from pcl_clora.models.backbones.point_bert.keys import PRETRAINING_KEYS
from pcl_clora.models.backbones.point_bert.network import PointBERT, PointBERTConfig
from pcl_clora.models.interface import ModelInterface, Tokens
from pcl_clora.models.key_map import KeyMap
from pcl_clora.models.layers.edge_conv import EdgeConv
from pcl_clora.models.layers.masked_autoencoder import (
    PretrainingOutput,
    WithoutClassifier,
    init_transformer,
    take,
)
from pcl_clora.models.layers.product import Linear
from pcl_clora.models.layers.transformer import PatchEncoder, PrefixTokens

_NUM_NEIGHBORS = 4  # of a patch in the tokenizer's graph, itself included; published


class PatchTokenizer(nn.Module):
    """The encoder of Point-BERT's discrete autoencoder (dVAE): says which of V tokens a patch is.

    Args:
        num_tokens: V, size of the vocabulary, a multiple of 4.
        encoder_dim: width of the patch encoder's result.
        encoder_widths: hidden widths of the patch encoder.
        widths: of the graph: the input's, then those of the four edge convolutions; all but the first
            multiples of 4.

    Source: Yu et al., Point-BERT, CVPR 2022, section 3.1, as released. The decoder of the autoencoder is not
    part of it: only training the tokenizer needs that.
    """

    def __init__(
        self,
        num_tokens: int,
        encoder_dim: int,
        encoder_widths: Sequence[int],
        widths: Sequence[int] = (128, 256, 512, 512, 1024),
    ) -> None:
        super().__init__()
        self.patch_embed = PatchEncoder(encoder_dim, encoder_widths)
        self.reduce = Linear(encoder_dim, widths[0])
        self.edges = nn.ModuleList(EdgeConv(before, after) for before, after in pairwise(widths))
        self.vocabulary = Linear(sum(widths[1:]), num_tokens, bias=False)
        self.norm = nn.GroupNorm(4, num_tokens)

    def forward(self, neighborhood: Tensor, center: Tensor) -> Tensor:
        """Score all tokens for every patch.

        Args:
            neighborhood: (B, G, K, 3) points minus their centre.
            center: (B, G, 3), G >= 4.

        Returns:
            (B, G, V) logits; the token of a patch is the largest.
        """
        idx = ops.knn(center, center, _NUM_NEIGHBORS).idx
        x = self.reduce(self.patch_embed(neighborhood))
        found = []
        for edge in self.edges:
            x = edge(x, x, idx)
            found.append(x)
        x = self.norm(self.vocabulary(torch.cat(found, dim=2)).transpose(1, 2))
        return F.leaky_relu(x, 0.2).transpose(1, 2)


class PointBERTPretraining(WithoutClassifier, PointBERT):
    """Point-BERT's pre-training form: masked point modelling with the frozen tokenizer.

    Of the 411 tensors of an official file this form holds 202: the 167 of the trained network
    (`transformer_q`) and the 35 of the tokenizer (the dVAE's patch encoder and first graph). Left out are the
    167 of the momentum copy (`transformer_k`) and the queue of negatives with its pointer, which are the
    state of the contrastive loss and no network, and the 40 of the dVAE's codebook, second graph and decoder,
    which only training the tokenizer needs. So the loss has no contrastive term (published settings have one
    for mixed clouds): `contrast_head` is loaded and saved, and nothing runs it.

    The tokenizer is frozen with its BatchNorm statistics; the released code lets these move. With random
    weights its tokens mean little: load an official file first.

    Args:
        config: sizes of the network; the section `pretraining` says how much is hidden, and the vocabulary.

    Source: Yu et al., Point-BERT: Pre-training 3D Point Cloud Transformers with Masked Point Modeling, CVPR
    2022, section 3.2, as released.
    """

    official_keys: ClassVar[KeyMap] = PRETRAINING_KEYS
    may_miss: ClassVar[tuple[str, ...]] = ("tokenizer.",)  # files of the trained network alone lack it
    config: PointBERTConfig

    def __init__(self, config: PointBERTConfig) -> None:
        super().__init__(config)
        dim, settings = config.embed_dim, config.pretraining
        self.num_classes = 0
        self.mask_token = nn.Parameter(torch.empty(1, 1, dim))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.token_head = Linear(dim, settings.num_tokens)
        width = settings.contrast_width
        self.contrast_head = nn.Sequential(Linear(dim, width), nn.GELU(), Linear(width, width))
        init_transformer(self)
        self.tokenizer = PatchTokenizer(
            settings.num_tokens,
            config.encoder_dim or dim,
            config.encoder_widths,
            settings.tokenizer_widths,
        ).requires_grad_(False)
        self.tokenizer.eval()

    def make_prefix(self) -> nn.Module:
        """Build the class token."""
        return PrefixTokens(1, self.config.embed_dim)

    def describe(self) -> ModelInterface:
        """Say where the parts are."""
        return dataclasses.replace(super().describe(), unused=("contrast_head",))

    def train(self, mode: bool = True) -> PointBERTPretraining:
        """Set training mode; the tokenizer stays in evaluation mode."""
        super().train(mode)
        if hasattr(self, "tokenizer"):
            self.tokenizer.eval()
        return self

    def forward(self, points: Tensor, generator: torch.Generator | None = None) -> PretrainingOutput:  # type: ignore[override]
        """Hide patches and tell their tokens; in training also for clouds mixed of two.

        Args:
            points: (B, N, 3), float32, centred and scaled to the unit sphere, N >= num_groups.
            generator: CPU generator that draws masks and mixtures; None draws from the global one, as dropout
                does.

        Returns:
            The loss with everything it was computed from. Clouds hide different numbers of patches, so that
            `predicted` is (H, V), the logits of all H hidden patches in the order of `mask`, and `target` is
            (H,), int64, their tokens.
        """
        groups = self.group(points)
        neighborhood, center = groups.neighborhood, groups.center
        target = self.tokens_of(neighborhood, center)
        output = self.predict(neighborhood, center, target, self.draw_mask(center, generator))
        if not (self.training and self.config.pretraining.mix):
            return output
        keep = self.draw_mixture(center, generator)
        center, target = (torch.where(_like(keep, x), x, x.flip(0)) for x in (center, target))
        neighborhood = torch.where(_like(keep, neighborhood), neighborhood, neighborhood.flip(0))
        mixed = self.predict(neighborhood, center, target, self.draw_mask(center, generator)).loss
        return output._replace(loss=output.loss + mixed, terms={**output.terms, "mixed_tokens": mixed})

    @torch.no_grad()
    def tokens_of(self, neighborhood: Tensor, center: Tensor) -> Tensor:
        """Tokenize patches (B, G, K, 3) at centres (B, G, 3): (B, G), int64."""
        result: Tensor = self.tokenizer(neighborhood, center).argmax(dim=2)
        return result

    def draw_mask(self, center: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Choose the patches to hide: those around one of every cloud.

        Args:
            center: (B, G, 3).
            generator: CPU generator; None draws from the global one.

        Returns:
            (B, G) bool; how many are True is drawn for every cloud, between the shares of `mask_ratio`.
        """
        b, g, _ = center.shape
        least, most = self.config.pretraining.mask_ratio
        first = torch.randint(g, (b, 1), generator=generator).to(center.device)
        share = least + (most - least) * torch.rand(b, 1, generator=generator)
        count = (share * g).long().to(center.device)
        order = (center - take(center, first)).square().sum(dim=2).argsort(dim=1, stable=True)
        hidden = torch.arange(g, device=center.device) < count
        return torch.zeros_like(hidden).scatter(1, order, hidden)

    def draw_mixture(self, center: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Choose which patches a mixed cloud keeps; the others come from the batch in reverse order.

        Args:
            center: (B, G, 3).
            generator: CPU generator; None draws from the global one.

        Returns:
            (B, G) bool; the share that is kept is drawn for every cloud, between 0 and 1.
        """
        b, g, _ = center.shape
        share = torch.rand(b, 1, generator=generator)
        return (torch.rand(b, g, generator=generator) < share).to(center.device)

    def predict(
        self, neighborhood: Tensor, center: Tensor, target: Tensor, mask: Tensor
    ) -> PretrainingOutput:
        """Tell the tokens of given hidden patches; nothing is random here but drop-path in training mode.

        Args:
            neighborhood: (B, G, K, 3) points minus their centre.
            center: (B, G, 3).
            target: (B, G), int64, the tokens.
            mask: (B, G) bool, True where a patch is hidden.
        """
        tokens = self.embed_groups(neighborhood, center)
        token, x = tokens.x.tensor_split([tokens.num_prefix], dim=1)
        x = torch.where(mask[:, :, None], self.mask_token.to(x.dtype), x)
        features = self.encode(Tokens(torch.cat([token, x], dim=1), tokens.pos, center, tokens.num_prefix))
        logits, wanted = self.token_head(features[:, tokens.num_prefix :][mask]), target[mask]
        loss = F.cross_entropy(logits.float(), wanted)
        return PretrainingOutput(loss, {"tokens": loss}, logits, wanted, center, mask)

    def no_weight_decay(self) -> set[str]:
        """Name what weight decay spares besides biases and 1-D tensors: the learned tokens."""
        return {"prefix.token", "mask_token"}


def _like(mask: Tensor, values: Tensor) -> Tensor:
    """View a mask (B, G) so that it broadcasts over values (B, G, ...)."""
    return mask.view(*mask.shape, *(1,) * (values.dim() - 2))
