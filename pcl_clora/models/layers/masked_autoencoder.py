"""Masked autoencoding: hide patches of a cloud, and learn to rebuild their points from the others.

The pre-training form of a backbone has the names of its classification form for what both have, so that a
state dict of one fills the other. Its forward pass returns the loss; the masks are drawn from a generator.
"""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from pcl_clora import ops
from pcl_clora.errors import UserValueError
from pcl_clora.models.config import MaskedConfig
from pcl_clora.models.interface import Tokens
from pcl_clora.models.key_map import KeyMap
from pcl_clora.models.layers.family_keys import DECODER_RULES, PATCH_EMBED_RULES, TRANSFORMER_RULES
from pcl_clora.models.layers.patch_transformer import PatchTransformer
from pcl_clora.models.layers.product import Linear
from pcl_clora.models.layers.transformer import Block, NoPrefix


class PretrainingOutput(NamedTuple):
    """What one pre-training step computes.

    Attributes:
        loss: (), the sum of the terms; what is minimised.
        terms: name -> (), weighted parts of the loss, with gradients.
        predicted: (B, M, K, 3), rebuilt points of the hidden patches, relative to their centres; a network
            that predicts something else says so in its `forward`.
        target: (B, M, K, 3), the points they had.
        center: (B, G, 3), centres of all patches.
        mask: (B, G) bool, True where a patch was hidden; `predicted` has them in the order of `center`.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    predicted: Tensor
    target: Tensor
    center: Tensor
    mask: Tensor


class MaskedPatches(NamedTuple):
    """Patches of which some are hidden.

    Attributes:
        neighborhood: (B, G, K, 3) points minus their centre.
        center: (B, G, 3).
        mask: (B, G) bool, True where a patch is hidden.
        visible: (B, V), int64, which patches are visible, ascending.
        hidden: (B, M), int64, which are hidden, ascending; V + M = G.
    """

    neighborhood: Tensor
    center: Tensor
    mask: Tensor
    visible: Tensor
    hidden: Tensor


def draw_mask(
    center: Tensor, num_masked: int, kind: str = "random", generator: torch.Generator | None = None
) -> Tensor:
    """Choose which patches of every cloud to hide.

    Args:
        center: (B, G, 3).
        num_masked: M, how many of a cloud, 0 <= M <= G.
        kind: "random" hides any M patches, "block" a random one and the M - 1 whose centres are nearest.
        generator: CPU generator; None draws from the global one, as dropout does.

    Returns:
        (B, G) bool, True at exactly M patches of every cloud.

    Raises:
        ValueError: if the kind is not known or M is out of range.

    Source: Yu et al., Point-BERT, CVPR 2022 (block); Pang et al., Point-MAE, ECCV 2022 (both).
    """
    b, g, _ = center.shape
    if not 0 <= num_masked <= g:
        raise UserValueError(f"num_masked={num_masked} is not in 0..{g}, the patches of a cloud.")
    if kind == "random":
        order = torch.rand(b, g, generator=generator).argsort(dim=1).to(center.device)
    elif kind == "block":
        first = torch.randint(g, (b, 1), generator=generator).to(center.device)
        offset = center - take(center, first)
        order = offset.square().sum(dim=2).argsort(dim=1, stable=True)
    else:
        raise UserValueError(f"mask={kind!r} is not known; use 'random' or 'block'.")
    mask = torch.zeros(b, g, dtype=torch.bool, device=center.device)
    return mask.scatter_(1, order[:, :num_masked], True)


def take(values: Tensor, index: Tensor) -> Tensor:
    """Pick entries of every sample: values (B, G, ...) at index (B, M) -> (B, M, ...)."""
    batch = torch.arange(values.shape[0], device=values.device)[:, None]
    return values[batch, index]


def chamfer_loss(predicted: Tensor, target: Tensor, kind: str = "chamfer_l2") -> Tensor:
    """Average chamfer distance of clouds.

    Args:
        predicted: (B, N, 3).
        target: (B, M, 3).
        kind: "chamfer_l2": mean squared distance to the nearest point, both ways added; "chamfer_l1": mean
            distance, half the sum of both ways; "chamfer_l1_l2": the sum of both.

    Returns:
        (), float. The gradient is finite where points coincide, which that of the distance is not.

    Source: all forms as in the released losses of the family.
    """
    predicted = predicted.to(target.dtype)  # autocast predicts in bfloat16
    readable = predicted.device.type == "cpu" and not torch.compiler.is_compiling()
    if readable and not bool(predicted.detach().sum().isfinite()):
        return (
            predicted.sum() * torch.nan
        )  # training has diverged: its guard saves the state, the op would raise
    found = ops.chamfer_distance(predicted, target)
    l2 = found.dist_a.mean() + found.dist_b.mean()
    if kind == "chamfer_l2":
        return l2
    least = torch.finfo(l2.dtype).tiny
    l1 = (found.dist_a.clamp_min(least).sqrt().mean() + found.dist_b.clamp_min(least).sqrt().mean()) / 2
    return l1 if kind == "chamfer_l1" else l1 + l2


def init_transformer(module: nn.Module) -> None:
    """Initialise linear layers as the published pre-training does: normal with deviation 0.02, cut off."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=0.02)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


class Decoder(nn.Module):
    """Blocks of the encoder's kind and a norm, Xavier-initialised.

    Args:
        dim: width D of a token.
        depth: number of blocks.
        num_heads: attention heads.
        mlp_ratio: hidden width of an MLP / D.
        drop_path: drop-path rate of the last block; grows linearly from 0.
    """

    def __init__(self, dim: int, depth: int, num_heads: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        rates = torch.linspace(0, drop_path, depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(Block(dim, num_heads, mlp_ratio, rate) for rate in rates)
        self.norm = nn.LayerNorm(dim)
        for part in self.modules():
            if isinstance(part, nn.Linear):
                nn.init.xavier_uniform_(part.weight)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)


class WithoutClassifier:
    """What a pre-training form has in the place of a classifier; stands before the backbone it changes."""

    def make_classifier(self, num_classes: int, num_pooled: int | None = None) -> nn.Module:
        """Pre-training has no head."""
        return nn.Identity()

    def reset_classifier(self, num_classes: int) -> None:
        """Refuse: there is no classifier here.

        Raises:
            ValueError: always.
        """
        raise UserValueError(
            "The pre-training form has no classifier; make the classification form with create_model() and "
            "fill it with load_weights(model, pretrained.state_dict())."
        )


class MaskedAutoencoder(WithoutClassifier, PatchTransformer):
    """Point-MAE's pre-training form: encode the visible patches, decode all, compare the hidden ones.

    Args:
        config: sizes of the network; the section `pretraining` says how much is hidden, and the decoder.

    Attributes:
        keeps_prefix: the learned tokens before the patches stay, as in ReCon.

    Source: Pang et al., Masked Autoencoders for Point Cloud Self-supervised Learning, ECCV 2022, section 3;
        initialisation and the use of all patches in the patch encoder follow the released code.
    """

    official_keys = KeyMap(PATCH_EMBED_RULES + TRANSFORMER_RULES + DECODER_RULES)
    keeps_prefix: ClassVar[bool] = False
    config: MaskedConfig

    def __init__(self, config: MaskedConfig) -> None:
        super().__init__(config)
        dim, settings = config.embed_dim, config.pretraining
        if settings.init == "normal":
            init_transformer(self)
        self.num_classes = 0
        self.mask_token = nn.Parameter(torch.empty(1, 1, dim))
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        self.decoder_pos_embed = self.make_decoder_pos_embed()
        heads = settings.decoder_heads or config.num_heads
        self.decoder = Decoder(dim, settings.decoder_depth, heads, config.mlp_ratio, config.drop_path)
        self.rebuild = Linear(dim, 3 * config.group_size)

    def make_prefix(self) -> nn.Module:
        """Build the learned tokens of a network that keeps them; no class token otherwise."""
        return super().make_prefix() if self.keeps_prefix else NoPrefix(self.config.embed_dim)

    def make_decoder_pos_embed(self) -> nn.Module | None:
        """Build what turns centres into the positions of the decoder; None for the encoder's."""
        return self.make_pos_embed()

    def forward(self, points: Tensor, generator: torch.Generator | None = None) -> PretrainingOutput:  # type: ignore[override]
        """Hide patches and rebuild them.

        Args:
            points: (B, N, 3), float32, centred and scaled to the unit sphere, N >= num_groups.
            generator: CPU generator that draws the masks; None draws from the global one, as dropout does.

        Returns:
            The loss with everything it was computed from.
        """
        groups = self.group(points)
        return self.reconstruct(groups.neighborhood, groups.center, self.draw_mask(groups.center, generator))

    def draw_mask(self, center: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Choose the patches to hide: centres (B, G, 3) -> (B, G) bool."""
        return draw_mask(center, self.config.num_masked, self.config.pretraining.mask, generator)

    def reconstruct(self, neighborhood: Tensor, center: Tensor, mask: Tensor) -> PretrainingOutput:
        """Rebuild given patches; nothing is random here but drop-path in training mode.

        Args:
            neighborhood: (B, G, K, 3) points minus their centre.
            center: (B, G, 3).
            mask: (B, G) bool, True at `config.num_masked` patches of every cloud.

        Raises:
            ValueError: if the mask hides another number of patches (checked on the CPU).
        """
        patches = self.hide(neighborhood, center, mask)
        return self.decode(self.encode_visible(patches), patches)

    def hide(self, neighborhood: Tensor, center: Tensor, mask: Tensor) -> MaskedPatches:
        """Sort out which patches are visible and which are hidden."""
        hidden = self.config.num_masked
        if mask.device.type == "cpu" and not bool((mask.sum(dim=1) == hidden).all()):
            raise UserValueError(
                f"mask hides {mask.sum(dim=1).tolist()} patches, but this model hides {hidden} of every "
                "cloud; draw it with draw_mask()."
            )
        order = mask.to(torch.int8).argsort(dim=1, stable=True)  # visible ones first, each kind in order
        visible, hidden_index = order.tensor_split([mask.shape[1] - hidden], dim=1)
        return MaskedPatches(neighborhood, center, mask, visible, hidden_index)

    def embed_visible(self, patches: MaskedPatches) -> Tensor:
        """Embed the visible patches: (B, V, D).

        The published code embeds all patches and drops the hidden ones. Embedding only the visible ones
        gives the same values in evaluation mode; in training the BatchNorms of the patch encoder then see
        fewer patches, so that their statistics differ.
        """
        neighborhood, visible = patches.neighborhood, patches.visible
        if self.config.pretraining.embed == "visible":
            result: Tensor = self.reduce_dim(self.patch_embed(take(neighborhood, visible)))
            return result
        return take(self.reduce_dim(self.patch_embed(neighborhood)), visible)

    def encode_visible(self, patches: MaskedPatches) -> Tensor:
        """Encode the tokens before the patches, and the visible patches: (B, P + V, D)."""
        token, token_pos = self.prefix(patches.center.shape[0])
        seen = take(patches.center, patches.visible)
        x = torch.cat([token, self.embed_visible(patches)], dim=1)
        pos = torch.cat([token_pos, self.pos_embed(seen)], dim=1)
        return self.encode(Tokens(x, pos, seen, token.shape[1]))

    def decode(self, encoded: Tensor, patches: MaskedPatches) -> PretrainingOutput:
        """Rebuild the hidden patches from what was encoded, (B, P + V, D), and measure how well."""
        features = encoded[:, -patches.visible.shape[1] :]
        hidden_pos = self.decoder_positions(take(patches.center, patches.hidden))
        return self.rebuild_patches(features, hidden_pos, patches)

    def decoder_positions(self, center: Tensor) -> Tensor:
        """Turn centres (B, M, 3) into the decoder's positions (B, M, D)."""
        embed = self.pos_embed if self.decoder_pos_embed is None else self.decoder_pos_embed
        result: Tensor = embed(center)
        return result

    def rebuild_patches(
        self, features: Tensor, hidden_pos: Tensor, patches: MaskedPatches
    ) -> PretrainingOutput:
        """Decode features (B, V, D) and mask tokens at positions (B, M, D), and compare with the points."""
        target = take(patches.neighborhood, patches.hidden)
        b, m, k, _ = target.shape
        visible_pos = self.decoder_positions(take(patches.center, patches.visible))
        x = torch.cat([features, self.mask_token.expand(b, m, -1)], dim=1)
        pos = torch.cat([visible_pos, hidden_pos], dim=1)
        *_, x = self.block_outputs(Tokens(x, pos, patches.center, 0), self.decoder.blocks)
        predicted = self.rebuild(self.decoder.norm(x[:, -m:])).view(b, m, k, 3)
        loss = chamfer_loss(predicted.flatten(0, 1), target.flatten(0, 1), self.config.pretraining.loss)
        terms = {"reconstruction": loss}
        return PretrainingOutput(loss, terms, predicted, target, patches.center, patches.mask)

    def no_weight_decay(self) -> set[str]:
        """Name what weight decay spares besides biases and 1-D tensors: the mask token."""
        return {"mask_token"}


def add_terms(output: PretrainingOutput, terms: dict[str, Tensor]) -> PretrainingOutput:
    """Add terms to the loss of an output."""
    loss = torch.stack([output.loss, *terms.values()]).sum()
    return output._replace(loss=loss, terms={**output.terms, **terms})
