"""DoRA: the direction of every weight row learns by LoRA, its length on its own."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from pcl_clora.adapters.base import AdapterMethod, Delta
from pcl_clora.adapters.config import AdapterConfig
from pcl_clora.adapters.methods.lora import (
    LoRADelta,
    LowRank,
    LowRankConfig,
    Update,
    at_rows,
    check_pattern_blocks,
    check_ranks,
    sites_by_layer,
)
from pcl_clora.adapters.paths import LinearSite
from pcl_clora.errors import UserValueError
from pcl_clora.models.interface import ModelInterface


class DoRAConfig(LowRankConfig):
    """Settings of weight-decomposed low-rank adaptation (Liu et al., ICML 2024)."""

    method: Literal["dora"] = "dora"


class DirectedLowRank(LowRank):
    """The update of one role, and the lengths of its rows.

    Attributes:
        magnitude: m (rows,), the lengths of the rows of W at the start.
    """

    def __init__(self, site: LinearSite, config: LowRankConfig) -> None:
        super().__init__(site, config)
        lengths = site.layer.weight.detach()[slice(*site.rows)].norm(dim=1)
        if not lengths.is_meta and bool((lengths == 0).any()):
            raise UserValueError(
                f"{site.path} has {int((lengths == 0).sum())} rows of zeros for role {site.role!r}, which "
                "have no direction that dora could keep; load weights first, or take lora."
            )
        self.magnitude = nn.Parameter(lengths)

    def gain(self, weight: Tensor) -> Tensor:
        """Return m / ||V_i||, (rows,), V = W + s B A, with ||V_i|| a constant for the gradient (4.3)."""
        rows = weight[slice(*self.rows)].detach()
        lengths: Tensor = (rows + self.matrix(like=rows)).detach().norm(dim=1)
        return self.magnitude.to(rows) / lengths


class DoRADelta(LoRADelta):
    """LoRA's updates of one linear layer, with the rows scaled to lengths of their own."""

    def forward(self, base_layer: nn.Module, x: Tensor) -> Tensor:
        """(..., C_in) -> (..., C_out): (m / n) (x W^T + s x A^T B^T) + b."""
        y: Tensor = base_layer(x)
        weight, bias = base_layer.weight, base_layer.bias
        assert isinstance(weight, Tensor)
        gain = self.gains(weight)
        down, up = self.stacked()
        up = up * (gain if self.scale is None else self.scale * gain)
        kept = y * gain.to(y)
        if isinstance(bias, Tensor):
            kept = torch.addcmul(kept, (1 - gain).to(y), bias.to(y))  # the bias is not scaled
        hidden = self.dropout(x).flatten(0, -2) @ down
        return torch.addmm(kept.flatten(0, -2), hidden, up).view(y.shape)

    def gains(self, weight: Tensor) -> Tensor:
        """Return the factor of every output row, (C_out,); 1 where no role is."""
        pieces = [(update.rows, _gain(update, weight)[None] - 1) for update in self.each()]
        return at_rows(pieces, self.out_features)[0] + 1

    def low_rank(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Refuse: the rows are scaled too."""
        return Delta.low_rank(self, weight)

    def merged_weight(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Fold in: W' = diag(m / n) (W + s B A)."""
        gain = self.gains(weight)
        merged, bias = super().merged_weight(weight, bias)
        return gain[:, None] * merged, bias


def _gain(update: Update, weight: Tensor) -> Tensor:
    assert isinstance(update, DirectedLowRank)
    return update.gain(weight)


class DoRA(AdapterMethod):
    """Weight-decomposed low-rank adaptation: W' = diag(m / ||V_i||) V, V = W + s B A, i a row of the output.

    Trained: r (C_in + rows) + rows numbers a place, 156,672 for q and v of Point-MAE with r = 8. Mergeable,
    does not depend on batch mates, equal to the base at the start, where m / n is exactly 1. The norm is a
    constant for the gradient, the bias is not scaled. Dropout acts on the input of the low-rank term only.

    Ours: slices of q, k, v have lengths of their own rows; rank pattern and rsLoRA scale as in `lora`.

    Source: Liu et al., DoRA: Weight-Decomposed Low-Rank Adaptation, ICML 2024, sections 4.1 and 4.3.
    """

    config_type: ClassVar[type[AdapterConfig]] = DoRAConfig
    config: DoRAConfig

    def make_deltas(self, model: nn.Module, interface: ModelInterface) -> dict[str, Delta]:
        """Make one delta a layer, with an update for every role that the layer plays."""
        config, deltas = self.config, dict[str, Delta]()
        check_pattern_blocks(config, interface)
        for path, sites in sites_by_layer(model, interface, config).items():
            if not self.from_file:
                check_ranks(config, sites)
            updates: dict[str, Update] = {site.role: DirectedLowRank(site, config) for site in sites}
            deltas[path] = DoRADelta(sites[0].layer, updates, config.dropout)
        return deltas
