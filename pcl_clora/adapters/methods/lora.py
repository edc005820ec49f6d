"""LoRA: a low-rank update of its own for every adapted layer."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor, nn

from pcl_clora.adapters.base import AdapterMethod, Delta
from pcl_clora.adapters.config import AdapterConfig, unique
from pcl_clora.adapters.paths import LinearSite, find_linears
from pcl_clora.errors import UserValueError
from pcl_clora.models.interface import ModelInterface, Role


class LoRAConfig(AdapterConfig):
    """Settings of low-rank adaptation (Hu et al., ICLR 2022)."""

    method: Literal["lora"] = "lora"
    rank: PositiveInt = 8  # R, width of the update
    alpha: PositiveFloat = 8.0  # the update is scaled by alpha / rank
    targets: tuple[Role, ...] = ("q", "v")  # roles, see models/interface.py; the paper's choice
    dropout: float = Field(0.0, ge=0, lt=1)  # on the input of the update

    @model_validator(mode="after")
    def _targets_do_not_overlap(self) -> LoRAConfig:
        if not unique(self.targets, "targets"):
            raise UserValueError("targets is empty; name at least one role, for example q and v.")
        parts = {"q", "k", "v"} & set(self.targets)
        if "qkv" in self.targets and parts:
            raise UserValueError(
                f"targets names qkv and its part {', '.join(sorted(parts))}; name one of the two."
            )
        return self


class LowRank(nn.Module):
    """The update x -> x A^T B^T of one role.

    Attributes:
        down: A (R, C_in), Kaiming uniform.
        up: B (rows, R), zero, so that the layer computes what it did before.
    """

    def __init__(self, rank: int, in_features: int, rows: tuple[int, int], like: Tensor) -> None:
        super().__init__()
        self.rows = rows
        self.down = nn.Parameter(torch.empty(rank, in_features, device=like.device, dtype=like.dtype))
        self.up = nn.Parameter(torch.zeros(rows[1] - rows[0], rank, device=like.device, dtype=like.dtype))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))


class LoRADelta(Delta):
    """Low-rank updates of one linear layer, one a role: the whole layer, or slices of its output rows.

    However many roles there are, two matrix products are added to the layer: all A stacked, then all B at
    their rows. With dropout, the roles of one layer see the same mask.
    """

    def __init__(self, sites: list[LinearSite], config: LoRAConfig) -> None:
        super().__init__()
        layer = sites[0].layer
        self.scale = config.alpha / config.rank
        self.out_features = layer.out_features
        self.dropout = nn.Dropout(config.dropout)
        self.updates = nn.ModuleDict(
            {site.role: LowRank(config.rank, layer.in_features, site.rows, layer.weight) for site in sites}
        )

    def forward(self, base_layer: nn.Module, x: Tensor) -> Tensor:
        """(..., C_in) -> (..., C_out)."""
        y: Tensor = base_layer(x)
        down, up = self._stacked()
        hidden = self.dropout(x).flatten(0, -2) @ down
        return torch.addmm(y.flatten(0, -2), hidden, up, alpha=self.scale).view(y.shape)

    def _stacked(self) -> tuple[Tensor, Tensor]:
        """Return all A side by side (C_in, k R), and all B at their rows (k R, C_out)."""
        updates = [update for update in self.updates.values() if isinstance(update, LowRank)]
        downs: list[Tensor] = [update.down for update in updates]
        ups = [at_rows([(update.rows, update.up.t())], self.out_features) for update in updates]
        if len(updates) == 1:
            return downs[0].t(), ups[0]
        return torch.cat(downs).t(), torch.cat(ups)

    def merged_weight(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Add alpha / rank times B A to the rows of every role."""
        weight = weight.clone()
        for update in self.updates.values():
            assert isinstance(update, LowRank)
            weight[slice(*update.rows)] += self.scale * (update.up.to(weight) @ update.down.to(weight))
        return weight, bias


def at_rows(pieces: list[tuple[tuple[int, int], Tensor]], out_features: int) -> Tensor:
    """Put matrices side by side at the output rows they are for, with zeros between them.

    Args:
        pieces: pairs of ((start, stop), matrix (k, stop - start)), not overlapping.
        out_features: width of the result.

    Returns:
        (k, out_features); the matrix itself if one piece fills it.
    """
    columns, end = [], 0
    for (start, stop), piece in sorted(pieces, key=lambda item: item[0]):
        if start > end:
            columns.append(piece.new_zeros(piece.shape[0], start - end))
        columns.append(piece)
        end = stop
    if end < out_features:
        columns.append(columns[0].new_zeros(columns[0].shape[0], out_features - end))
    return columns[0] if len(columns) == 1 else torch.cat(columns, dim=1)


class LoRA(AdapterMethod):
    """Low-rank adaptation: y = W x + b + (alpha / r) B A x, with A and B of each layer's own.

    Trainable parameters: sum over targets of r (C_in + rows).

    Source: Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022, section 4.1.
    """

    config_type: ClassVar[type[AdapterConfig]] = LoRAConfig
    config: LoRAConfig

    def make_deltas(self, model: nn.Module, interface: ModelInterface) -> dict[str, Delta]:
        """Make one delta a layer, with an update for every role that the layer plays."""
        sites: dict[str, list[LinearSite]] = {}
        for role in self.config.targets:
            for site in find_linears(model, interface, role):
                sites.setdefault(site.path, []).append(site)
        return {path: LoRADelta(played, self.config) for path, played in sites.items()}
