"""PCP-MAE's pre-training form: also predict where the hidden patches are, and decode from that."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcl_clora.models.backbones.pcp_mae.keys import PRETRAINING_KEYS
from pcl_clora.models.backbones.pcp_mae.network import PCPMAE, PCPMAEConfig, SinCosPosEmbed, sin_cos_features
from pcl_clora.models.interface import Tokens
from pcl_clora.models.layers.masked_autoencoder import (
    MaskedAutoencoder,
    MaskedPatches,
    PretrainingOutput,
    add_terms,
    take,
)
from pcl_clora.models.layers.product import Linear


class PCPMAEPretraining(MaskedAutoencoder, PCPMAE):
    """PCP-MAE's pre-training form.

    The hidden patches go through the encoder too, without their positions: they look at all patches, the
    visible ones only at one another. From what comes out their positions (sines and cosines of the centre)
    are predicted, which is a term of the loss, and the decoder gets the predicted positions, without
    gradient. The encoder's position embedding is used in the decoder as well.

    Both kinds of patches are one sequence here with a mask on the attention, which computes the same; in
    training mode one draw of drop-path serves both kinds of a cloud, where the released code draws twice.

    Args:
        config: sizes of the network; the section `pretraining` says how much is hidden, and the decoder.

    Source: Zhang et al., PCP-MAE: Learning to Predict Centers for Point Masked Autoencoders, NeurIPS 2024;
        the default setting of the released code (no extra layers for the prediction, gradient cut).
    """

    official_keys = PRETRAINING_KEYS
    config: PCPMAEConfig
    pos_embed: SinCosPosEmbed

    def __init__(self, config: PCPMAEConfig) -> None:
        super().__init__(config)
        dim = config.embed_dim
        self.mask_pos_token = nn.Parameter(torch.empty(1, 1, dim))
        nn.init.trunc_normal_(self.mask_pos_token, std=0.02)
        self.predict_pos = nn.Sequential(
            Linear(dim, dim), nn.LayerNorm(dim), nn.ReLU(inplace=True), Linear(dim, dim)
        )

    def make_decoder_pos_embed(self) -> nn.Module | None:
        """Build nothing: the decoder's positions come from the encoder's embedding."""
        return None

    def encode_visible(self, patches: MaskedPatches) -> Tensor:
        """Encode visible and hidden patches: (B, V + M, D), the visible ones first."""
        embedded = self.reduce_dim(self.patch_embed(patches.neighborhood))
        x = torch.cat([take(embedded, patches.visible), take(embedded, patches.hidden)], dim=1)
        (b, t, _), v = x.shape, patches.visible.shape[1]
        seen = take(patches.center, patches.visible)
        pos = torch.cat([self.pos_embed(seen), self.mask_pos_token.expand(b, t - v, -1)], dim=1)
        may_look = torch.ones(t, t, dtype=torch.bool, device=x.device)
        may_look[:v, v:] = False
        return self.encode(Tokens(x, pos, seen, 0, attn_mask=may_look))

    def decode(self, encoded: Tensor, patches: MaskedPatches) -> PretrainingOutput:
        """Predict the positions of the hidden patches, and rebuild them there."""
        visible, hidden = encoded.tensor_split([patches.visible.shape[1]], dim=1)
        predicted = self.predict_pos(hidden)
        position = sin_cos_features(take(patches.center, patches.hidden), self.config.embed_dim)
        output = self.rebuild_patches(visible, self.pos_embed.embed(predicted.detach()), patches)
        weight = self.config.pretraining.position_weight
        return add_terms(output, {"position": weight * F.mse_loss(predicted, position)})

    def no_weight_decay(self) -> set[str]:
        """Name what weight decay spares besides biases and 1-D tensors: both mask tokens."""
        return {"mask_token", "mask_pos_token"}
