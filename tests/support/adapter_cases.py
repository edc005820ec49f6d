"""Tiny backbones and adapter settings that the tests of adapters share."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcl_clora.adapters import AdaptedModel
from pcl_clora.models import create_model
from pcl_clora.models.interface import ModelInterface, Tokens

CLASSES = 5


class Attention(nn.Module):
    def __init__(self, dim: int, bias: bool) -> None:
        super().__init__()
        self.mix_in = nn.Linear(dim, 3 * dim, bias=bias)
        self.mix_out = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.mix_in(x).chunk(3, dim=-1)
        return self.mix_out(F.scaled_dot_product_attention(q, k, v))


class Block(nn.Module):
    def __init__(self, dim: int, bias: bool) -> None:
        super().__init__()
        self.ln1, self.attention = nn.LayerNorm(dim), Attention(dim, bias)
        self.ln2, self.ffn = (
            nn.LayerNorm(dim),
            nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim)),
        )
        self.drop = nn.Dropout(0.1)

    def forward(self, x: Tensor, pos: Tensor, tokens: Tokens) -> Tensor:
        x = x + self.drop(self.attention(self.ln1(x + pos)))
        return x + self.drop(self.ffn(self.ln2(x)))


class PlainTransformer(nn.Module):
    """Patches of 8 points in file order; class token and its position are plain parameters; linear head."""

    def __init__(self, num_classes: int = CLASSES, dim: int = 24, depth: int = 2) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.embed, self.embed_norm = nn.Linear(24, dim), nn.BatchNorm1d(dim)
        self.where = nn.Linear(3, dim)
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.cls_pos = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.layers = nn.ModuleList(Block(dim, bias=True) for _ in range(depth))
        self.ln = nn.LayerNorm(dim)
        self.classifier = self.make_classifier(num_classes)
        self.register_buffer("unit", torch.ones(1))
        self.interface = ModelInterface(
            embed_dim=dim,
            blocks=tuple(f"layers.{index}" for index in range(depth)),
            linears={"qkv": "attention.mix_in", "proj": "attention.mix_out", "fc1": "ffn.0", "fc2": "ffn.2"},
            parts={
                "head": ("classifier",),
                "tokens": ("cls_token", "cls_pos"),
                "patch_embed": ("embed", "embed_norm"),
                "pos_embed": ("where",),
                "norms": ("ln", *(f"layers.{i}.{name}" for i in range(depth) for name in ("ln1", "ln2"))),
            },
        )

    def make_classifier(self, num_classes: int) -> nn.Module:
        return nn.Linear(self.cls_token.shape[-1], num_classes)

    def forward(self, points: Tensor) -> Tensor:
        b = points.shape[0]
        patches = points.reshape(b, -1, 8, 3)
        center = patches.mean(2)
        x = self.embed_norm(self.embed((patches - center[:, :, None]).reshape(-1, 24))).view(
            b, center.shape[1], -1
        )
        pos = torch.cat([self.cls_pos.expand(b, -1, -1), self.where(center)], 1)
        x = torch.cat([self.cls_token.expand(b, -1, -1), x * self.unit], 1)
        tokens = Tokens(x, pos, center, 1)
        for layer in self.layers:
            x = layer(x, pos, tokens)
        return self.classifier(self.ln(x)[:, 0])


class BareTransformer(nn.Module):
    """No prefix tokens, no bias on q, k, v, a head with BatchNorm, no way to make another head."""

    def __init__(self, dim: int = 16, depth: int = 2) -> None:
        super().__init__()
        self.embed = nn.Linear(3, dim)
        self.layers = nn.ModuleList(Block(dim, bias=False) for _ in range(depth))
        self.top = nn.Sequential(nn.Linear(dim, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, CLASSES))
        self.interface = ModelInterface(
            embed_dim=dim,
            blocks=tuple(f"layers.{index}" for index in range(depth)),
            linears={"qkv": "attention.mix_in", "proj": "attention.mix_out", "fc1": "ffn.0"},
            parts={"head": ("top",), "tokens": ()},
        )

    def forward(self, points: Tensor) -> Tensor:
        x = self.embed(points[:, ::8])
        tokens = Tokens(x, torch.zeros_like(x), points[:, ::8], 0)
        for layer in self.layers:
            x = layer(x, tokens.pos, tokens)
        return self.top(x.amax(1))


def make_point_mae(num_classes: int = CLASSES) -> nn.Module:
    return create_model(
        "point_mae",
        num_classes=num_classes,
        embed_dim=48,
        depth=3,
        num_heads=3,
        num_groups=16,
        group_size=8,
        encoder_widths=(16, 32, 64),
    )


def make_pointgpt(num_classes: int = CLASSES) -> nn.Module:
    """Two tokens of which the task owns one, a loss of its own, tensors that nothing runs."""
    return create_model(
        "pointgpt_s",
        num_classes=num_classes,
        embed_dim=24,
        depth=2,
        generator_depth=1,
        num_heads=3,
        num_groups=12,
        group_size=8,
        encoder_widths=(8, 16, 32),
        head_width=32,
    )


def make_recon(num_classes: int = CLASSES) -> nn.Module:
    """Three tokens with a branch of their own beside the patches."""
    return create_model(
        "recon",
        num_classes=num_classes,
        embed_dim=24,
        depth=2,
        num_heads=3,
        num_groups=12,
        group_size=8,
        encoder_widths=(8, 16, 32),
        head_width=32,
    )


BACKBONES = {
    "point_mae": make_point_mae,
    "plain": PlainTransformer,
    "bare": BareTransformer,
    "pointgpt_s": make_pointgpt,
    "recon": make_recon,
}
FEW_SETTINGS = (
    "clora", "lora", "linear_probe", "full",
    "bitfit", "ssf", "dora", "vera", "fact", "adapter", "adapter_houlsby",
    "vpt", "vpt_shallow", "dapt", "clora_geo", "gft", "idpt", "pointgst", "point_peft", "ppt", "pointlora",
    "stag", "arc",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """Settings of a method, and what it promises with them.

    `refused` says where it cannot be had: a place of `adapter_places` by its title, a backbone, or "parts"
    for part segmentation -> what is said. `in_parts` are settings that differ there.
    """

    settings: dict[str, object]
    identity_at_start: bool = True
    mergeable: bool = True
    batch_independent: bool = True
    refused: dict[str, str] = field(default_factory=dict)
    in_parts: dict[str, object] = field(default_factory=dict)


NO_HALVES = {name: "does not run in two steps" for name in ("plain", "bare", "timm")}
NO_FC2 = {"bare": "no layer for role 'fc2'"}
IMAGES = {"timm": "takes images"}
UNOPENED = {**IMAGES, "plain": "does not open", "bare": "does not open"}
ON_HALVES = {**NO_HALVES, **IMAGES}
_CASES: dict[str, dict[str, object] | Case] = {
    "clora": {"method": "clora", "rank": 4, "num_spaces": 3},
    "clora_parallel": {"method": "clora", "rank": 4, "num_spaces": 3, "placement": "parallel"},
    "clora_both_bias": {
        "method": "clora", "rank": 2, "num_spaces": 2, "placement": "both", "bias": True, "scale": 0.5,
        "parallel_targets": ["q", "k", "v", "proj"], "targets": ["qkv", "fc1", "proj"],
    },
    "clora_per_role_diagonal": {
        "method": "clora", "rank": 4, "num_spaces": 2, "sharing": "per_role", "core": "diagonal",
        "init": "up_zero", "freeze": {"norm_stats": "track"},
    },
    "clora_sharp": {"method": "clora", "rank": 4, "num_spaces": 2, "sharing": "all", "train": ["head"]},
    "clora_arc": {"method": "clora", "num_spaces": 1, "core": "diagonal", "tied": True, "bias": True},
    "clora_unshared": {
        "method": "clora", "rank": 4, "num_spaces": 1, "sharing": "none", "core": "identity",
        "init": "up_zero", "placement": "both",
    },
    "clora_full_core": {
        "method": "clora", "rank": 4, "num_spaces": 2, "core": "full", "sade": {"weight": 0}, "dropout": 0.2,
    },
    "lora": {"method": "lora", "rank": 4},
    "lora_everywhere": {
        "method": "lora", "rank": 2, "alpha": 3.0, "targets": ["qkv", "proj", "fc1"], "dropout": 0.1,
        "train": [],
    },
    "linear_probe": {"method": "linear_probe"},
    "full": {"method": "full"},
    "clora_last_block": {"method": "clora", "rank": 4, "num_spaces": 3, "blocks": [-1]},
    "bitfit": {"method": "bitfit"},
    "bitfit_everything": Case(
        {"method": "bitfit", "new_qkv_bias": True, "embed": True},
        refused=dict.fromkeys(("plain", "pointgpt_s", "timm"), "have biases, which bitfit trains"),
    ),
    "lora_options": {
        "method": "lora", "rank": 4, "rank_pattern": {"v": 2, "blocks.1": 3, "blocks.1.q": 6},
        "rank_stabilized": True,
    },
    "lora_pissa": {"method": "lora", "rank": 4, "init": "pissa", "targets": ["q", "fc1"], "dropout": 0.1},
    "dora": {"method": "dora", "rank": 4},
    "dora_everywhere": {
        "method": "dora", "rank": 3, "alpha": 5, "targets": ["qkv", "proj", "fc1"],
        "rank_pattern": {"fc1": 2}, "dropout": 0.1,
    },
    "vera": {"method": "vera", "rank": 32},
    "fact": Case({"method": "fact", "rank": 3}, refused=NO_FC2),
    "fact_some": {
        "method": "fact", "rank": 3, "targets": ["proj", "v", "fc1"], "scale": 0.5, "blocks": [-1],
        "dropout": 0,
    },
    "fact_tk": Case({"method": "fact", "form": "tk", "rank": 3}, refused=NO_FC2),
    "arc": {"method": "arc", "rank": 5},
    "vera_widths": {"method": "vera", "rank": 16, "targets": ["qkv", "fc1"], "seed": 3, "dropout": 0.1},
    "adapter": Case({"method": "adapter", "bottleneck": 6}, mergeable=False, refused=NO_HALVES),
    "adapter_houlsby": Case(
        {"method": "adapter", "form": "houlsby", "bottleneck": 6}, mergeable=False, refused=NO_FC2
    ),
    "adapter_pfeiffer": Case(
        {"method": "adapter", "form": "pfeiffer", "bottleneck": 6}, mergeable=False, refused=NO_FC2
    ),
    "ssf": {"method": "ssf"},
    "ssf_paper": Case(
        {"method": "ssf", "mode": "paper", "targets": ["qkv", "fc1"], "blocks": [1]}, identity_at_start=False
    ),
    "ssf_tokens": Case(
        {"method": "ssf", "tokens": True}, mergeable=False, refused={"bare": "names no patch encoder"}
    ),
    "vpt": Case(
        {"method": "vpt", "num_prompts": 3}, identity_at_start=False, mergeable=False, refused=IMAGES
    ),
    "vpt_shallow": Case(
        {"method": "vpt", "num_prompts": 3, "depth": "shallow"}, identity_at_start=False, mergeable=False,
        refused=IMAGES,
    ),
    "dapt": Case(
        {"method": "dapt", "rank": 4}, identity_at_start=False, mergeable=False, refused=UNOPENED
    ),
    "clora_geo": Case(  # not the last block: the head of "plain" sees no patch, so nothing there would learn
        {"method": "clora_geo", "rank": 4, "num_spaces": 3, "neighbors": 4, "geo_blocks": [0]},
        mergeable=False, refused=IMAGES,
    ),
    "clora_geo_behind": Case(
        {
            "method": "clora_geo", "rank": 4, "num_spaces": 2, "neighbors": 3, "place": "behind",
            "pooling": "mean", "own_spaces": True, "geo_blocks": [0],
        },
        mergeable=False, refused=IMAGES,
    ),
    "gft": Case(
        {
            "method": "gft", "num_prompts": 3, "cross_blocks": [0, 1], "width": 4, "num_heads": 2,
            "neighbors": 4, "edge_layers": 2, "edge_width": 6, "graph_width": 8,
        },
        identity_at_start=False, mergeable=False,
        refused={**UNOPENED, "point_bert_parts": "does not open"},
    ),
    "idpt": Case(
        {"method": "idpt", "neighbors": 4}, identity_at_start=False, mergeable=False,
        refused={**UNOPENED, "point_bert_parts": "does not open"},
    ),
    "pointgst": Case(
        {"method": "pointgst", "rank": 4, "local": 4}, mergeable=False, refused=ON_HALVES
    ),
    "point_peft": Case(
        {
            "method": "point_peft", "bank": False, "rank": 3, "prompt_blocks": 1, "neighbors": 3,
            "num_heads": 3,
        },
        identity_at_start=False, mergeable=False, refused=ON_HALVES,
    ),
    "ppt": Case(
        {"method": "ppt", "width": 6, "num_extra": 10, "extra_size": 6}, identity_at_start=False,
        mergeable=False, refused={**ON_HALVES, "point_bert_parts": "does not open"},
        in_parts={"num_extra": 0},
    ),
    "pointlora": Case(
        {
            "method": "pointlora", "rank": 2, "width": 6, "keep": [4, 2], "num_second": 8, "second_size": 12,
        },
        identity_at_start=False, mergeable=False,
        refused={**IMAGES, "plain": "does not name", "bare": "does not name"},
    ),
    "stag": Case(
        {"method": "stag", "rank": 4, "per_down": 2, "start": 1, "per_graph": 1, "neighbors": 4},
        identity_at_start=False, mergeable=False,
        refused={**UNOPENED, "parts": "offered for classification"},
    ),
}  # fmt: skip
CASES = {name: case if isinstance(case, Case) else Case(case) for name, case in _CASES.items()}
SETTINGS = {name: case.settings for name, case in CASES.items()}

ON_PLAIN = [name for name, case in CASES.items() if "plain" not in case.refused]


def full_size_without_values() -> nn.Module:
    """Point-MAE as published, on the meta device, for counting."""
    with torch.device("meta"):
        return create_model("point_mae", num_classes=15)


def make_backbone(name: str, seed: int = 0) -> nn.Module:
    """A backbone in evaluation mode whose BatchNorm statistics are not the ones of a fresh layer."""
    torch.manual_seed(seed)
    model = BACKBONES[name]()
    model.train()
    with torch.no_grad():
        model(make_points(8, seed=seed + 1))
    return model.eval()


def make_points(count: int = 4, seed: int = 0) -> Tensor:
    """(count, 128, 3) points, uniform in a box."""
    return torch.rand(count, 128, 3, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def changed_names(model: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}


def train_steps(model: AdaptedModel, steps: int = 3, lr: float = 1e-2) -> None:
    """Real optimiser steps; weight decay so that a parameter without gradient moves too."""
    torch.manual_seed(0)
    like = next(model.parameters())
    was_training = model.training
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, weight_decay=0.1)
    for step in range(steps):
        points = make_points(8, seed=step).to(like)
        labels = torch.arange(8, device=like.device) % (model.num_classes or CLASSES)
        loss = F.cross_entropy(model(points), labels) + sum(model.extra_losses().values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.train(was_training)


@torch.no_grad()
def shake(model: AdaptedModel, size: float = 0.1, seed: int = 3) -> AdaptedModel:
    """Move every trained parameter of the active adapter by noise, as training would, but cheaper."""
    generator, plan = torch.Generator().manual_seed(seed), model.plan
    for name, parameter in model.named_parameters():
        if name in plan:
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter += size * noise.to(parameter.device)
    return model
