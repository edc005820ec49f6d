"""SSF: every operation of a block is followed by a scale and a shift of its channels."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn

from pcl_clora.adapters.base import AdapterMethod, Delta
from pcl_clora.adapters.config import AdapterConfig, LayerwiseConfig, unique
from pcl_clora.adapters.paths import find_linears, find_norms
from pcl_clora.errors import UserValueError
from pcl_clora.models.interface import ModelInterface, Role


class SSFConfig(LayerwiseConfig):
    """Settings of scaling and shifting features (Lian et al., NeurIPS 2022); C marks our choice."""

    method: Literal["ssf"] = "ssf"
    mode: Literal["corrected", "paper"] = "corrected"  # start: 1 and 0 (C), or N(1, 0.02) and N(0, 0.02)
    targets: tuple[Role, ...] = ()  # linear layers; none named = all that the backbone has
    norms: bool = True  # also behind the LayerNorms that the backbone names
    tokens: bool = False  # also behind the patch encoder; its maximum cannot be merged, so off (C)

    @model_validator(mode="after")
    def _check_targets(self) -> SSFConfig:
        sliced = [role for role in unique(self.targets, "targets") if role in ("q", "k", "v")]
        if sliced:
            raise UserValueError(
                f"targets names {', '.join(sliced)}, a part of a layer; ssf changes whole layers: name qkv."
            )
        return self


class ScaleShiftDelta(Delta):
    """Scale and shift of what a layer puts out: y -> gamma * y + beta, channel by channel.

    Attributes:
        gamma: (C,), 1 at the start, or N(1, 0.02).
        beta: (C,), 0 at the start, or N(0, 0.02).
    """

    def __init__(self, channels: int, like: Tensor, mode: str) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(channels, device=like.device, dtype=like.dtype))
        self.beta = nn.Parameter(torch.zeros(channels, device=like.device, dtype=like.dtype))
        if mode == "paper":
            nn.init.normal_(self.gamma, mean=1.0, std=0.02)
            nn.init.normal_(self.beta, std=0.02)

    def forward(self, base_layer: nn.Module, x: Tensor) -> Tensor:
        """What the layer takes -> (..., C)."""
        y: Tensor = base_layer(x)
        return torch.addcmul(self.beta.to(y), y, self.gamma.to(y))

    def merged_weight(self, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Fold in: W' = diag(gamma) W, b' = gamma b + beta; for a norm the same with its own weight."""
        gamma, beta = self.gamma.to(weight), self.beta.to(weight)
        scaled = weight * gamma.view(-1, *(1,) * (weight.dim() - 1))
        return scaled, beta if bias is None else gamma * bias + beta


class SSF(AdapterMethod):
    """Scale and shift the channels behind every linear layer and norm of the blocks, and the last norm.

    The places are norm1, qkv, proj, norm2, fc1 (before its GELU) and fc2.

    Trained: two numbers a channel, 102,144 for Point-MAE and 102,912 with `tokens`. Mergeable into linear
    layers and LayerNorms (qkv gains a bias), except with `tokens` where a maximum follows the last layer. It
    does not depend on batch mates. With `blocks`, only in these blocks.

    Ours: the default start, at which it equals the base; `mode: paper` has the published random one.

    Source: Lian et al., Scaling & Shifting Your Features: A New Baseline for Efficient Model Tuning, NeurIPS
    2022, section 3.2.
    """

    config_type: ClassVar[type[AdapterConfig]] = SSFConfig
    linear: ClassVar[bool] = True
    config: SSFConfig

    def make_deltas(self, model: nn.Module, interface: ModelInterface) -> dict[str, Delta]:
        """Make a scale and a shift for every place."""
        config, deltas = self.config, dict[str, Delta]()
        every = tuple(role for role in interface.roles() if role not in ("q", "k", "v"))
        for role in config.targets or every:
            for site in find_linears(model, interface, role, config.blocks):
                layer = site.layer
                deltas[site.path] = ScaleShiftDelta(layer.out_features, layer.weight, config.mode)
        like = next(model.parameters())
        if config.norms:
            for path, norm in find_norms(model, interface, config.blocks).items():
                weight = like if norm.weight is None else norm.weight
                deltas[path] = ScaleShiftDelta(norm.normalized_shape[-1], weight, config.mode)
        if config.tokens:
            paths = interface.parts.get("patch_embed", ())
            if not paths:
                raise UserValueError("tokens=True, but this backbone names no patch encoder; leave it out.")
            deltas[paths[-1]] = ScaleShiftDelta(interface.embed_dim, like, config.mode)
        return deltas
