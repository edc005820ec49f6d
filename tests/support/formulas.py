"""Layers written from their formulas: oracles that share no code with the models."""

import torch
import torch.nn.functional as F


class Weights:
    """A state dict, read below a prefix."""

    def __init__(self, state, prefix=""):
        self._state, self._prefix = state, prefix

    def __call__(self, name):
        return Weights(self._state, f"{self._prefix}{name}.")

    def __getitem__(self, name):
        return self._state[self._prefix + name]

    def __contains__(self, name):
        return self._prefix + name in self._state


def linear(w, x):
    y = x @ w["weight"].T
    return y + w["bias"] if "bias" in w else y


def layer_norm(w, x):
    mean = x.mean(-1, keepdim=True)
    var = (x - mean).square().mean(-1, keepdim=True)
    return (x - mean) / (var + 1e-5).sqrt() * w["weight"] + w["bias"]


def mlp(w, x):
    return linear(w("fc2"), F.gelu(linear(w("fc1"), x)))


def attend(q, k, v, heads):
    """Queries (S, D) to keys and values (T, D), head by head."""
    out = []
    for qh, kh, vh in zip(*(part.chunk(heads, -1) for part in (q, k, v)), strict=True):
        out.append((qh @ kh.T / qh.shape[-1] ** 0.5).softmax(-1) @ vh)
    return torch.cat(out, -1)


def self_attention(w, x, heads):
    return linear(w("proj"), attend(*linear(w("qkv"), x).chunk(3, -1), heads))


def block(w, x, heads):
    """Pre-norm transformer block; x already has the position added."""
    x = x + self_attention(w("attn"), layer_norm(w("norm1"), x), heads)
    return x + mlp(w("mlp"), layer_norm(w("norm2"), x))


def contrast_block(w, x, heads):
    """ReCon's block: both branches; residuals start from normalised values."""
    c, v = layer_norm(w("norm1_contrast"), x[:3]), layer_norm(w("norm1"), x[3:])
    kv, cross = linear(w("attn_contrast")("kv"), v), w("attn_contrast")
    read = linear(cross("proj"), attend(linear(cross("q"), c), *kv.chunk(2, -1), heads))
    c, v = c + read, v + self_attention(w("attn"), v, heads)
    c, v = layer_norm(w("norm2_contrast"), c), layer_norm(w("norm2"), v)
    return torch.cat([c + mlp(w("mlp_contrast"), c), v + mlp(w("mlp"), v)])


def two_part_block(w, seen, asked, heads):
    """PCP-MAE's encoder block: visible tokens look at one another, hidden ones at all."""
    a, b = layer_norm(w("norm1"), seen), layer_norm(w("norm1"), asked)
    (qa, ka, va), (qb, kb, vb) = (linear(w("attn")("qkv"), part).chunk(3, -1) for part in (a, b))
    proj = w("attn")("proj")
    seen = seen + linear(proj, attend(qa, ka, va, heads))
    asked = asked + linear(proj, attend(qb, torch.cat([ka, kb]), torch.cat([va, vb]), heads))
    return tuple(part + mlp(w("mlp"), layer_norm(w("norm2"), part)) for part in (seen, asked))


def batch_norm(w, x):
    return (x - w["running_mean"]) / (w["running_var"] + 1e-5).sqrt() * w["weight"] + w["bias"]


def patch_encoder(w, patch):
    """(K, 3) -> (C,), the family's mini-PointNet in evaluation mode."""
    x = linear(w("linear2"), batch_norm(w("norm1"), linear(w("linear1"), patch)).relu())
    x = torch.cat([x.amax(0).expand_as(x), x], -1)
    return linear(w("linear4"), batch_norm(w("norm2"), linear(w("linear3"), x)).relu()).amax(0)


def two_layers(w, x):
    """Linear, GELU, linear: the position embeddings."""
    return linear(w("2"), F.gelu(linear(w("0"), x)))


def chamfer_l2(a, b):
    d = (a[:, None] - b[None]).square().sum(-1)
    return d.amin(1).mean() + d.amin(0).mean()
