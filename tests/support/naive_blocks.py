"""Point-MAE's pieces written out, in float64, for naive forms of methods that change its sequence."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pcl_clora.adapters import AdaptedModel, attach_adapter
from pcl_clora.adapters.base import TunerLayer
from tests.support import adapter_cases as cases


def shaken(settings: dict[str, object], backbone: str = "point_mae") -> tuple[AdaptedModel, Tensor]:
    """An adapted model in float64 whose trained tensors are no longer those of the start, and clouds."""
    model = cases.shake(attach_adapter(cases.make_backbone(backbone), settings)).double()
    return model, cases.make_points(3).double()


def delta(model: AdaptedModel, path: str):
    """What the active adapter changes at a path of the backbone."""
    layer = model.base
    for step in path.split("."):
        layer = getattr(layer.base_layer if isinstance(layer, TunerLayer) else layer, step)
    assert isinstance(layer, TunerLayer)
    return layer.deltas["default"]


def plain(layer):
    """The layer underneath."""
    return layer.base_layer if isinstance(layer, TunerLayer) else layer


def norm(layer, x: Tensor) -> Tensor:
    """LayerNorm written out."""
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
    return (x - mean) / (variance + layer.eps).sqrt() * layer.weight + layer.bias


def attention(block, x: Tensor, after_qkv=lambda y: y) -> Tensor:
    """Multi-head self-attention of one cloud (T, D), head by head, up to the output projection."""
    attn = plain(block).attn
    q, k, v = after_qkv(x @ plain(attn.qkv).weight.t()).chunk(3, dim=-1)
    outs, width = [], q.shape[-1] // attn.num_heads
    for head in range(attn.num_heads):
        cols = slice(head * width, (head + 1) * width)
        outs.append(torch.softmax(q[:, cols] @ k[:, cols].t() / width**0.5, dim=-1) @ v[:, cols])
    proj = plain(attn.proj)
    return torch.cat(outs, dim=-1) @ proj.weight.t() + proj.bias


def mlp(block, x: Tensor) -> Tensor:
    """The MLP of a block."""
    fc1, fc2 = plain(plain(block).mlp.fc1), plain(plain(block).mlp.fc2)
    return F.gelu(x @ fc1.weight.t() + fc1.bias) @ fc2.weight.t() + fc2.bias


def run(block, x: Tensor) -> Tensor:
    """A whole pre-norm block of one cloud (T, D)."""
    x = x + attention(block, norm(plain(block).norm1, x))
    return x + mlp(block, norm(plain(block).norm2, x))


def batch_norm(layer, x):
    """BatchNorm in evaluation mode."""
    return (x - layer.running_mean) / (layer.running_var + layer.eps).sqrt() * layer.weight + layer.bias
