"""Point-PEFT: prompts with a bank of features, adapters behind the MLP, attention among neighbours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor, nn

from pcl_clora import ops
from pcl_clora.adapters.base import Delta
from pcl_clora.adapters.config import AdapterConfig
from pcl_clora.adapters.paths import find_linears
from pcl_clora.adapters.sequence import (
    PublishedConfig,
    SequenceMethod,
    as_split,
    check_patches,
    check_split,
    seen_by_all,
)
from pcl_clora.errors import UserValueError
from pcl_clora.models.entry import FileFacts
from pcl_clora.models.interface import ModelInterface, Tokens
from pcl_clora.models.key_map import KeyMap, Rule
from pcl_clora.models.method_files import MethodFiles
from pcl_clora.models.published import Rewritten

NUM_CORNERS = NUM_PROMPTS = 10  # start points of the second sampling, and prompts of a block, as released
TOP, BANK_SHARE, INNER = 8, 0.3, 18  # columns of the bank; share of what is mixed in; width of the attention
BANK_SIZE = 11392  # columns of the released bank
ADAPTER_SHARE = 0.7  # of the adapter behind the MLP


class PointPEFTConfig(PublishedConfig):
    """Settings of Point-PEFT; the defaults are those for ScanObjectNN."""

    method: Literal["point_peft"] = "point_peft"
    rank: PositiveInt = 16  # of both adapters
    bank: bool = True  # whether prompts have an adapter for a bank's features; the bank itself is provided
    bank_rank: PositiveInt = 8  # of that adapter
    prompt_blocks: NonNegativeInt = 6  # how many of the first blocks have prompts
    neighbors: PositiveInt = 16  # centres in a neighbourhood: half a patch's points as released
    num_heads: PositiveInt = 6  # of the attention among neighbours; divides 18
    dropout: float = Field(0.1, ge=0, lt=1)  # on the prompts

    @model_validator(mode="after")
    def _fits(self) -> PointPEFTConfig:
        if self.blocks:
            raise UserValueError("point_peft changes all blocks; leave blocks out, set prompt_blocks.")
        if INNER % self.num_heads:
            raise UserValueError(f"num_heads={self.num_heads} does not divide {INNER}.")
        return self


class QuickAdapter(nn.Module):
    """Up(QuickGELU(down x)), QuickGELU(y) = y sigmoid(1.702 y); Xavier uniform, biases N(0, 1e-6)."""

    def __init__(self, dim: int, rank: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(dim, rank), nn.Linear(rank, dim)
        for layer in (self.down, self.up):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.normal_(layer.bias, std=1e-6)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) -> (..., D)."""
        hidden = self.down(x)
        result: Tensor = self.up(hidden * torch.sigmoid(1.702 * hidden))
        return result


class NeighborAttention(nn.Module):
    """Self-attention of width 18 inside each neighbourhood, behind a LayerNorm; shared by all blocks.

    The products are scaled by 18^-0.5, not by the width of a head, as released.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * INNER, bias=False), nn.Linear(INNER, dim)
        self.num_heads = num_heads

    def forward(self, rows: Tensor) -> Tensor:
        """(M, K, D) -> (M, K, D)."""
        m, k, _ = rows.shape
        q, key, v = self.qkv(self.norm(rows)).view(m, k, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, key, v, scale=INNER**-0.5)
        result: Tensor = rows + self.proj(out.transpose(1, 2).reshape(m, k, INNER))
        return result


class BehindMLP(Delta):
    """The adapter on what the MLP puts out: m + 0.7 adapter(m)."""

    def __init__(self, dim: int, rank: int) -> None:
        super().__init__()
        self.adapter = QuickAdapter(dim, rank)

    def forward(self, base_layer: nn.Module, x: Tensor) -> Tensor:
        """What the last layer of the MLP takes -> (B, T, D)."""
        m: Tensor = base_layer(x)
        added: Tensor = self.adapter(m)
        return m + ADAPTER_SHARE * added


class PointPEFTDelta(Rewritten, Delta):
    """A block with prompts that go no further, the exchange among neighbours, and one more adapter."""

    def __init__(self, method: PointPEFT, interface: ModelInterface, index: int) -> None:
        super().__init__()
        config, dim = method.config, interface.embed_dim
        self.with_prompts = index < config.prompt_blocks
        if self.with_prompts or config.mode == "paper":  # the release makes them in all blocks
            self.prompts = nn.Parameter(nn.init.trunc_normal_(torch.empty(NUM_PROMPTS, dim), std=0.02))
            if config.bank:
                self.bank_adapter = QuickAdapter(dim, config.bank_rank)
        if config.mode == "paper":
            self.gate = nn.Parameter(torch.zeros(1))  # released and never used
        self.adapter = QuickAdapter(dim, config.rank)
        self.norm = nn.BatchNorm1d(dim)
        self.dropout = nn.Dropout(config.dropout)
        self._method, self.causal = (method,), interface.causal  # a tuple: the method owns what is shared

    def forward(self, block: nn.Module, x: Tensor, pos: Tensor, tokens: Tokens) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        method, length, start = self._method[0], x.shape[1], tokens.num_prefix
        x, prompts = x + pos, x[:, :0]
        if self.with_prompts:
            prompts = self._make_prompts(method, x, tokens)
            tokens = seen_by_all(tokens, length, prompts.shape[1], self.causal, x.device)
            x = torch.cat([x, prompts], dim=1)
        halves = as_split(block, "point_peft")
        x = halves.feed(halves.attend(x, tokens))
        x, prompts = x.tensor_split([length], dim=1)
        num_patches = tokens.center.shape[1]
        added = self._from_neighbors(method, x[:, start : start + num_patches], prompts, tokens)
        x = x + F.pad(added, (0, 0, start, length - start - num_patches))
        extra: Tensor = self.adapter(x)
        return x + extra

    def _make_prompts(self, method: PointPEFT, x: Tensor, tokens: Tokens) -> Tensor:
        prompts: Tensor = self.dropout(self.prompts).expand(x.shape[0], -1, -1)
        if "point_peft" not in tokens.memo:
            tokens.memo["point_peft"] = method.prior(x)
        prior: Tensor | None = tokens.memo["point_peft"]
        if prior is None:
            return prompts
        further: Tensor = self.bank_adapter(prior)
        return prompts + prior + further

    def _from_neighbors(self, method: PointPEFT, patches: Tensor, prompts: Tensor, tokens: Tokens) -> Tensor:
        """(B, G, D) patches -> (B, G, D), what their neighbourhoods send them."""
        paper = method.config.mode == "paper"
        place = method.neighborhoods(tokens, moved=paper and self.with_prompts)
        b, g, dim = patches.shape
        known = torch.cat([prompts, patches], dim=1) if paper else patches
        # As released, rows are counted as if every cloud had G of them, so that they belong to others too.
        first = torch.arange(b, device=patches.device)[:, None] * g
        stacked = known.flatten(0, 1)
        rows = stacked.index_select(0, (place.near + first[:, :, None]).flatten())
        h = method.attention[0](rows.view(-1, place.near.shape[2], dim)).amax(dim=1)
        middle = stacked.index_select(0, (place.middle + first).flatten())
        v = F.gelu(self.norm(h)) + BANK_SHARE * middle
        v = v.view(b, -1, dim)
        pairs = place.weight[..., None] * v[:, None] if self.published else None  # as released, no product
        carried: Tensor = place.weight @ v if pairs is None else pairs.sum(dim=2)
        return BANK_SHARE * carried


class Neighborhoods:
    """Where features come together, and how they come back.

    Args:
        center: (B, G, 3).
        num_middles: how many of the centres are middles of a neighbourhood.
        k: centres in each.
    """

    def __init__(self, center: Tensor, k: int, compat: ops.Compat) -> None:
        g = center.shape[1]
        if k > g:
            raise UserValueError(f"neighbors={k} is more than a cloud has patches ({g}); lower it.")
        self.middle = ops.farthest_point_sample(center.detach(), g // 2, compat=compat)
        middles = ops.gather_points(center, self.middle)
        self.near = ops.knn(center.detach(), middles.detach(), k).idx
        dist2 = (center[:, :, None] - middles[:, None]).square().sum(dim=-1)
        inverse = 1 / (dist2 + 1e-8)
        self.weight = inverse / inverse.sum(dim=-1, keepdim=True)


def _read_settings(file: FileFacts) -> dict[str, Any]:
    block = "blocks.blocks.0"
    return {
        "mode": "paper",
        "rank": file.shapes[f"{block}.adapter.ln1.weight"][0],
        "bank_rank": file.shapes[f"{block}.cp_adapter.ln1.weight"][0],
    }


class PointPEFT(SequenceMethod):
    """Point-PEFT: x = u + m + 0.7 adapter(m) behind the MLP's output m, u after the attention, and more.

    The first blocks have ten prompts each; with a bank, features of the cloud and of its nearest entries are
    added to them through an adapter. Then every patch gets a share of its neighbourhoods: attention among the
    nearest centres of every second centre, a maximum, BatchNorm, GELU, and inverse-distance interpolation.
    One more adapter follows. Norms' and linear layers' biases and the last norm are trained besides.

    Trained: 773,017 numbers for Point-MAE in paper mode with class token and head of 15 classes. Not
    mergeable. Not the base at the start. In paper mode predictions depend on batch mates; corrected they do
    not. Stochastic depth is the backbone's, where the release has none in these blocks.

    Mended (mode corrected): rows are those of the own cloud and of its patches, at their real positions, so
    that the second sampling, which starts at learned points, has no use and is left out; what no output uses
    is left out. The bank is optional: `method.provide(bank=, cp_feat=)`; without it the prompts stand alone,
    as in the release, and `bank=False` leaves its adapters out.

    Source: Tang et al., Point-PEFT: Parameter-Efficient Fine-Tuning for 3D Pre-trained Models, AAAI 2024, as
    released.
    """

    config_type: ClassVar[type[AdapterConfig]] = PointPEFTConfig
    config: PointPEFTConfig
    inputs: ClassVar[Mapping[str, str]] = {
        "bank": "(D, S) features of S training clouds",
        "cp_feat": "(B, D) feature of every cloud, by the network that made the bank",
    }
    released_files = MethodFiles("Point-PEFT", r"\.cp_adapter\.", _read_settings)
    official_keys: KeyMap = KeyMap(
        (
            Rule("prompt_cor", "method.corners"),
            Rule("blocks.norm3.", "method.attention.0.norm."),
            Rule("blocks.attn1.", "method.attention.0."),
            Rule("blocks.blocks.*.ad_gate", "layers.blocks.*.gate"),
            Rule("blocks.blocks.*.prompt_embeddings", "layers.blocks.*.prompts"),
            Rule("blocks.blocks.*.cp_adapter.ln1.", "layers.blocks.*.bank_adapter.down."),
            Rule("blocks.blocks.*.cp_adapter.ln2.", "layers.blocks.*.bank_adapter.up."),
            Rule("blocks.blocks.*.adapter.ln1.", "layers.blocks.*.mlp.fc2.adapter.down."),
            Rule("blocks.blocks.*.adapter.ln2.", "layers.blocks.*.mlp.fc2.adapter.up."),
            Rule("blocks.blocks.*.adapter1.ln1.", "layers.blocks.*.adapter.down."),
            Rule("blocks.blocks.*.adapter1.ln2.", "layers.blocks.*.adapter.up."),
            Rule("blocks.blocks.*.out_transform.0.", "layers.blocks.*.norm."),
        )
    )

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__(config)
        self.attention = nn.ModuleList()

    def example_inputs(self, interface: ModelInterface) -> dict[str, Tensor]:
        """Make a bank and the feature of one cloud, without values."""
        dim, like = interface.embed_dim, next(self.parameters())
        return {"bank": like.new_empty(dim, BANK_SIZE), "cp_feat": like.new_empty(1, dim)}

    @torch.no_grad()
    def prior(self, x: Tensor) -> Tensor | None:
        """Return [feature of the cloud, mean of its nearest entries, these entries], (B, 10, D), or None."""
        bank, feature = self.provided("bank", x), self.provided("cp_feat", x)
        if bank is None and feature is None:
            return None
        if not self.config.bank:
            raise UserValueError(
                "point_peft was attached with bank=False, so it takes none; clear_provided()."
            )
        if bank is None or feature is None or len(feature) != len(x) or len(bank) != x.shape[2]:
            raise UserValueError(
                f"point_peft needs bank ({x.shape[2]}, S) and cp_feat ({len(x)}, {x.shape[2]}) together; "
                "provide both for this batch, or call clear_provided()."
            )
        score, columns = (F.normalize(feature, dim=1) @ bank).topk(TOP, dim=1)
        entries = bank.t()[columns]
        mean = (score.softmax(dim=1)[:, :, None] * entries).sum(dim=1)
        return torch.cat([feature[:, None], mean[:, None], entries], dim=1)

    def neighborhoods(self, tokens: Tokens, *, moved: bool) -> Neighborhoods:
        """Find neighbourhoods among the centres, or among those of the second sampling; once a cloud."""
        key = ("point_peft", moved)
        if key not in tokens.memo:
            center = tokens.center.detach()
            compat: ops.Compat = "pointnet2" if self.config.mode == "paper" else "none"
            if moved:
                if tokens.points is None:
                    raise UserValueError(
                        "point_peft in paper mode samples the points of a cloud anew, but this pass started "
                        "behind their grouping; run the whole model, or use mode='corrected'."
                    )
                corners = self.corners.expand(center.shape[0], -1, -1)
                points = torch.cat([corners, tokens.points], dim=1)
                chosen = ops.farthest_point_sample(points.detach(), center.shape[1], compat=compat)
                center = ops.gather_points(points, chosen)
            tokens.memo[key] = Neighborhoods(center, self.config.neighbors, compat)
        found: Neighborhoods = tokens.memo[key]
        return found

    def make_deltas(self, model: nn.Module, interface: ModelInterface) -> dict[str, Delta]:
        """Make what is shared, one delta a block, and one behind every MLP."""
        config, dim, like = self.config, interface.embed_dim, next(model.parameters())
        blocks = self.chosen(interface)
        check_split(model, interface, blocks, config.method)
        check_patches(interface, config.neighbors, f"neighbors={config.neighbors}")
        if config.mode == "paper":
            self.corners = nn.Parameter(nn.init.trunc_normal_(torch.empty(NUM_CORNERS, 3), std=0.02))
        self.attention.append(NeighborAttention(dim, config.num_heads))
        self.to(like.device, like.dtype)
        deltas: dict[str, Delta] = {}
        for index in blocks:
            deltas[interface.blocks[index]] = PointPEFTDelta(self, interface, index)
        for site in find_linears(model, interface, "fc2"):
            deltas[site.path] = BehindMLP(dim, config.rank)
        return {path: delta.to(like.device, like.dtype) for path, delta in deltas.items()}

    def owned_paths(self, model: nn.Module, interface: ModelInterface) -> dict[str, str]:
        """Name what is trained besides: biases of norms and linear layers, and the last norm."""
        paths, why = super().owned_paths(model, interface), "bias of the base"
        for index in range(len(interface.blocks)):
            block = interface.blocks[index]
            names = [*interface.block_norms, *(interface.linears[role] for role in ("proj", "fc1", "fc2"))]
            paths.update({f"{block}.{name}.bias": why for name in names})
        return {**paths, interface.place("norm"): "the last norm"}
