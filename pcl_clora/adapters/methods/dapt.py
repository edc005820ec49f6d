"""DAPT: adapters with a scale for every token, prompts made from what they add, and scaled features."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from pcl_clora.adapters.base import Delta
from pcl_clora.adapters.config import AdapterConfig
from pcl_clora.adapters.methods.ssf import ScaleShiftDelta
from pcl_clora.adapters.paths import find_linears
from pcl_clora.adapters.sequence import (
    PrefixedPooling,
    PublishedConfig,
    SequenceMethod,
    as_split,
    check_split,
    seen_by_all,
)
from pcl_clora.errors import UserValueError
from pcl_clora.models.entry import FileFacts
from pcl_clora.models.interface import ModelInterface, Role, Tokens
from pcl_clora.models.key_map import KeyMap, Rule
from pcl_clora.models.method_files import MethodFiles

_ROLES: tuple[Role, ...] = ("qkv", "proj", "fc1", "fc2")


class DAPTConfig(PublishedConfig):
    """Settings of dynamic adapter meets prompt tuning (Zhou et al., CVPR 2024)."""

    method: Literal["dapt"] = "dapt"
    rank: PositiveInt = 64  # r, width of an adapter
    dropout: float = Field(0.0, ge=0, lt=1)  # behind the GELU of an adapter
    prompt_token: Literal["mean", "none"] = "mean"  # what the head sees of the prompts
    patch_token: Literal["max", "none"] = "max"  # what the head sees of the patches


class DynamicAdapter(nn.Module):
    """z = LN(y); up(GELU(down(z))) times ReLU(scale(z)), one scale a token.

    Attributes:
        norm: LayerNorm of its own.
        scale: (1, D) with bias, Kaiming uniform as PyTorch's linear layers start.
        down: (r, D) with bias, Kaiming uniform, bias zero.
        up: (D, r) with bias, zero.
    """

    def __init__(self, dim: int, config: DAPTConfig, like: Tensor) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.scale = nn.Linear(dim, 1)
        self.down = nn.Linear(dim, config.rank)
        self.up = nn.Linear(config.rank, dim)
        self.dropout = nn.Dropout(config.dropout)
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for tensor in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(tensor)
        self.to(like.device, like.dtype)

    def forward(self, y: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        z = self.norm(y)
        result: Tensor = self.up(self.dropout(F.gelu(self.down(z)))) * F.relu(self.scale(z))
        return result


class DAPTDelta(Delta):
    """A block with an adapter beside its MLP, which also makes one more prompt.

    Args:
        order: number of the block among those that are changed.
        is_last: whether the prompts leave the sequence here, to stand behind it for the head.
    """

    def __init__(
        self,
        interface: ModelInterface,
        config: DAPTConfig,
        like: Tensor,
        order: int,
        is_first: bool,
        is_last: bool,
    ) -> None:
        super().__init__()
        dim = interface.embed_dim
        self.adapter = DynamicAdapter(dim, config, like)
        self.prompt = ScaleShiftDelta(dim, like, "paper")
        self.tokens = ScaleShiftDelta(dim, like, "paper") if is_first else None
        self.order, self.is_last, self.causal = order, is_last, interface.causal
        self.norm2 = interface.block_norms[1]

    def forward(self, block: nn.Module, x: Tensor, pos: Tensor, tokens: Tokens) -> Tensor:
        """(B, T, D) -> (B, T, D), from the last block (B, T + E, D) with the E prompts behind."""
        if self.tokens is not None:
            before, patches = x.tensor_split([tokens.num_prefix], dim=1)
            x = torch.cat([before, self.tokens(_same, patches)], dim=1) + pos
        length = x.shape[1]
        if self.order:
            prompts = tokens.memo["dapt", self.order - 1]
            tokens = seen_by_all(tokens, length, prompts.shape[1], self.causal, x.device)
            x = torch.cat([x, prompts], dim=1)
        halves = as_split(block, "dapt")
        x = halves.attend(x, tokens)
        added = self.adapter(block.get_submodule(self.norm2)(x))
        x = halves.feed(x, added)
        prompt = self.prompt(_same, F.gelu(added).mean(dim=1, keepdim=True))
        x = torch.cat([x, prompt], dim=1)
        if self.is_last:
            return x
        tokens.memo["dapt", self.order] = x[:, length:]
        return x[:, :length]


class _Same(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


_same = _Same()


def _read_settings(file: FileFacts) -> dict[str, Any]:
    width = file.shapes["blocks.blocks.0.Adapter_MLP.down_proj.weight"][0]
    return {"mode": "paper", "rank": width}


class DAPT(SequenceMethod):
    """Dynamic adapter and prompt tuning: x = x + MLP(y) + up(GELU(down z)) ReLU(scale z).

    y = LN2(x) is what the MLP reads, z = LN(y) with a norm of its own.

    Every block leaves a prompt behind, the mean over all tokens of GELU of what its adapter added, scaled and
    shifted, so that L prompts stand at the end. Scale and shift of every channel follow the patch tokens,
    both norms, qkv, proj, fc1, fc2 and the last norm. The position is added once, before the first block,
    unlike in Point-MAE. The head sees [class token, mean of the prompts, maximum over the patches].

    Trained: 721,164 numbers for Point-MAE with rank 64; 1,087,771 with class token and head of 15 classes.
    Not mergeable. Not the base at the start: pooling, positions, and random scales as released. It does not
    depend on batch mates. In paper mode the BatchNorms of the frozen patch encoder move.

    Ours (C): on ReCon the adapter acts in both branches; on a causal backbone all tokens see the prompts, and
    the prompts see one another only.

    Source: Zhou et al., Dynamic Adapter Meets Prompt Tuning: Parameter-Efficient Transfer Learning for Point
    Cloud Analysis, CVPR 2024, sections 3.2 and 3.3; order and places as released.
    """

    config_type: ClassVar[type[AdapterConfig]] = DAPTConfig
    config: DAPTConfig
    released_files = MethodFiles("DAPT", r"\.Adapter_MLP\.|^tfts_", _read_settings)
    official_keys: KeyMap = KeyMap(
        (
            Rule("tfts_gamma_1", "layers.blocks.0.tokens.gamma"),
            Rule("tfts_beta_1", "layers.blocks.0.tokens.beta"),
            Rule("tfts_gamma_2", "layers.norm.gamma"),
            Rule("tfts_beta_2", "layers.norm.beta"),
            *(
                Rule(f"blocks.blocks.*.{official}tfts_{kind}_{number}", f"layers.blocks.*.{ours}.{kind}")
                for kind in ("gamma", "beta")
                for official, number, ours in (
                    ("", 1, "norm1"), ("", 2, "norm2"), ("", 3, "prompt"), ("attn.", 1, "attn.qkv"),
                    ("attn.", 2, "attn.proj"), ("mlp.", 1, "mlp.fc1"), ("mlp.", 2, "mlp.fc2"),
                )
            ),
            Rule("blocks.blocks.*.Adapter_MLP.adapter_layer_norm_before.", "layers.blocks.*.adapter.norm."),
            Rule("blocks.blocks.*.Adapter_MLP.scale.", "layers.blocks.*.adapter.scale."),
            Rule("blocks.blocks.*.Adapter_MLP.down_proj.", "layers.blocks.*.adapter.down."),
            Rule("blocks.blocks.*.Adapter_MLP.up_proj.", "layers.blocks.*.adapter.up."),
        )
    )  # fmt: skip

    def make_deltas(self, model: nn.Module, interface: ModelInterface) -> dict[str, Delta]:
        """Make adapters, prompts, scales and the head's pooling."""
        config, like, blocks = self.config, next(model.parameters()), self.chosen(interface)
        if len(blocks) < len(interface.blocks):
            raise UserValueError(
                "dapt changes the way positions come in, so it needs all blocks; leave blocks out."
            )
        norm = interface.place("norm")
        check_split(model, interface, blocks, "dapt")
        deltas: dict[str, Delta] = {}
        for order, index in enumerate(blocks):
            is_last = index == blocks[-1] and not interface.takes_category
            path = interface.blocks[index]
            deltas[path] = DAPTDelta(interface, config, like, order, order == 0, is_last)
            for name in interface.block_norms:
                deltas[f"{path}.{name}"] = ScaleShiftDelta(interface.embed_dim, like, "paper")
        for role in _ROLES:
            for site in find_linears(model, interface, role, config.blocks):
                deltas[site.path] = ScaleShiftDelta(site.layer.out_features, like, "paper")
        deltas[norm] = ScaleShiftDelta(interface.embed_dim, like, "paper")
        if not interface.takes_category:
            deltas[interface.place("pool")] = self._pooling(interface)
        return deltas

    def _pooling(self, interface: ModelInterface) -> PrefixedPooling:
        config, extra = self.config, len(interface.blocks)
        return PrefixedPooling(
            interface.num_prefix, extra, extra=config.prompt_token, patches=config.patch_token
        )

    def num_pooled(self, interface: ModelInterface) -> int | None:
        """Count what the pooling puts side by side."""
        if interface.takes_category:
            return None
        return self._pooling(interface).num_pooled(interface.num_pooled)
