"""IDPT: one prompt a cloud, made from its patches by a small graph network before the last block."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn

from pcl_clora.adapters.base import Delta
from pcl_clora.adapters.config import AdapterConfig
from pcl_clora.adapters.feature_graph import FeatureEdgeConv
from pcl_clora.adapters.sequence import PrefixedPooling, PublishedConfig, SequenceMethod, seen_by_all
from pcl_clora.errors import UserValueError
from pcl_clora.models.interface import ModelInterface, Tokens
from pcl_clora.models.key_map import KeyMap, Rule


class IDPTConfig(PublishedConfig):
    """Settings of instance-aware dynamic prompt tuning (Zha et al., ICCV 2023)."""

    method: Literal["idpt"] = "idpt"
    neighbors: PositiveInt = 20  # k, nearest patches in feature space, the patch itself included
    blocks: tuple[int, ...] = (-1,)  # the block that the prompt comes in before; one


class PromptGraph(nn.Module):
    """Three edge convolutions over the patches, their outputs side by side, and a maximum over all patches.

    Attributes:
        edges: three edge convolutions of width D.
        fuse: (D, 3 D) without bias.
        norm: BatchNorm behind it.
    """

    def __init__(self, dim: int, neighbors: int) -> None:
        super().__init__()
        self.edges = nn.ModuleList(FeatureEdgeConv(dim, dim, neighbors) for _ in range(3))
        self.fuse = nn.Linear(3 * dim, dim, bias=False)
        self.norm = nn.BatchNorm1d(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, G, D) -> (B, 1, D)."""
        outputs = []
        for edge in self.edges:
            x = edge(x)
            outputs.append(x)
        x = self.fuse(torch.cat(outputs, dim=-1))
        x = F.leaky_relu(self.norm(x.flatten(0, 1)).view_as(x), 0.2)
        return x.amax(dim=1, keepdim=True)


class IDPTDelta(Delta):
    """The block that the prompt comes in before; it leaves the block behind the sequence.

    Attributes:
        pos: (1, 1, D), position of the prompt; in paper mode random and never trained, as released.
    """

    pos: Tensor

    def __init__(self, interface: ModelInterface, config: IDPTConfig, like: Tensor) -> None:
        super().__init__()
        self.graph = PromptGraph(interface.embed_dim, config.neighbors)
        pos = nn.init.trunc_normal_(torch.empty(1, 1, interface.embed_dim), std=0.02)
        if config.mode == "paper":
            self.register_buffer("pos", pos)
        else:
            self.pos = nn.Parameter(pos)
        self.causal = interface.causal
        self.to(like.device, like.dtype)

    def forward(self, block: nn.Module, x: Tensor, pos: Tensor, tokens: Tokens) -> Tensor:
        """(B, T, D) -> (B, T + 1, D)."""
        start, length = tokens.num_prefix, x.shape[1]
        prompt = self.graph(x[:, start : start + tokens.center.shape[1]])
        wide = seen_by_all(tokens, length, 1, self.causal, x.device)
        behind = torch.cat([pos, self.pos.expand(len(x), -1, -1)], dim=1)
        y: Tensor = block(torch.cat([x, prompt], dim=1), behind, wide)
        return y


class IDPT(SequenceMethod):
    """Instance-aware dynamic prompt tuning: a graph network in feature space makes one token a cloud.

    The token comes in before the last block; the head sees [class token, prompt, maximum over the patches].

    Trained: 1,330,560 numbers for Point-MAE, 1,697,167 with class token and head of 15 classes; in paper
    mode 384 fewer. Not mergeable. Not the base at the start. The graph has BatchNorms of
    its own, whose statistics move and are saved; in evaluation it does not depend on batch mates.

    Mended (mode corrected): the position of the prompt is trained, which the released rule of names misses;
    frozen BatchNorms stay frozen. In both modes the base takes no gradients, where the release computes all.

    Source: Zha et al., Instance-aware Dynamic Prompt Tuning for Pre-trained Point Cloud Models, ICCV 2023,
    section 3.3, as released.
    """

    config_type: ClassVar[type[AdapterConfig]] = IDPTConfig
    config: IDPTConfig
    official_keys: KeyMap = KeyMap(
        (
            Rule("prompt_pos", "layers.blocks.11.pos"),
            *(
                rule
                for number in (1, 2, 3)
                for rule in (
                    Rule(
                        f"blocks.cls.conv{number}.0.",
                        f"layers.blocks.11.graph.edges.{number - 1}.linear.",
                        conv=2,
                    ),
                    Rule(f"blocks.cls.bn{number}.", f"layers.blocks.11.graph.edges.{number - 1}.norm."),
                )
            ),
            Rule("blocks.cls.conv5.0.", "layers.blocks.11.graph.fuse.", conv=1),
            Rule("blocks.cls.bn5.", "layers.blocks.11.graph.norm."),
        )
    )

    def make_deltas(self, model: nn.Module, interface: ModelInterface) -> dict[str, Delta]:
        """Make the graph and the head's pooling."""
        blocks = self.chosen(interface)
        if interface.takes_category:
            raise UserValueError("idpt is offered for classification; use another method for segmentation.")
        if blocks != [len(interface.blocks) - 1]:
            raise UserValueError("idpt's prompt comes in before the last block; leave blocks out.")
        like = next(model.parameters())
        return {
            interface.place("pool"): PrefixedPooling(interface.num_prefix, 1),
            interface.blocks[blocks[0]]: IDPTDelta(interface, self.config, like),
        }

    def num_pooled(self, interface: ModelInterface) -> int | None:
        """One more than the backbone."""
        return interface.num_pooled + 1
