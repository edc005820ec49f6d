"""clora_geo: CLoRA whose shared spaces also carry what the neighbouring patches have that a patch has not.

Ours, published nowhere: CLoRA changes every token alone and attention mixes all tokens alike; neither looks
at the next patches.
"""

from __future__ import annotations

from typing import ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt, field_validator, model_validator
from torch import Tensor, nn

from pcl_clora.adapters.base import Delta, module_key
from pcl_clora.adapters.config import AdapterConfig, unique
from pcl_clora.adapters.methods.clora import CLoRA, CLoRAConfig
from pcl_clora.adapters.methods.spaces import Spaces
from pcl_clora.adapters.paths import chosen_blocks
from pcl_clora.adapters.sequence import check_patches, largest_of_neighbors, neighbor_rows
from pcl_clora.errors import UserValueError
from pcl_clora.models.interface import ModelInterface, Tokens
from pcl_clora.models.layers import product


class CLoRAGeoConfig(CLoRAConfig):
    """Settings of CLoRA with neighbours; all of it is our choice."""

    method: Literal["clora_geo"] = "clora_geo"  # type: ignore[assignment]
    neighbors: PositiveInt = Field(16)  # k, nearest patches, the patch itself included
    pooling: Literal["max", "mean"] = "max"  # of the differences to them
    place: Literal["beside", "behind"] = "beside"  # what is compared: what goes into the block, or comes out
    geo_blocks: tuple[int, ...] = ()  # blocks that look at neighbours; none named = those of `blocks`
    own_spaces: bool = False  # one more pair of spaces for the neighbours alone

    @field_validator("geo_blocks")
    @classmethod
    def _name_geo_blocks_once(cls, blocks: tuple[int, ...]) -> tuple[int, ...]:
        return unique(blocks, "geo_blocks")

    @model_validator(mode="after")
    def _check_spaces(self) -> CLoRAGeoConfig:
        if self.sharing == "none" and not self.own_spaces:
            raise UserValueError(
                "sharing='none' leaves no spaces that the neighbours could use; set own_spaces=True."
            )
        return self


class GeoDelta(Delta):
    """What a block adds to its patches for their neighbours: u Q' U, with u = max over q of (t_q - t_p).

    t = LN(x + pos) D with a LayerNorm without parameters. The maximum is taken of t_q first, since t_p is the
    same for all q; u >= 0, because a patch is its own neighbour.

    Attributes:
        core: Q' (E, R, R), zero at the start.
    """

    def __init__(self, spaces: Spaces, config: CLoRAGeoConfig, like: Tensor) -> None:
        super().__init__()
        shape = (config.num_spaces, config.rank, config.rank)
        self.core = nn.Parameter(torch.zeros(shape, device=like.device, dtype=like.dtype))
        self._spaces = (spaces,)  # a tuple: what is shared gets no second entry in the state_dict
        self.config = config

    def forward(self, block: nn.Module, x: Tensor, pos: Tensor, tokens: Tokens) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        start, num_patches = tokens.num_prefix, tokens.center.shape[1]
        y: Tensor = block(x, pos, tokens)
        source = y if self.config.place == "behind" else x + pos
        spaces = self._spaces[0]
        patches = source[:, start : start + num_patches]
        t = product.linear(F.layer_norm(patches, patches.shape[-1:]), spaces.down.t())
        rows = neighbor_rows(tokens, self.config.neighbors)
        if self.config.pooling == "max":
            u = largest_of_neighbors(t, rows) - t
        else:
            u = t.flatten(0, 1).index_select(0, rows).view(*t.shape[:2], -1, t.shape[2]).mean(dim=2) - t
        up = spaces.stacked_up()
        change = torch.bmm(self.core, up.view(*self.core.shape[:2], -1)).view_as(up)
        added = product.linear(u, change.t())
        return y + F.pad(added, (0, 0, start, y.shape[1] - start - num_patches))


class CLoRAGeo(CLoRA):
    """CLoRA that sees the neighbours of a patch; ours.

    Besides CLoRA's own updates, y_p <- y_p + u_p Q'_i U on the patch tokens of block i, where
    u_p = max over the k nearest patches q of (t_q - t_p), t = LN(x + pos) D, and D, U are the shared spaces.

    Trained: what CLoRA trains and L E R^2 more, 6,144 for Point-MAE with E = R = 8. CLoRA's own part would
    fold into the weights, this one does not, so it is not merged. The base at the start, bit for bit, and
    CLoRA bit for bit while Q' = 0. It does not depend on batch mates, nor on the order of the points but for
    the sampling of centres. On a causal backbone (PointGPT) a patch sees neighbours that come later.

    Source: none; our method (docs/clora.md says what was measured).
    """

    config_type: ClassVar[type[AdapterConfig]] = CLoRAGeoConfig
    config: CLoRAGeoConfig
    mergeable: ClassVar[bool] = False

    def make_deltas(self, model: nn.Module, interface: ModelInterface) -> dict[str, Delta]:
        """Make CLoRA's deltas, and one for every block that looks at neighbours."""
        config = self.config
        if interface.input_shape is not None:
            raise UserValueError(
                "clora_geo looks at the patches next to a patch, and this backbone takes images, which have "
                "no patch centres; use clora."
            )
        check_patches(interface, config.neighbors, f"neighbors={config.neighbors}")
        deltas, like = super().make_deltas(model, interface), next(model.parameters())
        shared = module_key("global") if config.sharing != "per_role" else "attention"
        if config.own_spaces or shared not in self.spaces:
            shared = "geo"
            self.spaces[shared] = self.make_spaces(shared, interface.embed_dim, like)
        spaces = cast(Spaces, self.spaces[shared])
        for index in sorted(chosen_blocks(interface, config.geo_blocks or config.blocks)):
            deltas[interface.blocks[index]] = GeoDelta(spaces, config, like)
        return deltas
