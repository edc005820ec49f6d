"""The published networks from torch's plain modules: what our own are measured against.

Nothing is rewritten here: convolutions of size 1 over every point, attention as softmax(q k^T) v, every
global feature copied to every point. Names are the official ones, but for PointGPT's attention, whose fused
projection is a layer here. Cutting into patches is no part of it: both sides are handed the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcl_clora import ops
from pcl_clora.models import get_interface
from pcl_clora.models.config import TransformerConfig


class PlainEncoder(nn.Module):
    """Two stacks of convolutions with a maximum behind each, every one on every point.

    Source: Pang et al., Point-MAE, ECCV 2022, section 3.1.
    """

    def __init__(self, out_dim: int, widths: tuple[int, int, int]) -> None:
        super().__init__()
        w0, w1, w2 = widths
        self.first_conv = nn.Sequential(
            nn.Conv1d(3, w0, 1), nn.BatchNorm1d(w0), nn.ReLU(inplace=True), nn.Conv1d(w0, w1, 1)
        )
        self.second_conv = nn.Sequential(
            nn.Conv1d(2 * w1, w2, 1), nn.BatchNorm1d(w2), nn.ReLU(inplace=True), nn.Conv1d(w2, out_dim, 1)
        )

    def forward(self, neighborhood: Tensor) -> Tensor:
        """(B, G, K, 3) -> (B, G, C)."""
        b, g, k, _ = neighborhood.shape
        x = self.first_conv(neighborhood.reshape(b * g, k, 3).transpose(2, 1))
        whole = x.max(dim=2, keepdim=True)[0]
        x = self.second_conv(torch.cat([whole.expand(-1, -1, k), x], dim=1))
        tokens: Tensor = x.max(dim=2)[0]
        return tokens.reshape(b, g, -1)


class PlainAttention(nn.Module):
    """softmax(q k^T / sqrt(d)) v, written out; causal where asked.

    Source: Vaswani et al., Attention Is All You Need, NeurIPS 2017, section 3.2.
    """

    def __init__(self, dim: int, num_heads: int, *, causal: bool = False) -> None:
        super().__init__()
        self.num_heads, self.causal = num_heads, causal
        self.qkv: nn.Module = nn.Linear(dim, 3 * dim, bias=causal)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        b, t, d = x.shape
        qkv = self.qkv(x).reshape(b, t, 3, self.num_heads, d // self.num_heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        scores = (q @ k.transpose(-2, -1)) * (d // self.num_heads) ** -0.5
        if self.causal:
            blocked = torch.ones(t, t, dtype=torch.bool, device=x.device).triu(1)
            scores = scores.masked_fill(blocked, -torch.inf)
        out: Tensor = self.proj((scores.softmax(dim=-1) @ v).transpose(1, 2).reshape(b, t, d))
        return out


class PlainMlp(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        out: Tensor = self.fc2(self.act(self.fc1(x)))
        return out


class PlainBlock(nn.Module):
    """Point-MAE's block: pre-norm."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = PlainAttention(dim, config.num_heads)
        self.mlp = PlainMlp(dim, int(dim * config.mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        x = x + self.attn(self.norm1(x))
        out: Tensor = x + self.mlp(self.norm2(x))
        return out


class PlainCausalBlock(nn.Module):
    """PointGPT's block: causal, its residuals run on the normalised input."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.ln_1, self.ln_2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = PlainAttention(dim, config.num_heads, causal=True)
        self.mlp = PlainMlp(dim, int(dim * config.mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        x = self.ln_1(x)
        x = x + self.attn(x)
        out: Tensor = x + self.mlp(self.ln_2(x))
        return out


class _Stack(nn.Module):
    """Blocks in a module of their own, as the official names have it."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(PlainBlock(config) for _ in range(config.depth))


def _plain_head(in_features: int, config: TransformerConfig) -> nn.Sequential:
    width, rate = config.head_width, config.head_dropout
    return nn.Sequential(
        nn.Linear(in_features, width),
        nn.BatchNorm1d(width),
        nn.ReLU(inplace=True),
        nn.Dropout(rate),
        nn.Linear(width, width),
        nn.BatchNorm1d(width),
        nn.ReLU(inplace=True),
        nn.Dropout(rate),
        nn.Linear(width, config.num_logits),
    )


class PlainOutput(NamedTuple):
    """What a plain network puts out.

    Attributes:
        logits: (B, num_classes), or (B, N, num_parts).
        generated: (B, G, K, 3), patches that PointGPT's generator predicts; None for other networks.
    """

    logits: Tensor
    generated: Tensor | None = None


class PlainPointMAE(nn.Module):
    """Point-MAE for classification.

    Source: Pang et al., Point-MAE, ECCV 2022, released model. No dropped paths.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.encoder = PlainEncoder(dim, config.encoder_widths)
        self.pos_embed = nn.Sequential(nn.Linear(3, 128), nn.GELU(), nn.Linear(128, dim))
        self.blocks = _Stack(config)
        self.norm = nn.LayerNorm(dim)
        self.cls_token, self.cls_pos = (nn.Parameter(torch.zeros(1, 1, dim)) for _ in range(2))
        self.cls_head_finetune = _plain_head(2 * dim, config)

    def forward(self, groups: ops.PointGroups) -> PlainOutput:
        """Patches -> logits (B, num_classes)."""
        tokens, b = self.encoder(groups.neighborhood), len(groups.center)
        x = torch.cat([self.cls_token.expand(b, -1, -1), tokens], dim=1)
        pos = torch.cat([self.cls_pos.expand(b, -1, -1), self.pos_embed(groups.center)], dim=1)
        for block in self.blocks.blocks:
            x = block(x + pos)
        x = self.norm(x)
        return PlainOutput(self.cls_head_finetune(torch.cat([x[:, 0], x[:, 1:].max(1)[0]], dim=-1)))


class PlainPropagation(nn.Module):
    """Interpolate features to every point, then two convolutions there.

    Source: Qi et al., PointNet++, NeurIPS 2017, section 3.4. The three nearest come from our kernel.
    """

    def __init__(self, in_features: int, widths: tuple[int, int]) -> None:
        super().__init__()
        sizes = (in_features, *widths)
        self.mlp_convs = nn.ModuleList(nn.Conv1d(sizes[i], sizes[i + 1], 1) for i in range(2))
        self.mlp_bns = nn.ModuleList(nn.BatchNorm1d(width) for width in widths)

    def forward(self, points: Tensor, center: Tensor, features: Tensor) -> Tensor:
        """Points (B, N, 3), center (B, G, 3), features (B, C, G) -> (B, C', N)."""
        dist2, idx = ops.three_nn(center, points)
        weight = 1.0 / (dist2 + 1e-8)
        weight = weight / weight.sum(dim=2, keepdim=True)
        rows = torch.arange(len(idx), device=idx.device)[:, None, None]
        carried = (features.transpose(1, 2)[rows, idx] * weight[..., None]).sum(dim=2)
        x = torch.cat([points, carried], dim=-1).transpose(1, 2)
        for conv, norm in zip(self.mlp_convs, self.mlp_bns, strict=True):
            x = F.relu(norm(conv(x)))
        return x


class PlainSegmenter(nn.Module):
    """Point-MAE for part segmentation; puts logits out, not their log-softmax.

    Source: Pang et al., Point-MAE, ECCV 2022, released part segmentation model.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        dim, first, second = config.embed_dim, *config.segmentation_widths
        fetched = len(config.fetched) * dim
        self.fetched, self.num_categories = config.fetched, config.num_categories
        self.encoder = PlainEncoder(dim, config.encoder_widths)
        self.pos_embed = nn.Sequential(nn.Linear(3, 128), nn.GELU(), nn.Linear(128, dim))
        self.blocks = _Stack(config)
        self.norm = nn.LayerNorm(dim)
        self.label_conv = nn.Sequential(
            nn.Conv1d(config.num_categories, config.label_width, 1, bias=False),
            nn.BatchNorm1d(config.label_width),
            nn.LeakyReLU(0.2),
        )
        self.propagation_0 = PlainPropagation(3 + fetched, config.propagation_widths)
        self.convs1 = nn.Conv1d(config.propagation_widths[1] + 2 * fetched + config.label_width, first, 1)
        self.convs2, self.convs3 = nn.Conv1d(first, second, 1), nn.Conv1d(second, config.num_parts, 1)
        self.bns1, self.bns2 = nn.BatchNorm1d(first), nn.BatchNorm1d(second)
        self.dp1 = nn.Dropout(config.head_dropout)

    def forward(self, groups: ops.PointGroups, points: Tensor, category: Tensor) -> PlainOutput:
        """Patches, points (B, N, 3), category (B,) -> logits (B, N, num_parts)."""
        x, pos, outputs = self.encoder(groups.neighborhood), self.pos_embed(groups.center), []
        for number, block in enumerate(self.blocks.blocks):
            x = block(x + pos)
            if number in self.fetched:
                outputs.append(self.norm(x).transpose(-1, -2))
        features = torch.cat(outputs, dim=1)
        code = F.one_hot(category, self.num_categories).to(points.dtype)[..., None]
        shared = [features.max(2, keepdim=True)[0], features.mean(2, keepdim=True), self.label_conv(code)]
        everywhere = [part.expand(-1, -1, points.shape[1]) for part in shared]
        x = torch.cat([self.propagation_0(points, groups.center, features), *everywhere], dim=1)
        x = self.dp1(F.relu(self.bns1(self.convs1(x))))
        return PlainOutput(self.convs3(F.relu(self.bns2(self.convs2(x)))).transpose(1, 2))


def _turns(center: Tensor, dim: int) -> Tensor:
    """(B, G, 3) -> (B, G, D): sine and cosine of 2 pi times each coordinate, in turn, then zeros."""
    count = dim // 3 // 2 * 2
    angle = (center * (2 * math.pi))[..., None].expand(*center.shape, count)
    turns = torch.stack([angle[..., 0::2].sin(), angle[..., 1::2].cos()], dim=-1).flatten(-3)
    return F.pad(turns, (0, dim - turns.shape[-1]))


class _Extractor(nn.Module):
    """PointGPT's transformer, with what stands on it in fine-tuning."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.sos = nn.Parameter(torch.zeros(dim))
        self.layers = nn.ModuleList(PlainCausalBlock(config) for _ in range(config.depth))
        self.ln_f, self.cls_norm = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.cls_head_finetune = _plain_head(2 * dim, config)


class _Generator(nn.Module):
    """PointGPT's generator."""

    def __init__(self, config: TransformerConfig, depth: int) -> None:
        super().__init__()
        dim = config.embed_dim
        self.layers = nn.ModuleList(PlainCausalBlock(config) for _ in range(depth))
        self.ln_f = nn.LayerNorm(dim)
        self.increase_dim = nn.Sequential(nn.Conv1d(dim, 3 * config.group_size, 1))


class PlainPointGPT(nn.Module):
    """PointGPT-S for classification; its generator runs always, as in the released network.

    Source: Chen et al., PointGPT, NeurIPS 2023, released model.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        dim = config.embed_dim
        self.encoder = PlainEncoder(dim, config.encoder_widths)
        self.cls_token, self.cls_pos, self.sos_pos = (nn.Parameter(torch.zeros(1, 1, dim)) for _ in range(3))
        self.blocks = _Extractor(config)
        self.generator_blocks = _Generator(config, config.generator_depth)  # type: ignore[attr-defined]

    def forward(self, groups: ops.PointGroups) -> PlainOutput:
        """Patches in the order of the walk -> logits (B, num_classes) and predicted patches."""
        center, b = groups.center, len(groups.center)
        tokens = self.encoder(groups.neighborhood)
        before = torch.cat([self.blocks.sos[None, None], self.cls_token], dim=1).expand(b, -1, -1)
        place = torch.cat([self.cls_pos, self.sos_pos], dim=1).expand(b, -1, -1)
        x = torch.cat([before, tokens], dim=1)
        pos = torch.cat([place, _turns(center, tokens.shape[-1])], dim=1)
        for block in self.blocks.layers:
            x = block(x + pos)
        x = self.blocks.ln_f(x)
        generated = self._generate(torch.cat([x[:, :1], x[:, 2:-1]], dim=1), center)
        x = self.blocks.cls_norm(x)
        pooled = torch.cat([x[:, 1], x[:, 2:].max(1)[0]], dim=-1)
        return PlainOutput(self.blocks.cls_head_finetune(pooled), generated)

    def _generate(self, x: Tensor, center: Tensor) -> Tensor:
        step = center[:, 1:] - center[:, :-1]
        direction = step / step.norm(dim=-1, keepdim=True)
        pos = _turns(torch.cat([center[:, :1], direction], dim=1), x.shape[-1])
        for block in self.generator_blocks.layers:
            x = block(x + pos)
        x = self.generator_blocks.increase_dim(self.generator_blocks.ln_f(x).transpose(1, 2))
        return x.transpose(1, 2).reshape(*center.shape[:2], -1, 3)


class PlainLoRA(nn.Module):
    """y = W x, plus (alpha / r) B A x on the rows of queries and on those of values.

    Source: Hu et al., LoRA, ICLR 2022, section 4.1, on a fused projection.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float) -> None:
        super().__init__()
        self.base, self.scale = base, alpha / rank
        dim = base.in_features
        self.down_q, self.down_v = (nn.Linear(dim, rank, bias=False) for _ in range(2))
        self.up_q, self.up_v = (nn.Linear(rank, dim, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, 3 D)."""
        q, k, v = self.base(x).chunk(3, dim=-1)
        q = q + self.scale * self.up_q(self.down_q(x))
        v = v + self.scale * self.up_v(self.down_v(x))
        return torch.cat([q, k, v], dim=-1)


def plain_attentions(model: nn.Module) -> Iterator[PlainAttention]:
    """List the attentions of a plain network's transformer in order; a generator has none of them."""
    for name, module in model.named_modules():
        if isinstance(module, PlainAttention) and not name.startswith("generator_blocks."):
            yield module


def make_plain(ours: nn.Module, config: TransformerConfig) -> nn.Module:
    """Make the plain form of one of our networks, with its weights.

    Args:
        ours: Point-MAE, its part segmentation, or PointGPT-S.
        config: its settings.

    Raises:
        KeyError: if a weight is missing on one side.
    """
    if get_interface(ours).takes_category:
        plain: nn.Module = PlainSegmenter(config)
    else:
        plain = PlainPointGPT(config) if hasattr(config, "generator_depth") else PlainPointMAE(config)
    wanted = plain.state_dict()
    found = {_plain_name(name): value for name, value in official_state(ours).items()}
    missing = sorted(wanted.keys() - found.keys())
    if missing:
        raise KeyError(f"No weight of ours is called {', '.join(missing[:5])}.")
    plain.load_state_dict({name: found[name].clone() for name in wanted})
    return plain


def official_state(ours: nn.Module) -> dict[str, Tensor]:
    """Return the weights of one of our networks by official name and in official shape."""
    keys = type(ours).official_keys  # type: ignore[attr-defined]
    state = {}
    for name, value in ours.state_dict().items():
        official = keys.translate(name, to="official")
        if official is not None:
            state[official] = keys.translate_tensor(name, value, to="official")
    return state


def plain_names(ours: nn.Module, parts: tuple[str, ...]) -> set[str]:
    """Name what parts of our interface ("head", "tokens") are called in the plain form."""
    keys = type(ours).official_keys  # type: ignore[attr-defined]
    paths = [path for part in parts for path in get_interface(ours).parts[part]]  # type: ignore[index]
    inside = [
        name
        for name, _ in ours.named_parameters()
        if f"{name}.".startswith(tuple(f"{path}." for path in paths))
    ]
    return {_plain_name(keys.translate(name, to="official")) for name in inside}


def _plain_name(official: str) -> str:
    for theirs, plain in (
        (".attn.in_proj_", ".attn.qkv."),
        (".attn.out_proj.", ".attn.proj."),
        (".mlp.0.", ".mlp.fc1."),
        (".mlp.2.", ".mlp.fc2."),
    ):
        official = official.replace(theirs, plain)
    return official
