"""VPT: learned tokens beside the patches, new ones before every block or one set for all."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from pydantic import PositiveInt, model_validator
from torch import Tensor, nn

from pcl_clora.adapters.base import Delta
from pcl_clora.adapters.config import AdapterConfig, LayerwiseConfig
from pcl_clora.adapters.sequence import SequenceMethod, seen_by_all
from pcl_clora.errors import UserValueError
from pcl_clora.models.entry import FileFacts
from pcl_clora.models.interface import ModelInterface, Tokens
from pcl_clora.models.key_map import KeyMap, Rule
from pcl_clora.models.method_files import MethodFiles


class VPTConfig(LayerwiseConfig):
    """Settings of visual prompt tuning (Jia et al., ECCV 2022)."""

    method: Literal["vpt"] = "vpt"
    depth: Literal["deep", "shallow"] = "deep"  # new prompts before every block, or one set carried on
    num_prompts: PositiveInt = 10  # n, prompts of a block

    @model_validator(mode="after")
    def _shallow_has_one_start(self) -> VPTConfig:
        if self.depth == "shallow" and self.blocks:
            raise UserValueError(
                "blocks names the blocks that get new prompts, but depth='shallow' has one set before the "
                "first block; leave blocks out, or set depth='deep'."
            )
        return self


class Prompts(nn.Module):
    """n tokens with a position each.

    Attributes:
        token: (1, n, D), trunc_normal 0.02.
        pos: (1, n, D), the same.
    """

    def __init__(self, count: int, dim: int, like: Tensor) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.empty(1, count, dim, device=like.device, dtype=like.dtype))
        self.pos = nn.Parameter(torch.empty(1, count, dim, device=like.device, dtype=like.dtype))
        nn.init.trunc_normal_(self.token, std=0.02)
        nn.init.trunc_normal_(self.pos, std=0.02)


class VPTDelta(Delta):
    """A block that runs with prompts behind its sequence; what comes out at their places goes no further.

    Args:
        prompts: of this block; None takes what the block before it made of its own.
        positions: of the prompts, if they are carried on.
        index: of the block.
        causal: whether the block looks back only.
    """

    def __init__(
        self, prompts: Prompts | None, index: int, causal: bool, first: tuple[Prompts, ...] = ()
    ) -> None:
        super().__init__()
        if prompts is not None:
            self.prompts = prompts
        self._first = first  # a tuple: the first block's delta owns them
        self.index, self.causal = index, causal

    def forward(self, block: nn.Module, x: Tensor, pos: Tensor, tokens: Tokens) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        carried = len(self._first) > 0  # bool of a tuple breaks the graph in torch 2.11
        prompts = self._first[0] if carried else self.prompts
        token = prompts.token.expand(x.shape[0], -1, -1)
        if carried and self.index:
            token = tokens.memo["vpt", self.index - 1]
        length, extra = x.shape[1], token.shape[1]
        wide = seen_by_all(tokens, length, extra, self.causal, x.device)
        behind = torch.cat([pos, prompts.pos.expand(x.shape[0], -1, -1)], dim=1)
        y: Tensor = block(torch.cat([x, token], dim=1), behind, wide)
        if carried:
            tokens.memo["vpt", self.index] = y[:, length:]
        return y[:, :length]


def _read_settings(file: FileFacts) -> dict[str, Any]:
    return {"num_prompts": int(file.shapes["cls_prompt_list.0"][1])}


class VPT(SequenceMethod):
    """Visual prompt tuning: learned tokens that all others can look at.

    Deep: before block i the prompts of the block before are dropped and P_i comes in, with positions of its
    own. Shallow: P comes in before the first block and is carried on, its positions added before every block
    like the others'. The head never sees a prompt.

    Trained: n D numbers a set and as many for its positions: 92,160 for Point-MAE with n = 10, deep; 7,680
    shallow. Not mergeable. Not the base at the start. It does not depend on batch mates.

    Ours (C): prompts are seen by all tokens of a causal backbone and look at one another only; on ReCon they
    are in the branch of the patches.

    Source: Jia et al., Visual Prompt Tuning, ECCV 2022, section 3.2; the form for point clouds with positions
    as IDPT's release has it for comparison.
    """

    config_type: ClassVar[type[AdapterConfig]] = VPTConfig
    config: VPTConfig
    released_files = MethodFiles("VPT-deep", r"^cls_prompt_list\.", _read_settings)
    official_keys: KeyMap = KeyMap(
        (
            Rule("cls_prompt_list.*", "layers.blocks.*.prompts.token"),
            Rule("cls_prompt_pos_list.*", "layers.blocks.*.prompts.pos"),
        )
    )

    def make_deltas(self, model: nn.Module, interface: ModelInterface) -> dict[str, Delta]:
        """Make prompts for every chosen block, or one set and its way through all blocks."""
        config, like = self.config, next(model.parameters())
        make = (config.num_prompts, interface.embed_dim, like)
        first: tuple[Prompts, ...] = (Prompts(*make),) if config.depth == "shallow" else ()
        deltas: dict[str, Delta] = {}
        for index in self.chosen(interface):
            own = (first[0] if index == 0 else None) if first else Prompts(*make)
            deltas[interface.blocks[index]] = VPTDelta(own, index, interface.causal, first)
        return deltas
