"""LoRA: a low-rank update of its own for every adapted layer."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, cast

import torch
from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator
from torch import Tensor, nn

from pcl_clora.adapters.base import AdapterMethod, Delta
from pcl_clora.adapters.config import AdapterConfig, LayerwiseConfig, unique
from pcl_clora.adapters.paths import LinearSite, chosen_blocks, find_linears
from pcl_clora.errors import UserValueError
from pcl_clora.models.interface import ModelInterface, Role
from pcl_clora.models.layers import product

_PATTERN = re.compile(r"blocks\.(0|[1-9]\d*)(?:\.(\w+))?|(\w+)")  # "blocks.3", "blocks.3.q" or "q"


class TargetsConfig(LayerwiseConfig):
    """Settings of an update of the layers, or of rows of layers, that play some roles."""

    targets: tuple[Role, ...] = ("q", "v")  # roles, see models/interface.py

    @model_validator(mode="after")
    def _targets_do_not_overlap(self) -> TargetsConfig:
        if not unique(self.targets, "targets"):
            raise UserValueError("targets is empty; name at least one role, for example q and v.")
        parts = {"q", "k", "v"} & set(self.targets)
        if "qkv" in self.targets and parts:
            raise UserValueError(
                f"targets names qkv and its part {', '.join(sorted(parts))}; name one of the two."
            )
        return self


class LowRankConfig(TargetsConfig):
    """Settings of an update B A of its own for every layer."""

    rank: PositiveInt = 8  # R, width of the update
    alpha: PositiveFloat = 8.0  # the update is scaled by alpha / rank
    dropout: float = Field(0.0, ge=0, lt=1)  # on the input of the update
    rank_pattern: Mapping[str, PositiveInt] = Field(
        default_factory=dict
    )  # "q", "blocks.3", "blocks.3.q" -> R
    rank_stabilized: bool = False  # scale by alpha / sqrt(rank): rsLoRA

    def left_out(self) -> frozenset[str]:
        """Leave out the options that are not used."""
        unused = frozenset() if self.rank_pattern else frozenset({"rank_pattern"})
        return super().left_out() | self.at_default("rank_stabilized") | unused

    @field_validator("rank_pattern")
    @classmethod
    def _check_pattern(cls, pattern: Mapping[str, int]) -> Mapping[str, int]:
        for key in pattern:
            if _PATTERN.fullmatch(key) is None:
                raise UserValueError(
                    f"rank_pattern names {key!r}; name a role (q), a block (blocks.3) or both (blocks.3.q)."
                )
        return pattern

    @model_validator(mode="after")
    def _pattern_names_targets(self) -> LowRankConfig:
        for key in self.rank_pattern:
            found = _PATTERN.fullmatch(key)
            role = None if found is None else found[2] or found[3]
            if role is not None and role not in self.targets:
                raise UserValueError(
                    f"rank_pattern names {key!r}, but the targets are {', '.join(self.targets)}; name one of "
                    "these."
                )
        return self

    def rank_of(self, site: LinearSite) -> int:
        """Return the rank at a place: of its role in its block, else of its block, else of its role."""
        block = f"blocks.{site.block}"
        for key in (f"{block}.{site.role}", block, site.role):
            if key in self.rank_pattern:
                return self.rank_pattern[key]
        return self.rank

    def scale_of(self, site: LinearSite) -> float:
        """Return the factor of the update at a place."""
        rank = self.rank_of(site)
        return self.alpha / (math.sqrt(rank) if self.rank_stabilized else rank)


class LoRAConfig(LowRankConfig):
    """Settings of low-rank adaptation (Hu et al., ICLR 2022)."""

    method: Literal["lora"] = "lora"
    init: Literal["zero", "pissa"] = "zero"  # B = 0; or A and B from the largest singular values of W

    def left_out(self) -> frozenset[str]:
        """Leave out the start while it is the paper's."""
        return super().left_out() | self.at_default("init")


class Update(nn.Module):
    """A linear update of the output rows of one role.

    Attributes:
        rows: (start, stop) of the output rows.
        scale: s, its factor.
    """

    def __init__(self, rows: tuple[int, int], scale: float) -> None:
        super().__init__()
        self.rows, self.scale = rows, scale

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return A' (k, C_in) and B' (rows, k); the update is x -> s x A'^T B'^T."""
        raise TypeError(f"{type(self).__name__} must say what its factors are")

    def matrix(self, like: Tensor) -> Tensor:
        """Return s B' A', (rows, C_in), in the dtype of a tensor."""
        down, up = self.factors()
        return self.scale * (up.to(like) @ down.to(like))


class LowRank(Update):
    """The update x -> s x A^T B^T of one role.

    Attributes:
        down: A (R, C_in), Kaiming uniform.
        up: B (rows, R), zero, so that the layer computes what it did before.
    """

    def __init__(self, site: LinearSite, config: LowRankConfig) -> None:
        super().__init__(site.rows, config.scale_of(site))
        like, rank, width = site.layer.weight, config.rank_of(site), site.layer.in_features
        self.down = nn.Parameter(torch.empty(rank, width, device=like.device, dtype=like.dtype))
        self.up = nn.Parameter(
            torch.zeros(site.rows[1] - site.rows[0], rank, device=like.device, dtype=like.dtype)
        )
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return A and B."""
        return self.down, self.up


class PrincipalLowRank(LowRank):
    """The update x -> s x (B A - B0 A0)^T, where A and B start as A0 and B0, the largest part of W.

    B A - B0 A0 = (B - B0) A + B0 (A - A0), both of which are exactly zero at the start.

    Attributes:
        first_down: A0 (R, C_in): sqrt(S) V^T of the R largest singular values S of W.
        first_up: B0 (rows, R): U sqrt(S).
    """

    first_down: Tensor
    first_up: Tensor

    def __init__(self, site: LinearSite, config: LowRankConfig) -> None:
        super().__init__(site, config)
        weight = site.layer.weight.detach()[slice(*site.rows)]
        left, values, right = torch.linalg.svd(weight.to(torch.float64), full_matrices=False)
        rank = config.rank_of(site)
        root = values[:rank].sqrt()
        with torch.no_grad():
            self.down.copy_(root[:, None] * right[:rank])
            self.up.copy_(left[:, :rank] * root)
        self.register_buffer("first_down", self.down.detach().clone())
        self.register_buffer("first_up", self.up.detach().clone())

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return A' (2 R, C_in) and B' (rows, 2 R)."""
        down = torch.cat([self.down, self.down - self.first_down])
        return down, torch.cat([self.up - self.first_up, self.first_up], dim=1)


class LoRADelta(Delta):
    """Low-rank updates of one linear layer, one a role: the whole layer, or slices of its output rows.

    However many roles there are, two matrix products are added to the layer: all A stacked, then all B at
    their rows. With dropout, the roles of one layer see the same mask.
    """

    def __init__(self, layer: nn.Linear, updates: Mapping[str, Update], dropout: float) -> None:
        super().__init__()
        self.out_features = layer.out_features
        self.dropout = nn.Dropout(dropout)
        self.updates = nn.ModuleDict(updates)
        scales = {update.scale for update in updates.values()}
        self.scale = scales.pop() if len(scales) == 1 else None  # None: each has its own, which goes into B

    def each(self) -> list[Update]:
        """List the updates, one a role."""
        return cast(list[Update], list(self.updates.values()))

    def forward(self, base_layer: nn.Module, x: Tensor) -> Tensor:
        """(..., C_in) -> (..., C_out)."""
        return self.added_to(base_layer(x), x)

    def added_to(self, y: Tensor, x: Tensor) -> Tensor:
        """Add the updates of x (..., C_in) to what the bare layer makes of it, (..., C_out)."""
        down, up = self.stacked()
        hidden = product.linear(self.dropout(x), down.t())
        if self.scale not in (None, 1):
            up = self.scale * up
        return y + product.linear(hidden, up.t())

    def stacked(self) -> tuple[Tensor, Tensor]:
        """Return all A side by side (C_in, k R), and all B at their rows (k R, C_out)."""
        downs, ups = [], []
        for update in self.each():
            down, up = update.factors()
            downs.append(down)
            scaled = up if self.scale is not None else update.scale * up
            ups.append(at_rows([(update.rows, scaled.t())], self.out_features))
        if len(downs) == 1:
            return downs[0].t(), ups[0]
        return torch.cat(downs).t(), torch.cat(ups)

    def merged_weight(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Add s B A to the rows of every role."""
        weight = weight.clone()
        for update in self.each():
            weight[slice(*update.rows)] += update.matrix(like=weight)
        return weight, bias

    def low_rank(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Return all A stacked, and all s B at their rows."""
        downs, ups = [], []
        for update in self.each():
            down, up = (factor.to(weight) for factor in update.factors())
            downs.append(down)
            ups.append(at_rows([(update.rows, update.scale * up.t())], self.out_features).t())
        return torch.cat(downs), torch.cat(ups, dim=1)


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
    """Low-rank adaptation: y = W x + b + s B A x, with A and B of each layer's own, s = alpha / r.

    Trained: r (C_in + rows) numbers a place, 147,456 for q and v of Point-MAE with r = 8. Mergeable, does not
    depend on batch mates, equal to the base at the start. `rank_pattern` gives places other ranks,
    `rank_stabilized` makes s = alpha / sqrt(r), and `init: pissa` starts at the largest singular values:
    y = W x + b + s (B A - B0 A0) x, where B0 A0 is the best approximation of W of rank r when the adapter is
    attached.

    Ours: that `pissa` leaves W as it is, so that a file needs no changed base; it loads on the weights that
    it was attached to.

    Source: Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022, section 4.1;
    Kalajdzievski, A Rank Stabilization Scaling Factor for Fine-Tuning with LoRA, 2023, for the scale; Meng et
    al., PiSSA: Principal Singular Values and Singular Vectors Adaptation, NeurIPS 2024, for the start.
    """

    config_type: ClassVar[type[AdapterConfig]] = LoRAConfig
    config: LoRAConfig

    def make_deltas(self, model: nn.Module, interface: ModelInterface) -> dict[str, Delta]:
        """Make one delta a layer, with an update for every role that the layer plays."""
        config, deltas = self.config, dict[str, Delta]()
        check_pattern_blocks(config, interface)
        kind = PrincipalLowRank if config.init == "pissa" else LowRank
        for path, sites in sites_by_layer(model, interface, config).items():
            if not self.from_file or config.init == "pissa":
                check_ranks(config, sites)
            updates: dict[str, Update] = {site.role: kind(site, config) for site in sites}
            deltas[path] = LoRADelta(sites[0].layer, updates, config.dropout)
        return deltas


def sites_by_layer(
    model: nn.Module, interface: ModelInterface, config: TargetsConfig
) -> dict[str, list[LinearSite]]:
    """Find the places of all targets: path of a layer -> what it, or rows of it, are targets for."""
    sites: dict[str, list[LinearSite]] = {}
    for role in config.targets:
        for site in find_linears(model, interface, role, config.blocks):
            sites.setdefault(site.path, []).append(site)
    return sites


def check_ranks(config: LowRankConfig, sites: Sequence[LinearSite]) -> None:
    """Refuse ranks that a layer has no room for; files of version 0.1 may have them, and are loaded.

    Raises:
        ValueError: naming the layer and its widths.
    """
    for site in sites:
        rank, widths = config.rank_of(site), (site.layer.in_features, site.rows[1] - site.rows[0])
        if rank > min(widths):
            raise UserValueError(
                f"rank={rank} is more than {site.path} has: role {site.role!r} maps {widths[0]} features to "
                f"{widths[1]}; lower rank."
            )


def check_pattern_blocks(config: LowRankConfig, interface: ModelInterface) -> None:
    """Check that rank_pattern names blocks that are adapted.

    Raises:
        ValueError: if not.
    """
    chosen = chosen_blocks(interface, config.blocks)
    for key in config.rank_pattern:
        found = _PATTERN.fullmatch(key)
        if found is not None and found[1] is not None and int(found[1]) not in chosen:
            raise UserValueError(
                f"rank_pattern names {key!r}, but the adapted blocks are "
                f"{', '.join(map(str, sorted(chosen)))}; name one of these."
            )
