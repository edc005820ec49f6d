"""FacT: the updates of all layers as one tensor, decomposed; its outer factors are shared by the network."""

from __future__ import annotations

from typing import ClassVar, Literal, cast

import torch
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from pcl_clora.adapters.base import AdapterMethod, Delta
from pcl_clora.adapters.config import AdapterConfig
from pcl_clora.adapters.methods.lora import LoRADelta, TargetsConfig, Update, at_rows, sites_by_layer
from pcl_clora.adapters.paths import LinearSite
from pcl_clora.errors import UserValueError
from pcl_clora.models.interface import ROLES, ModelInterface, Role

_ORDER: tuple[Role, ...] = ("q", "k", "v", "proj", "fc1", "fc2")
_COLUMNS = ("qkv", *_ORDER, *(role for role in ROLES if role not in _ORDER))  # of P, within a block


class FacTConfig(TargetsConfig):
    """Settings of factor tuning (Jie & Deng, AAAI 2023); C marks our choice."""

    method: Literal["fact"] = "fact"
    form: Literal["tt", "tk"] = "tt"  # tensor-train or Tucker: S_j of each place's own, or made from C and P
    rank: PositiveInt = 16  # r
    scale: float = 1.0  # s, factor of every update (C: the paper searches it)
    targets: tuple[Role, ...] = _ORDER  # places with an update
    dropout: float = Field(0.1, ge=0, lt=1)  # behind S

    @model_validator(mode="after")
    def _check_scale(self) -> FacTConfig:
        if self.scale == 0:
            raise UserValueError("scale=0 switches every update off, and nothing would learn.")
        return self


class Factors(nn.Module):
    """What the network shares.

    Attributes:
        down: A (d, r), as PyTorch's linear.
        up: B (r, d), zero at the start.
        core: C (r, r, r), Xavier uniform; only in the Tucker form.
        places: P (r, number of r x r pieces), Xavier uniform; only in the Tucker form.
    """

    core: nn.Parameter | None
    places: nn.Parameter | None

    def __init__(self, dim: int, rank: int, pieces: int, like: Tensor) -> None:
        super().__init__()
        self.down = nn.Parameter(_linear_start(dim, rank, like))
        self.up = nn.Parameter(torch.zeros(rank, dim, device=like.device, dtype=like.dtype))
        self.core = self.places = None
        if pieces:
            core = torch.empty(rank, rank, rank, device=like.device, dtype=like.dtype)
            places = torch.empty(rank, pieces, device=like.device, dtype=like.dtype)
            self.core = nn.Parameter(nn.init.xavier_uniform_(core))
            self.places = nn.Parameter(nn.init.xavier_uniform_(places))


class FactorUpdate(Update):
    """The update x -> s (x A S) B of one role, in pieces of width d.

    An input of a d features goes through A in a pieces, an output of b d features through B in b pieces, and
    S (a r, b r) stands between them: (r, r) for q, k, v and proj, (r, 4 r) for fc1, (4 r, r) for fc2.

    Attributes:
        middle: S, as PyTorch's linear; None in the Tucker form, where every r x r piece j of it is
            sum over k of C[:, :, k] P[k, j].
    """

    middle: nn.Parameter | None

    def __init__(self, site: LinearSite, factors: Factors, dim: int, scale: float, first: int) -> None:
        super().__init__(site.rows, scale)
        self.grid = piece_grid(site, dim)
        self.first = first  # the column of P of its first piece
        self._shared = (factors,)  # a tuple: what is shared gets no second entry in the state_dict
        self.middle = None
        if factors.core is None:
            rank, like = factors.up.shape[0], site.layer.weight
            self.middle = nn.Parameter(_linear_start(self.grid[0] * rank, self.grid[1] * rank, like))

    def inner(self, like: Tensor | None = None) -> Tensor:
        """Return S, (a r, b r)."""
        factors = self._shared[0]
        if self.middle is not None:
            return self.middle if like is None else self.middle.to(like)
        assert factors.core is not None
        assert factors.places is not None
        core: Tensor = factors.core
        places: Tensor = factors.places
        if like is not None:
            core, places = core.to(like), places.to(like)
        ins, outs = self.grid
        rank = places.shape[0]
        own = places[:, self.first : self.first + ins * outs].reshape(rank, ins, outs)
        return torch.einsum("xyk,kab->axby", core, own).reshape(ins * rank, outs * rank)

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return (b r, a d) and (b d, b r): A and B repeated along the pieces, S in the first."""
        factors, (ins, outs) = self._shared[0], self.grid
        eye = torch.eye(max(ins, outs)).to(factors.down)
        down = torch.kron(eye[:ins, :ins], factors.down) @ self.inner()
        return down.t(), torch.kron(eye[:outs, :outs], factors.up).t()

    def narrow(self, x: Tensor) -> Tensor:
        """(M, a d) -> x A, (M, a r); the same for all roles of a layer."""
        down: Tensor = self._shared[0].down
        return (x.reshape(-1, down.shape[0]) @ down).reshape(len(x), -1)

    def widen(self, hidden: Tensor) -> Tensor:
        """(M, b r), narrow features times S -> s times it through B, (M, b d)."""
        up: Tensor = self._shared[0].up
        return self.scale * (hidden.reshape(-1, up.shape[0]) @ up).reshape(len(hidden), -1)

    def matrix(self, like: Tensor) -> Tensor:
        """Return the update as a matrix, (rows, C_in), in the dtype of a tensor."""
        factors, (ins, outs) = self._shared[0], self.grid
        rank = factors.up.shape[0]
        inner = self.inner(like).view(ins, rank, outs, rank)
        down, up = factors.down.to(like), factors.up.to(like)
        pieces = torch.einsum("ix,axby,yo->boai", down, inner, up)
        return self.scale * pieces.reshape(outs * up.shape[1], ins * down.shape[0])


class FacTDelta(LoRADelta):
    """The updates of one linear layer, one a role."""

    def forward(self, base_layer: nn.Module, x: Tensor) -> Tensor:
        """(..., C_in) -> (..., C_out)."""
        y: Tensor = base_layer(x)
        updates = cast(list[FactorUpdate], self.each())
        narrow = updates[0].narrow(x.flatten(0, -2))
        steps = [(each.rows, each.widen(self.dropout(narrow @ each.inner()))) for each in updates]
        return y + at_rows(steps, self.out_features).view(y.shape).to(y)


class FacT(AdapterMethod):
    """Factor tuning: the updates of q, k, v, proj, fc1 and fc2 of all blocks, as one decomposed tensor.

    Trained: tensor-train 2 d r + 12 L r^2, 49,152 for Point-MAE with r = 16; Tucker 2 d r + 12 L r + r^3,
    18,688. Mergeable, does not depend on batch mates, equal to the base at the start (B = 0). fc1 and fc2 are
    cut into pieces of width d.

    Ours: with fewer `targets` or `blocks`, P has columns for the places there are; the tensor-train form with
    square places only is a CLoRA of one space with a full core.

    Attributes:
        factors: what the network shares.

    Source: Jie, Deng, FacT: Factor-Tuning for Lightweight Adaptation on Vision Transformer, AAAI 2023,
    sections 3.2 and 3.3.
    """

    config_type: ClassVar[type[AdapterConfig]] = FacTConfig
    config: FacTConfig

    def make_deltas(self, model: nn.Module, interface: ModelInterface) -> dict[str, Delta]:
        """Make the shared factors, and one delta a layer."""
        config, dim = self.config, interface.embed_dim
        layers = sites_by_layer(model, interface, config)
        places = [site for sites in layers.values() for site in sites]
        places.sort(key=lambda site: (site.block, _COLUMNS.index(site.role)))
        sizes = [piece_grid(site, dim)[0] * piece_grid(site, dim)[1] for site in places]
        like = places[0].layer.weight
        self.factors = Factors(dim, config.rank, sum(sizes) if config.form == "tk" else 0, like)
        updates: dict[str, dict[str, Update]] = {path: {} for path in layers}
        for index, site in enumerate(places):
            first = sum(sizes[:index])
            updates[site.path][site.role] = FactorUpdate(site, self.factors, dim, config.scale, first)
        return {
            path: FacTDelta(sites[0].layer, updates[path], config.dropout) for path, sites in layers.items()
        }


def piece_grid(site: LinearSite, dim: int) -> tuple[int, int]:
    """Say into how many pieces of width d the input and the output of a place are cut.

    Raises:
        ValueError: if they are no multiples of d.
    """
    ins, outs = site.layer.in_features, site.rows[1] - site.rows[0]
    if ins % dim or outs % dim:
        raise UserValueError(
            f"{site.path} maps {ins} to {outs} features for role {site.role!r}, which are no multiples of "
            f"{dim}, the width of a token; take this role out of the targets."
        )
    return ins // dim, outs // dim


def _linear_start(ins: int, outs: int, like: Tensor) -> Tensor:
    """Draw a matrix (in, out) as PyTorch's linear draws its weight: within 1 / sqrt(in)."""
    empty = torch.empty(ins, outs, device=like.device, dtype=like.dtype)
    return empty.uniform_(-(ins**-0.5), ins**-0.5)
