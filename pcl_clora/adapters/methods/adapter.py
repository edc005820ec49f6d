"""Adapters in the first sense of the word: a narrow two-layer network beside the MLP, or behind a layer."""

from __future__ import annotations

import math
from typing import ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt, model_validator
from torch import Tensor, nn

from pcl_clora.adapters.base import AdapterMethod, Delta
from pcl_clora.adapters.config import AdapterConfig, LayerwiseConfig
from pcl_clora.adapters.paths import chosen_blocks, find_linears, locate
from pcl_clora.adapters.sequence import check_split
from pcl_clora.errors import UserValueError
from pcl_clora.models.interface import ModelInterface, Role, SplitBlock, Tokens

Form = Literal["parallel", "houlsby", "pfeiffer"]
_BEHIND: dict[Form, tuple[Role, ...]] = {"houlsby": ("proj", "fc2"), "pfeiffer": ("fc2",)}


class AdapterMethodConfig(LayerwiseConfig):
    """Settings of bottleneck adapters: parallel (AdaptFormer), Houlsby and Pfeiffer."""

    method: Literal["adapter"] = "adapter"
    form: Form = "parallel"  # beside the MLP; behind attention and MLP; behind the MLP
    bottleneck: PositiveInt = 64  # r, hidden width
    scale: float = 0.1  # s, factor of the parallel branch
    dropout: float = Field(0.1, ge=0, lt=1)  # behind the ReLU of the parallel branch
    layer_norm: bool = False  # normalise the input of the parallel branch

    @model_validator(mode="after")
    def _check_form(self) -> AdapterMethodConfig:
        unused = [name for name in ("scale", "dropout", "layer_norm") if not self.at_default(name)]
        if self.form != "parallel" and unused:
            raise UserValueError(
                f"{', '.join(unused)} has no effect with form={self.form!r}, only with form='parallel'; "
                "leave it out."
            )
        if self.scale == 0:
            raise UserValueError("scale=0 switches the branch off, and nothing would learn.")
        return self

    def left_out(self) -> frozenset[str]:
        """Leave out what only the parallel form has."""
        own = frozenset() if self.form == "parallel" else frozenset({"scale", "dropout", "layer_norm"})
        return super().left_out() | own


class Bottleneck(Delta):
    """A narrow network of two linear layers.

    Attributes:
        down: D (r, d) and c (r,).
        up: U (d, r) and e (d,), zero at the start, so that the network puts out zero.
    """

    def __init__(self, dim: int, bottleneck: int, like: Tensor) -> None:
        super().__init__()
        self.down = nn.Linear(dim, bottleneck, device=like.device, dtype=like.dtype)
        self.up = nn.Linear(bottleneck, dim, device=like.device, dtype=like.dtype)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)


class SerialDelta(Bottleneck):
    """Behind a linear layer: v -> v + GELU(v D^T + c) U^T + e, v its output; D starts as N(0, 0.01)."""

    def __init__(self, dim: int, bottleneck: int, like: Tensor) -> None:
        super().__init__(dim, bottleneck, like)
        nn.init.normal_(self.down.weight, std=0.01)

    def forward(self, base_layer: nn.Module, x: Tensor) -> Tensor:
        """(..., C_in) -> (..., d)."""
        y: Tensor = base_layer(x)
        step: Tensor = self.up(F.gelu(self.down(y)))
        return y + step


class ParallelDelta(Bottleneck):
    """Beside the MLP of a block: out = u + MLP(LN2 u) + s (ReLU(u D^T + c) U^T + e); D Kaiming uniform."""

    def __init__(self, dim: int, config: AdapterMethodConfig, like: Tensor) -> None:
        super().__init__(dim, config.bottleneck, like)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        self.scale = config.scale
        self.dropout = nn.Dropout(config.dropout)
        self.norm = nn.LayerNorm(dim, device=like.device, dtype=like.dtype) if config.layer_norm else None

    def forward(self, block: nn.Module, x: Tensor, pos: Tensor, tokens: Tokens) -> Tensor:
        """(B, T, D) features and positions -> (B, T, D)."""
        halves = cast(SplitBlock, block)
        middle = halves.attend(x + pos, tokens)
        seen = middle if self.norm is None else self.norm(middle)
        beside: Tensor = self.up(self.dropout(F.relu(self.down(seen))))
        return torch.add(halves.feed(middle), beside, alpha=self.scale)


class Adapter(AdapterMethod):
    """Bottleneck adapters in three published forms.

    * parallel: beside the MLP, from u, the tokens between attention and MLP, before their norm; added after
      the block, without drop path. 595,200 numbers for Point-MAE with r = 64.
    * houlsby: behind the output of attention and of the MLP, inside drop path; 1,190,400.
    * pfeiffer: behind the MLP only; 595,200.

    Trained: 2 d r + r + d numbers a place. Not mergeable, because of the non-linearity. Does not depend on
    batch mates, equal to the base at the start (U = 0). `parallel` needs blocks that can be stopped between
    attention and MLP (`SplitBlock`): those of this package.

    Ours: where a block has two branches (ReCon), all tokens go through one parallel network, and the serial
    forms stay in the branch of the patches.

    Source: parallel: Chen et al., AdaptFormer: Adapting Vision Transformers for Scalable Visual Recognition,
    NeurIPS 2022, section 3.2; houlsby: Houlsby et al., Parameter-Efficient Transfer Learning for NLP, ICML
    2019, section 2.1; pfeiffer: Pfeiffer et al., AdapterFusion: Non-Destructive Task Composition for Transfer
    Learning, EACL 2021.
    """

    config_type: ClassVar[type[AdapterConfig]] = AdapterMethodConfig
    mergeable: ClassVar[bool] = False
    config: AdapterMethodConfig

    def make_deltas(self, model: nn.Module, interface: ModelInterface) -> dict[str, Delta]:
        """Make one network a place."""
        config, deltas = self.config, dict[str, Delta]()
        for role in _BEHIND.get(config.form, ()):
            for site in find_linears(model, interface, role, config.blocks):
                layer = site.layer
                deltas[site.path] = SerialDelta(layer.out_features, config.bottleneck, layer.weight)
        if config.form == "parallel":
            chosen = sorted(chosen_blocks(interface, config.blocks))
            check_split(model, interface, chosen, "the parallel adapter")
            for index in chosen:
                path = interface.blocks[index]
                owner, leaf = locate(model, path)
                like = next(getattr(owner, leaf).parameters())
                deltas[path] = ParallelDelta(interface.embed_dim, config, like)
        return deltas
