"""The layers that all backbones of the family share: patch encoder, attention, MLP, block, prefix tokens."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcl_clora.errors import UserValueError
from pcl_clora.models.interface import Tokens
from pcl_clora.models.layers.maximum import max_of_linear, max_over_group, max_over_tokens
from pcl_clora.models.layers.prepared import Prepared
from pcl_clora.models.layers.product import Affine, Linear
from pcl_clora.models.published import Rewritten

MATERIALISED = 512  # tokens whose table of likenesses is small enough to be written out
CHUNK = 32  # patches that run through the patch encoder together, where that is free


def pool_max_mean(x: Tensor) -> Tensor:
    """Describe a sequence by the maximum beside the mean of its tokens: (B, T, D) -> (B, 2 D)."""
    return torch.cat([max_over_tokens(x), x.mean(1)], dim=1)


def plus(x: Tensor, extra: Tensor | None) -> Tensor:
    """Add what there is to add."""
    return x if extra is None else x + extra


class DropPath(nn.Module):
    """Drop a whole residual branch for a sample, and scale what is kept (stochastic depth).

    Args:
        rate: probability of dropping, in [0, 1).

    Source: Huang et al., Deep Networks with Stochastic Depth, ECCV 2016.
    """

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """(B, ...) -> (B, ...); the identity in evaluation mode."""
        if self.rate == 0.0 or not self.training:
            return x
        keep = 1.0 - self.rate
        mask = torch.empty((x.shape[0],) + (1,) * (x.dim() - 1), dtype=x.dtype, device=x.device)
        return x * mask.bernoulli_(keep).div_(keep)

    def extra_repr(self) -> str:
        """Show the rate in the model's printout."""
        return f"rate={self.rate}"


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Mix values by the likeness of queries and keys.

    In bfloat16 on a CPU, without a gradient, torch's fused kernel takes twice as long as two products do.

    Args:
        q: (B, H, S, C).
        k: (B, H, T, C).
        v: (B, H, T, C).
        mask: (S, T), True where a row looks at a column.

    Returns:
        (B, S, H C).
    """
    b, h, s, c = q.shape
    gradient = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    plain = q.is_cpu and q.dtype == torch.bfloat16 and mask is None and not gradient
    if plain and not torch.compiler.is_compiling() and k.shape[2] <= MATERIALISED:
        rows, columns, values = (x.reshape(b * h, -1, c) for x in (q, k, v))
        likeness = torch.baddbmm(
            q.new_empty(1, 1, 1), rows, columns.transpose(1, 2), beta=0, alpha=1 / math.sqrt(c)
        )
        out = torch.bmm(likeness.softmax(-1), values).view(b, h, s, c)
    else:
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return out.transpose(1, 2).reshape(b, s, h * c)


class Attention(nn.Module):
    """Multi-head self-attention with one fused projection, without bias on q, k, v."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = Linear(dim, 3 * dim, bias=False)
        self.proj = Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D); mask (T, T) is True where the row's token may look at the column's."""
        b, t, d = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.num_heads, d // self.num_heads).permute(2, 0, 3, 1, 4)
        result: Tensor = self.proj(attend(q, k, v, mask))
        return result


class CrossAttention(nn.Module):
    """Multi-head attention of some tokens to others, without bias on q, k, v."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q = Linear(dim, dim, bias=False)
        self.kv = Linear(dim, 2 * dim, bias=False)
        self.proj = Linear(dim, dim)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """Queries from x (B, S, D), keys and values from context (B, T, D) -> (B, S, D)."""
        b, s, d = x.shape
        width = d // self.num_heads
        q = self.q(x).view(b, s, self.num_heads, width).transpose(1, 2)
        k, v = self.kv(context).view(b, -1, 2, self.num_heads, width).permute(2, 0, 3, 1, 4)
        result: Tensor = self.proj(attend(q, k, v))
        return result


def activated(layer: nn.Module, act: nn.Module, x: Tensor) -> Tensor:
    """Compute act(layer(x)), with one operator where there is one for both."""
    if getattr(layer, "fuses", False) and type(act) is nn.GELU and act.approximate == "none":
        return cast(Tensor, layer(x, "gelu"))
    return cast(Tensor, act(layer(x)))


class Mlp(nn.Module):
    """Two linear layers with an exact (erf) GELU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = Linear(dim, hidden)
        self.act = nn.GELU()
        self.fc2 = Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, D)."""
        result: Tensor = self.fc2(activated(self.fc1, self.act, x))
        return result


class Block(nn.Module):
    """Pre-norm transformer block whose input is x + pos: Point-MAE adds the position before every block."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, pos: Tensor, tokens: Tokens) -> Tensor:
        """Transform the tokens once.

        Args:
            x: (B, T, D) features.
            pos: (B, T, D) positions.
            tokens: the sequence as it entered the first block: who may look at whom, and what methods need
                besides (centres, prefix length).

        Returns:
            (B, T, D).
        """
        return self.feed(self.attend(x + pos, tokens))

    def attend(self, x: Tensor, tokens: Tokens) -> Tensor:
        """First half: (B, T, D) with positions -> (B, T, D)."""
        result: Tensor = x + self.drop_path(self.attn(self.norm1(x), tokens.attn_mask))
        return result

    def feed(self, x: Tensor, extra: Tensor | None = None) -> Tensor:
        """Second half: (B, T, D) -> (B, T, D); extra is added to the MLP's output."""
        result: Tensor = x + self.drop_path(plus(self.mlp(self.norm2(x)), extra))
        return result


class PrefixTokens(nn.Module):
    """Learned tokens that stand before the patch tokens, with learned positions (the class token).

    Args:
        count: number of tokens P.
        dim: width D of a token.
    """

    def __init__(self, count: int, dim: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.empty(1, count, dim))
        self.pos = nn.Parameter(torch.empty(1, count, dim))
        nn.init.trunc_normal_(self.token, std=0.02)
        nn.init.trunc_normal_(self.pos, std=0.02)

    def forward(self, batch_size: int) -> tuple[Tensor, Tensor]:
        """Return tokens and positions, each (B, P, D), as views."""
        return self.token.expand(batch_size, -1, -1), self.pos.expand(batch_size, -1, -1)


class NoPrefix(nn.Module):
    """Stands where a network has no learned tokens before the patches."""

    empty: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("empty", torch.empty(1, 0, dim), persistent=False)

    def forward(self, batch_size: int) -> tuple[Tensor, Tensor]:
        """Return no tokens and no positions, each (B, 0, D)."""
        empty = self.empty.expand(batch_size, -1, -1)
        return empty, empty


class PatchEncoder(Rewritten, nn.Module):
    """Embed every patch of K centred points into one vector (the family's mini-PointNet), computed over rows.

    Three exact rewrites make it cheaper than the published form, which runs under `published_form`:

    * points are rows of a matrix, so that every 1x1 convolution is one matrix product;
    * the global half of the concatenated feature is constant within a patch, so that its share of `linear3`
      is computed once a patch (4.24 instead of 4.76 G MACs for Point-MAE at 2,048 points);
    * in evaluation mode both BatchNorms are folded into the linear layer before them, once for given weights.

    Where nothing here is trained, a few patches at a time run through all layers, so that what lies between
    them stays in the processor's cache, and memory does not grow with the points.

    Args:
        out_dim: width of the result.
        widths: hidden widths (W0, W1, W2); (128, 256, 512) in all published models. W1 is doubled by
            concatenation.
        fold: fold BatchNorm in evaluation mode.
        chunk: patches at a time, at least 1.

    Source: Pang et al., Point-MAE, ECCV 2022, section 3.1; the rewrites are ours.
    """

    def __init__(
        self, out_dim: int, widths: Sequence[int] = (128, 256, 512), *, fold: bool = True, chunk: int = CHUNK
    ) -> None:
        super().__init__()
        if chunk < 1:
            raise UserValueError(f"chunk={chunk} patches at a time are none; give 1 or more.")
        w0, w1, w2 = widths
        self.linear1 = Linear(3, w0)
        self.norm1 = nn.BatchNorm1d(w0)
        self.linear2 = Linear(w0, w1)
        self.linear3 = Linear(2 * w1, w2)
        self.norm2 = nn.BatchNorm1d(w2)
        self.linear4 = Linear(w2, out_dim)
        self.fold, self.chunk = fold, chunk

    def forward(self, neighborhood: Tensor) -> Tensor:
        """Embed patches.

        Args:
            neighborhood: (B, G, K, 3) points minus their patch centre.

        Returns:
            (B, G, C), invariant to the order of the K points.
        """
        b, g, k, _ = neighborhood.shape
        rows = neighborhood.reshape(b * g * k, 3)
        if self.published:
            tokens = self._published_rows(rows, k)
        elif self._in_chunks(rows):
            pieces = torch.split(rows, self.chunk * k) if len(rows) else (rows,)
            tokens = torch.cat([self._rows(piece, k) for piece in pieces])
        else:
            tokens = self._rows(rows, k)
        return tokens.view(b, g, -1)

    def _in_chunks(self, rows: Tensor) -> bool:
        """Whether patches do not depend on one another, and no gradient is wanted."""
        if torch.compiler.is_compiling() or not rows.is_cpu or not self._folds():
            return False
        trains = rows.requires_grad or any(parameter.requires_grad for parameter in self.parameters())
        return not (trains and torch.is_grad_enabled())

    def _rows(self, rows: Tensor, k: int) -> Tensor:
        x = self.linear2(self._linear_norm_relu(rows, self.linear1, self.norm1))
        width = x.shape[1]
        norm = self.norm2 if self._folds() else None
        of_pooled, of_own = affine_parts(self.linear3, norm, (width, width))
        of_patches = of_own(x.view(-1, k, width))  # no view, whose edit in place would copy gradients
        x = of_patches.add_(of_pooled(max_over_group(x, k))[:, None]).flatten(0, 1)
        if norm is None:
            x = self.norm2(x)
        return max_of_linear(self.linear4, F.relu(x, inplace=True), k)

    def _published_rows(self, rows: Tensor, k: int) -> Tensor:
        x = self.linear2(F.relu(self.norm1(self.linear1(rows))))
        pooled = max_over_group(x, k).repeat_interleave(k, dim=0)
        x = self.linear3(torch.cat([pooled, x], dim=1))
        return max_over_group(self.linear4(F.relu(self.norm2(x))), k)

    def _folds(self) -> bool:
        return self.fold and not self.norm1.training and not self.norm2.training

    def _linear_norm_relu(self, x: Tensor, linear: Linear, norm: nn.BatchNorm1d) -> Tensor:
        if not self._folds():
            return F.relu(norm(linear(x)), inplace=True)
        return affine_parts(linear, norm)[0](x, "relu")


def affine_parts(
    linear: Linear, norm: nn.BatchNorm1d | None = None, sizes: Sequence[int] = (), biased: int = 0
) -> tuple[Affine, ...]:
    """Cut a linear layer by its input into parts whose results add up to that of the layer.

    Args:
        linear: the layer.
        norm: folded into it, in evaluation mode; kept where no gradient is wanted.
        sizes: width of every part; () for one.
        biased: number of the part that gets the bias.
    """

    def make(*, keeps: bool) -> tuple[Affine, ...]:
        weight, bias = (linear.weight, linear.bias) if norm is None else folded_linear(linear, norm)
        cut = torch.split(weight, list(sizes), dim=1) if sizes else (weight,)
        return tuple(
            Affine(part, bias if number == biased else None, Prepared() if keeps else None)
            for number, part in enumerate(cut)
        )

    tensors = [*linear.parameters(), *(() if norm is None else (*norm.parameters(), *norm.buffers()))]
    trains = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    if trains or norm is None or torch.compiler.is_compiling():
        return make(keeps=False)
    name = f"folded {id(norm)} {sizes} {biased}"
    return linear.prepared.get(name, tuple(tensors), lambda: make(keeps=True))


def folded_linear(linear: nn.Linear, norm: nn.BatchNorm1d) -> tuple[Tensor, Tensor]:
    """Return weight and bias of `norm(linear(x))` in evaluation mode as one linear layer."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight * torch.rsqrt(norm.running_var + norm.eps)
    return linear.weight * scale[:, None], (linear.bias - norm.running_mean) * scale + norm.bias
