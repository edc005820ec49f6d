"""IDPT: one prompt a cloud, made from its patches by a small network before a block."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor, nn

from pcl_clora.adapters.base import Delta
from pcl_clora.adapters.config import AdapterConfig
from pcl_clora.adapters.feature_graph import FeatureEdgeConv
from pcl_clora.adapters.sequence import (
    PrefixedPooling,
    PublishedConfig,
    SequenceMethod,
    check_patches,
    lengthened,
    seen_by_all,
)
from pcl_clora.errors import UserValueError
from pcl_clora.models.entry import FileFacts
from pcl_clora.models.interface import ModelInterface, Tokens
from pcl_clora.models.key_map import KeyMap, Rule
from pcl_clora.models.layers.family_keys import segmentation_rules
from pcl_clora.models.method_files import MethodFiles


class IDPTConfig(PublishedConfig):
    """Settings of instance-aware dynamic prompt tuning (Zha et al., ICCV 2023)."""

    method: Literal["idpt"] = "idpt"
    neighbors: PositiveInt = 20  # k, nearest patches in feature space, the patch itself included
    blocks: tuple[int, ...] = (-1,)  # the block that the prompt comes in before; one
    head_tokens: Literal["all", "prompt"] = "all"  # what the head sees: class token, prompt, patches; or one

    def left_out(self) -> frozenset[str]:
        """Leave out what came later while it has its default."""
        return super().left_out() | self.at_default("head_tokens")


class PromptGraph(nn.Module):
    """Edge convolutions over the patches, their outputs side by side, and a maximum over all patches.

    Args:
        dim: D.
        neighbors: of the edge convolutions.
        num_edges: how many; none takes the patches as they are.
        spare_norm: whether to hold a BatchNorm that nothing runs, as the released segmentation does.

    Attributes:
        edges: edge convolutions of width D.
        fuse: (D, num_edges D) without bias.
        norm: BatchNorm behind it.
    """

    def __init__(self, dim: int, neighbors: int, num_edges: int = 3, *, spare_norm: bool = False) -> None:
        super().__init__()
        self.edges = nn.ModuleList(
            FeatureEdgeConv(dim, dim, neighbors, by_product=True) for _ in range(num_edges)
        )
        self.fuse = nn.Linear(max(num_edges, 1) * dim, dim, bias=False)
        self.norm = nn.BatchNorm1d(dim)
        if spare_norm:
            self.unused = nn.BatchNorm1d(dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, G, D) -> (B, 1, D)."""
        outputs = [] if len(self.edges) else [x]
        for edge in self.edges:
            x = edge(x)
            outputs.append(x)
        x = self.fuse(torch.cat(outputs, dim=-1))
        x = F.leaky_relu(self.norm(x.flatten(0, 1)).view_as(x), 0.2)
        return x.amax(dim=1, keepdim=True)


class IDPTDelta(Delta):
    """A block that runs with the prompt; the first one makes it, the last one leaves it behind the sequence.

    Attributes:
        pos: (1, 1, D), position of the prompt; in paper mode random and never trained, as released.
    """

    pos: Tensor

    def __init__(
        self, interface: ModelInterface, config: IDPTConfig, index: int, first: IDPTDelta | None
    ) -> None:
        super().__init__()
        if first is None:
            self.graph = PromptGraph(interface.embed_dim, config.neighbors)
            pos = nn.init.trunc_normal_(torch.empty(1, 1, interface.embed_dim), std=0.02)
            if config.mode == "paper":
                self.register_buffer("pos", pos)
            else:
                self.pos = nn.Parameter(pos)
        self._first = () if first is None else (first,)  # a tuple: the first block's delta owns the prompt
        self.index, self.causal = index, interface.causal
        self.is_last = index == len(interface.blocks) - 1

    def forward(self, block: nn.Module, x: Tensor, pos: Tensor, tokens: Tokens) -> Tensor:
        """(B, T, D) -> (B, T, D), from the last block (B, T + 1, D)."""
        length = x.shape[1]
        if self._first:
            prompt, own_pos = tokens.memo["idpt", self.index - 1], self._first[0].pos
        else:
            start = tokens.num_prefix
            prompt, own_pos = self.graph(x[:, start : start + tokens.center.shape[1]]), self.pos
        y = run_with_prompt(block, x, pos, tokens, prompt, own_pos, self.causal)
        if self.is_last:
            return y
        tokens.memo["idpt", self.index] = y[:, length:]
        return y[:, :length]


class LevelDelta(Delta):
    """A block of a segmenter whose output the head reads: it runs with a prompt that goes no further."""

    def __init__(self, method: IDPT, interface: ModelInterface, index: int) -> None:
        super().__init__()
        paper = method.config.mode == "paper"
        self.graph = PromptGraph(interface.embed_dim, method.config.neighbors, 0, spare_norm=paper)
        self._method, self.index, self.causal = (method,), index, interface.causal  # a tuple: it owns pos

    def forward(self, block: nn.Module, x: Tensor, pos: Tensor, tokens: Tokens) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        length, start = x.shape[1], tokens.num_prefix
        prompt = self.graph(x[:, start : start + tokens.center.shape[1]])
        y = run_with_prompt(block, x, pos, tokens, prompt, self._method[0].pos, self.causal)
        tokens.memo["idpt", self.index] = torch.cat([prompt, y[:, length:]], dim=1)
        return y[:, :length]


class PromptedDecoding(Delta):
    """The head of a segmenter sees the prompts before and behind their blocks, not maximum and mean."""

    def forward(
        self,
        base_layer: nn.Module,
        gather: Any,
        tokens: Tokens,
        outputs: list[Tensor],
        fetched: Sequence[int],
    ) -> Any:
        """What a segmentation head reads."""
        outputs = lengthened(outputs, {index: tokens.memo["idpt", index] for index in fetched})
        found = base_layer(gather, tokens, outputs, fetched)
        patches, prompts = found.features.tensor_split([tokens.center.shape[1]], dim=1)
        return found._replace(features=patches, pooled=prompts.flatten(1))


def run_with_prompt(
    block: nn.Module, x: Tensor, pos: Tensor, tokens: Tokens, prompt: Tensor, own_pos: Tensor, causal: bool
) -> Tensor:
    """Run a block with one more token and its position behind the sequence: (B, T, D) -> (B, T + 1, D)."""
    wide = seen_by_all(tokens, x.shape[1], 1, causal, x.device)
    behind = torch.cat([pos, own_pos.expand(x.shape[0], -1, -1)], dim=1)
    y: Tensor = block(torch.cat([x, prompt], dim=1), behind, wide)
    return y


# The released network registers each BatchNorm twice; what is read last, behind its layer, counts.
_TWINS = KeyMap(
    tuple(Rule(f"blocks.cls.bn{number}.", f"blocks.cls.conv{number}.1.") for number in (1, 2, 3, 5)),
    sides=("other", "usual"),
)


def _read_settings(file: FileFacts) -> dict[str, Any]:
    return {"mode": "paper"}


class IDPT(SequenceMethod):
    """Instance-aware dynamic prompt tuning: a graph network in feature space makes one token a cloud.

    The token comes in before the last block; the head sees [class token, prompt, maximum over the patches].
    In part segmentation every block that the head reads has a prompt of its own, the maximum over the patches
    of LeakyReLU(BatchNorm(linear)); the head sees it before and behind the block, not maximum and mean.

    Trained: 1,330,560 numbers for Point-MAE, 1,697,167 with class token and head of 15 classes; in paper
    mode 384 fewer. Segmentation: 445,056, with the head 5,683,762, in paper mode 2,304 more that no output
    uses. Not mergeable. Not the base at the start. The graph has BatchNorms of its own, whose statistics move
    and are saved; in evaluation it does not depend on batch mates.

    Mended (mode corrected): the position of the prompt is trained, which the released rule of names misses;
    frozen BatchNorms stay frozen. In both modes the base takes no gradients, where the release computes all.

    Source: Zha et al., Instance-aware Dynamic Prompt Tuning for Pre-trained Point Cloud Models, ICCV 2023,
    section 3.3, as released.
    """

    config_type: ClassVar[type[AdapterConfig]] = IDPTConfig
    config: IDPTConfig
    released_files = MethodFiles(
        "IDPT", r"^blocks\.cls\.|^blocks\.dgcnn_cls\d+\.", _read_settings, twins=_TWINS
    )
    pos: nn.Parameter

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__(config)
        (first,) = self.config.blocks if len(self.config.blocks) == 1 else (-1,)
        self.official_keys = classification_keys(first % 12)

    def make_deltas(self, model: nn.Module, interface: ModelInterface) -> dict[str, Delta]:
        """Make the graph and the head's pooling, or prompts of every block that a segmentation head reads."""
        blocks, like = self.chosen(interface), next(model.parameters())
        if interface.takes_category:
            deltas = self._make_levels(interface)
        else:
            if len(blocks) != 1:
                raise UserValueError(f"idpt's prompt comes in before one block, not before {len(blocks)}.")
            self.official_keys = classification_keys(blocks[0])
            check_patches(interface, self.config.neighbors, f"neighbors={self.config.neighbors}")
            deltas = {interface.place("pool"): self._pooling(interface)}
            first = None
            for index in range(blocks[0], len(interface.blocks)):
                delta = IDPTDelta(interface, self.config, index, first)
                first = first or delta
                deltas[interface.blocks[index]] = delta
        self.to(like.device, like.dtype)
        return {path: delta.to(like.device, like.dtype) for path, delta in deltas.items()}

    def _make_levels(self, interface: ModelInterface) -> dict[str, Delta]:
        if self.config.blocks != (-1,) or self.config.head_tokens != "all":
            raise UserValueError(
                "idpt's prompts are at the blocks that a segmentation head reads; leave blocks and "
                "head_tokens out."
            )
        deltas: dict[str, Delta] = {interface.place("decoder"): PromptedDecoding()}
        self.pos = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, interface.embed_dim), std=0.02))
        self.official_keys = segmentation_keys(interface.fetched)
        for index in interface.fetched:
            deltas[interface.blocks[index]] = LevelDelta(self, interface, index)
        return deltas

    def _pooling(self, interface: ModelInterface) -> PrefixedPooling:
        if self.config.head_tokens == "all":
            return PrefixedPooling(interface.num_prefix, 1)
        return PrefixedPooling(interface.num_prefix, 1, patches="none", prefix=False)

    def num_pooled(self, interface: ModelInterface) -> int | None:
        """Count what the pooling puts side by side."""
        if interface.takes_category:
            return None
        return self._pooling(interface).num_pooled(interface.num_pooled)


def classification_keys(block: int) -> KeyMap:
    """Say what the released classification files call the tensors of a prompt before a block."""
    here = f"layers.blocks.{block}"
    rules = [Rule("prompt_pos", f"{here}.pos"), Rule("blocks.cls.conv5.0.", f"{here}.graph.fuse.", conv=1)]
    rules.append(Rule("blocks.cls.conv5.1.", f"{here}.graph.norm."))
    for number in (1, 2, 3):
        edge = f"{here}.graph.edges.{number - 1}"
        rules.append(Rule(f"blocks.cls.conv{number}.0.", f"{edge}.linear.", conv=2))
        rules.append(Rule(f"blocks.cls.conv{number}.1.", f"{edge}.norm."))
    return KeyMap(tuple(rules))


def segmentation_keys(fetched: Sequence[int]) -> KeyMap:
    """Say what the released segmentation files call the tensors; their head has names of its own too."""
    rules = [Rule("prompt_cls_pos", "method.pos")]
    for block in fetched:
        there, here = f"blocks.dgcnn_cls{block}.", f"layers.blocks.{block}.graph."
        rules.append(Rule(f"{there}conv5.0.", f"{here}fuse.", conv=1))
        rules.append(Rule(f"{there}conv5.1.", f"{here}norm."))
        rules.append(Rule(f"{there}bn5.", f"{here}unused."))
    rules += [Rule(rule.first, f"model.{rule.second}", rule.conv) for rule in segmentation_rules("_cls")]
    return KeyMap(tuple(rules))
