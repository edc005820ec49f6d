"""GFT: prompts, and blocks that read features of a graph in feature space by cross-attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, PositiveInt, field_validator, model_validator
from torch import Tensor, nn

from pcl_clora.adapters.base import Delta
from pcl_clora.adapters.config import AdapterConfig, unique
from pcl_clora.adapters.feature_graph import FeatureEdgeConv
from pcl_clora.adapters.methods.gft_decoder import (
    GFTDecoderConfig,
    GFTSegmentationHead,
    decoder_sizes,
    head_rules,
    num_categories_of,
)
from pcl_clora.adapters.sequence import (
    PrefixedPooling,
    PublishedConfig,
    SequenceMethod,
    check_patches,
    family_head,
    lengthened,
    patch_entry,
    seen_by_all,
)
from pcl_clora.errors import UserValueError
from pcl_clora.models.entry import FileFacts
from pcl_clora.models.interface import ModelInterface, Tokens
from pcl_clora.models.key_map import KeyMap, Rule
from pcl_clora.models.method_files import MethodFiles


class GFTConfig(PublishedConfig):
    """Settings of graph features tuning; the defaults are those for ScanObjectNN, hardest variant."""

    method: Literal["gft"] = "gft"
    num_prompts: PositiveInt = 50  # n
    cross_blocks: tuple[NonNegativeInt, ...] = (0, 3, 6, 9)  # blocks that read the graph behind them
    width: PositiveInt = 32  # of the cross-attention
    num_heads: PositiveInt = 1  # of the cross-attention
    dropout: float = Field(0.0, ge=0, lt=1)  # of its weights
    neighbors: PositiveInt = 20  # k, nearest tokens in feature space, the token itself included
    edge_layers: PositiveInt = 4  # edge convolutions
    edge_width: PositiveInt = 64  # width of each
    graph_width: PositiveInt = 256  # width of the graph's features
    levels: tuple[NonNegativeInt, ...] = ()  # blocks that its segmentation head reads; () = every quarter
    decoder: GFTDecoderConfig = GFTDecoderConfig()  # its segmentation head

    def left_out(self) -> frozenset[str]:
        """Leave out what is of segmentation only while it has its default."""
        return super().left_out() | self.at_default("levels", "decoder")

    @field_validator("cross_blocks")
    @classmethod
    def _name_cross_blocks_once(cls, blocks: tuple[int, ...]) -> tuple[int, ...]:
        return unique(blocks, "cross_blocks")

    @model_validator(mode="after")
    def _fits(self) -> GFTConfig:
        if self.blocks:
            raise UserValueError("gft's prompts pass through all blocks; leave blocks out, set cross_blocks.")
        if self.width % self.num_heads:
            raise UserValueError(f"num_heads={self.num_heads} does not divide width={self.width}.")
        return self


class TokenGraph(nn.Module):
    """Edge convolutions over all tokens, their outputs side by side, and one layer over them."""

    def __init__(self, dim: int, config: GFTConfig) -> None:
        super().__init__()
        widths = [dim, *config.edge_layers * [config.edge_width]]
        self.edges = nn.ModuleList(
            FeatureEdgeConv(widths[layer], widths[layer + 1], config.neighbors)
            for layer in range(config.edge_layers)
        )
        self.fuse = nn.Linear(sum(widths[1:]), config.graph_width, bias=False)
        self.norm = nn.BatchNorm1d(config.graph_width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, graph_width)."""
        outputs = []
        for edge in self.edges:
            x = edge(x)
            outputs.append(x)
        x = self.fuse(torch.cat(outputs, dim=-1))
        return F.leaky_relu(self.norm(x.flatten(0, 1)).view_as(x), 0.2)


class GraphAttention(nn.Module):
    """Cross-attention of the tokens to the graph's features: GELU(proj(attention)).

    Attributes:
        unused: a norm that the released network holds and never runs; in paper mode only, so that counts and
            files agree.
    """

    def __init__(self, dim: int, config: GFTConfig) -> None:
        super().__init__()
        self.norm_q, self.norm_kv = nn.LayerNorm(dim), nn.LayerNorm(config.graph_width)
        self.query = nn.Linear(dim, config.width, bias=False)
        self.key = nn.Linear(config.graph_width, config.width, bias=False)
        self.value = nn.Linear(config.graph_width, config.width, bias=False)
        self.proj = nn.Linear(config.width, dim)
        if config.mode == "paper":
            self.unused = nn.LayerNorm(dim)
        self.num_heads, self.dropout = config.num_heads, config.dropout

    def forward(self, x: Tensor, graph: Tensor) -> Tensor:
        """(B, T, D), (B, T, graph_width) -> (B, T, D)."""
        q, known = self.query(self.norm_q(x)), self.norm_kv(graph)
        q, k, v = (
            y.view(*y.shape[:2], self.num_heads, -1).transpose(1, 2)
            for y in (q, self.key(known), self.value(known))
        )
        rate = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=rate)
        return F.gelu(self.proj(out.transpose(1, 2).flatten(2)))


class GFTDelta(Delta):
    """A block that runs with the prompts, behind which the tokens may read the graph."""

    def __init__(self, method: GFT, interface: ModelInterface, index: int) -> None:
        super().__init__()
        config = method.config
        self.cross = GraphAttention(interface.embed_dim, config) if index in config.cross_blocks else None
        self._method = (method,)  # a tuple: the method owns prompts and graph
        self.index, self.causal = index, interface.causal
        self.is_last, self.segments = index == len(interface.blocks) - 1, interface.takes_category

    def forward(self, block: nn.Module, x: Tensor, pos: Tensor, tokens: Tokens) -> Tensor:
        """(B, T, D) -> (B, T, D), from the last block (B, T + n, D) with the prompts behind."""
        method, index, length = self._method[0], self.index, x.shape[1]
        if index:
            prompts, graph = tokens.memo["gft", index - 1]
        else:
            prompts = method.prompt.expand(x.shape[0], -1, -1)
            graph = method.graph[0](torch.cat([x, prompts], dim=1))
        extra = prompts.shape[1]
        wide = seen_by_all(tokens, length, extra, self.causal, x.device)
        y: Tensor = block(torch.cat([x, prompts], dim=1), F.pad(pos, (0, 0, 0, extra)), wide)
        if self.cross is not None:
            y = y + self.cross(y, graph)
        if self.is_last and not self.segments:
            return y
        tokens.memo["gft", index] = (y[:, length:], graph)
        return y[:, :length]


class GFTDecoding(Delta):
    """The head of a segmenter reads levels of its own, prompts included, and the graph's features."""

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__()
        self.levels = levels

    def forward(
        self,
        base_layer: nn.Module,
        gather: Any,
        tokens: Tokens,
        outputs: list[Tensor],
        fetched: Sequence[int],
    ) -> Any:
        """What a segmentation head reads."""
        found = {index: tokens.memo["gft", index] for index in self.levels}
        outputs = lengthened(outputs, {index: prompts for index, (prompts, _) in found.items()})
        graph = found[self.levels[-1]][1]
        return base_layer(gather, tokens, outputs, self.levels)._replace(extra=graph.amax(dim=1))


def _read_settings(file: FileFacts) -> dict[str, Any]:
    start = "blocks." if "blocks.prompt" in file.shapes else ""  # in files of part segmentation
    depth = file.count(r"blocks\.blocks\.(\d+)\.")
    crosses = file.count(rf"{start}cross_attn_blocks\.(\d+)\.")
    return {
        "mode": "paper",
        "num_prompts": int(file.shapes[f"{start}prompt"][1]),
        "cross_blocks": tuple(range(0, depth, -(-depth // crosses)))[:crosses],  # evenly, as published
        "width": file.shapes[f"{start}cross_attn_blocks.0.query.weight"][0],
        "edge_layers": file.count(rf"{start}edge_conv\.conv_blocks\.(\d+)\."),
        "edge_width": file.shapes[f"{start}edge_conv.conv_blocks.0.0.weight"][0],
        "graph_width": file.shapes[f"{start}edge_conv.final_conv.0.weight"][0],
        **({"decoder": decoder_sizes(file)} if start else {}),
    }


class GFT(SequenceMethod):
    """Graph features tuning: x = x + GELU(proj(softmax(Q K^T) V)) behind some blocks, K and V from a graph.

    The graph's features come once from all tokens before the first block, prompts included, by edge
    convolutions in feature space. Prompts have no position. The head sees [class token, mean of the prompts,
    maximum over the patches]. In part segmentation a decoder of its own reads four levels, see
    `gft_decoder.GFTSegmentationHead`.

    Trained on Point-MAE: prompts 19,200, graph 140,288, cross-attention 170,496, the entry of the patch
    encoder 33,792; in paper mode 3,072 more that no output uses, and with class token and head of 15 classes
    733,455; part segmentation 3,447,730 with its head. Not mergeable. Not the base at the start. BatchNorms
    of its own move and are saved; it does not depend on batch mates in evaluation.

    Mended (mode corrected): the norm that nothing uses is left out; frozen BatchNorms stay frozen.

    Source: GFT: Graph Feature Tuning for Efficient Point Cloud Analysis, WACV 2026, as released.
    """

    config_type: ClassVar[type[AdapterConfig]] = GFTConfig
    config: GFTConfig
    released_files = MethodFiles("GFT", r"^(blocks\.)?edge_conv\.final_conv\.", _read_settings)
    prompt: nn.Parameter

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__(config)
        self.graph = nn.ModuleList()
        self.official_keys = KeyMap((*self._rules(), Rule("cls_head_finetune.", "model.head.")))

    def _rules(self, start: str = "") -> list[Rule]:
        rules = [
            Rule(f"{start}prompt", "method.prompt"),
            Rule(f"{start}edge_conv.conv_blocks.*.0.", "method.graph.0.edges.*.linear.", conv=2),
            Rule(f"{start}edge_conv.conv_blocks.*.1.", "method.graph.0.edges.*.norm."),
            Rule(f"{start}edge_conv.final_conv.0.", "method.graph.0.fuse.", conv=1),
            Rule(f"{start}edge_conv.final_conv.1.", "method.graph.0.norm."),
        ]
        names = {
            "q_norm": "norm_q", "kv_norm": "norm_kv", "post_norm_layer": "unused", "query": "query",
            "key": "key", "value": "value", "proj.0": "proj",
        }  # fmt: skip
        for number, index in enumerate(sorted(self.config.cross_blocks)):
            there, ours = f"{start}cross_attn_blocks.{number}.", f"layers.blocks.{index}.cross."
            rules += [Rule(f"{there}{official}.", f"{ours}{own}.") for official, own in names.items()]
        return rules

    def make_deltas(self, model: nn.Module, interface: ModelInterface) -> dict[str, Delta]:
        """Make prompts, graph, and one delta a block."""
        config, dim, like = self.config, interface.embed_dim, next(model.parameters())
        blocks = self.chosen(interface)
        for name, given in (("cross_blocks", config.cross_blocks), ("levels", config.levels)):
            beyond = [index for index in given if index >= len(blocks)]
            if beyond:
                raise UserValueError(
                    f"{name} names {', '.join(map(str, beyond))}, but this backbone has {len(blocks)} "
                    f"blocks: name 0 to {len(blocks) - 1}."
                )
        further = config.num_prompts + interface.num_prefix
        check_patches(interface, config.neighbors, f"neighbors={config.neighbors}", further=further)
        if not interface.takes_category:
            reads: tuple[str, Delta] = (
                interface.place("pool"),
                PrefixedPooling(interface.num_prefix, config.num_prompts),
            )
        else:
            reads = (interface.place("decoder"), GFTDecoding(self._levels(interface)))
            unused = [Rule("prompt_cls_pos", "method.unused_pos")]
            self.official_keys = KeyMap((*self._rules("blocks."), *head_rules(), *unused))
            if config.mode == "paper":  # released and never used
                self.unused_pos = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, 1, dim), std=0.02))
        self.prompt = nn.Parameter(torch.randn(1, config.num_prompts, dim))
        self.graph.append(TokenGraph(dim, config))
        self.to(like.device, like.dtype)
        deltas: dict[str, Delta] = dict([reads])
        for index in blocks:
            deltas[interface.blocks[index]] = GFTDelta(self, interface, index).to(like.device, like.dtype)
        return deltas

    def owned_paths(self, model: nn.Module, interface: ModelInterface) -> dict[str, str]:
        """Name what is trained besides: the entry of the patch encoder too."""
        return {**super().owned_paths(model, interface), **patch_entry(interface, "gft")}

    def _levels(self, interface: ModelInterface) -> tuple[int, ...]:
        depth = len(interface.blocks)
        return self.config.levels or tuple(sorted({max(depth * k // 4 - 1, 0) for k in (1, 2, 3, 4)}))

    def num_pooled(self, interface: ModelInterface) -> int | None:
        """One more than the backbone, in classification."""
        return None if interface.takes_category else interface.num_pooled + 1

    def has_own_head(self, interface: ModelInterface) -> bool:
        """Always: it reads more, or is another one."""
        return True

    def make_head(self, model: nn.Module, interface: ModelInterface, num_classes: int) -> nn.Module:
        """Make the decoder, or the head with a wider input; in paper mode that of Point-MAE everywhere."""
        config, pooled = self.config, self.num_pooled(interface)
        if pooled is None:
            return GFTSegmentationHead(
                interface.embed_dim,
                len(self._levels(interface)),
                config.num_prompts,
                config.graph_width,
                num_classes,
                num_categories_of(model),
                config.decoder,
            )
        if config.mode == "corrected":
            return super().make_head(model, interface, num_classes)
        return family_head(model, pooled * interface.embed_dim, num_classes)
