"""VeRA: two random matrices that all layers share, and two vectors that a layer owns."""

from __future__ import annotations

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveInt
from torch import Tensor, nn

from pcl_clora.adapters.base import AdapterMethod, Delta
from pcl_clora.adapters.config import AdapterConfig
from pcl_clora.adapters.methods.lora import LoRADelta, TargetsConfig, Update, sites_by_layer
from pcl_clora.adapters.paths import LinearSite
from pcl_clora.models.interface import ModelInterface


class VeRAConfig(TargetsConfig):
    """Settings of vector-based random matrix adaptation (Kopiczko et al., ICLR 2024); C marks our choice."""

    method: Literal["vera"] = "vera"
    rank: PositiveInt = 256  # R, width of the random matrices
    start: float = 0.1  # of d; b starts at zero
    dropout: float = Field(0.0, ge=0, lt=1)  # on the input of the update
    seed: NonNegativeInt = 0  # of the random matrices (C)
    stored: bool = False  # whether a file holds the random matrices too, for readers without the generator

    def left_out(self) -> frozenset[str]:
        """Leave out what came later while it has its default."""
        return super().left_out() | self.at_default("stored")


class RandomSpaces(nn.Module):
    """The random matrices, which are not trained, and stored only if asked for: the seed gives them again.

    Attributes:
        down: A (R, C_in of the widest layer), Kaiming uniform: within sqrt(6 / C_in).
        up: B (rows of the largest place, R), within sqrt(6 / R).
    """

    down: Tensor
    up: Tensor

    def __init__(
        self, rank: int, in_features: int, rows: int, seed: int, like: Tensor, *, stored: bool = False
    ) -> None:
        super().__init__()
        numbers = uniform_numbers(rank * (in_features + rows), seed).to(like.dtype)
        size = rank * in_features
        down = math.sqrt(6 / in_features) * numbers[:size].view(rank, in_features)
        up = math.sqrt(6 / rank) * numbers[size:].view(rows, rank)
        self.register_buffer("down", down.to(like.device), persistent=stored)
        self.register_buffer("up", up.to(like.device), persistent=stored)


class VectorUpdate(Update):
    """The update x -> x A^T diag(d) B^T diag(b) of one role.

    Attributes:
        d: (R,), 0.1 at the start.
        b: (rows,), zero at the start.
    """

    def __init__(self, site: LinearSite, spaces: RandomSpaces, start: float) -> None:
        super().__init__(site.rows, scale=1.0)
        like, rank = site.layer.weight, spaces.down.shape[0]
        self.width = site.layer.in_features
        self._spaces = (spaces,)  # a tuple: what is shared gets no second entry in the state_dict
        self.d = nn.Parameter(torch.full((rank,), start, device=like.device, dtype=like.dtype))
        self.b = nn.Parameter(torch.zeros(site.rows[1] - site.rows[0], device=like.device, dtype=like.dtype))

    def factors(self) -> tuple[Tensor, Tensor]:
        """Return A (R, C_in), cut to this layer's width, and diag(b) B diag(d) (rows, R)."""
        spaces = self._spaces[0]
        return spaces.down[:, : self.width], self.b[:, None] * spaces.up[: len(self.b)] * self.d

    def matrix(self, like: Tensor) -> Tensor:
        """Return diag(b) B diag(d) A, (rows, C_in), in the dtype of a tensor."""
        spaces = self._spaces[0]
        up = self.b.to(like)[:, None] * spaces.up[: len(self.b)].to(like) * self.d.to(like)
        return up @ spaces.down[:, : self.width].to(like)


class VeRA(AdapterMethod):
    """Vector-based random matrix adaptation: Delta W = diag(b) B diag(d) A with A and B random and shared.

    Trained: R + rows numbers a place, 15,360 for q and v of Point-MAE with R = 256, and 38,400 for qkv and
    fc1. Mergeable, does not depend on batch mates, equal to the base at the start. A layer uses the first
    columns of A and the first rows of B.

    Ours: A and B (196,608 numbers for q and v) come from an integer generator of our own, the same on every
    machine, so that a file holds the seed in their place; `stored` puts them into the file too.

    Attributes:
        spaces: the random matrices.

    Source: Kopiczko, Blankevoort, Asano, VeRA: Vector-based Random Matrix Adaptation, ICLR 2024, section 3.
    """

    config_type: ClassVar[type[AdapterConfig]] = VeRAConfig
    config: VeRAConfig

    def make_deltas(self, model: nn.Module, interface: ModelInterface) -> dict[str, Delta]:
        """Draw the random matrices, and make one delta a layer."""
        config, deltas = self.config, dict[str, Delta]()
        layers = sites_by_layer(model, interface, config)
        places = [site for sites in layers.values() for site in sites]
        self.spaces = RandomSpaces(
            config.rank,
            max(site.layer.in_features for site in places),
            max(site.rows[1] - site.rows[0] for site in places),
            config.seed,
            places[0].layer.weight,
            stored=config.stored,
        )
        for path, sites in layers.items():
            updates: dict[str, Update] = {
                site.role: VectorUpdate(site, self.spaces, config.start) for site in sites
            }
            deltas[path] = LoRADelta(sites[0].layer, updates, config.dropout)
        return deltas


def uniform_numbers(count: int, seed: int) -> Tensor:
    """Draw numbers in [-1, 1), the same on every machine and in every version of torch.

    Args:
        count: how many.
        seed: of the stream.

    Returns:
        (count,), float64, on the CPU; multiples of 2^-23.

    Source: the finaliser of splitmix32 over a counter (Steele et al., OOPSLA 2014), in integers of 64 bits.
    """
    mask = 0xFFFFFFFF
    x = torch.arange(1, count + 1, dtype=torch.int64, device="cpu") * 0x9E3779B9 & mask
    x = (x + (seed * 0x632BE5AB & mask)) & mask
    for shift, factor in ((16, 0x21F0AAAD), (15, 0x735A2D97)):
        x = (x ^ (x >> shift)) * factor & mask
    x = x ^ (x >> 15)
    return (x >> 8).to(torch.float64) * 2.0**-23 - 1
