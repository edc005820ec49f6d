"""What only PointGPT has: the order of its patches, its positions, causal blocks, the generator."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcl_clora.models.interface import Tokens
from pcl_clora.models.layers.masked_autoencoder import chamfer_loss
from pcl_clora.models.layers.product import Linear
from pcl_clora.models.layers.transformer import CHUNK, Attention, Block, PatchEncoder


@torch.no_grad()
def walk_order(center: Tensor) -> Tensor:
    """Put centres into the order of a greedy walk: always on to the nearest centre that is not visited yet.

    Squared distances are sums of squared differences in the dtype of the centres, and ties go to the lowest
    index, so every device gets the same walk. The released code compares distances from the expanded formula
    |a|^2 - 2ab + |b|^2, whose relative error of about 1e-5 can turn the walk where two centres are that
    equally near; from there on the patches come in another order. Such clouds cannot be matched bit for bit.

    All clouds walk at once, in G - 1 steps of four small kernels.

    Args:
        center: (B, G, 3), finite, any unit.

    Returns:
        (B, G), int64, indices into G; the walk starts at 0.

    Source: Chen et al., PointGPT, NeurIPS 2023, section 3.1, as released ("simplified Morton" order).
    """
    b, g, _ = center.shape
    dist2 = _squared_distances(center).view(b * g, g)
    first = torch.arange(b, device=center.device) * g
    visited = dist2.new_zeros(b, g)
    at, steps = first, [first]
    for _ in range(g - 1):
        visited.view(-1).index_fill_(0, at, torch.inf)
        at = (dist2.index_select(0, at) + visited).argmin(dim=1) + first
        steps.append(at)
    return torch.stack(steps, dim=1) - first[:, None]


def _squared_distances(center: Tensor) -> Tensor:
    """(B, G, 3) -> (B, G, G), one axis after another, so that no kernel can fuse product and sum.

    What overflows is cut off below infinity, which marks the centres that have been visited.
    """
    x, y, z = ((axis[:, :, None] - axis[:, None, :]).square_() for axis in center.unbind(dim=-1))
    return x.add_(y).add_(z).clamp_max_(torch.finfo(center.dtype).max)


def walk_directions(center: Tensor) -> Tensor:
    """Say from where and in which direction a walk goes: the first centre, then unit steps.

    Args:
        center: (B, G, 3) in the order of the walk.

    Returns:
        (B, G, 3). A step between two equal centres has no direction; it is 0 here and NaN in the released
        code.

    Source: Chen et al., PointGPT, NeurIPS 2023, section 3.2, as released.
    """
    step = center[:, 1:] - center[:, :-1]
    length = step.norm(dim=-1, keepdim=True)
    return torch.cat([center[:, :1], step / length.clamp_min(torch.finfo(length.dtype).tiny)], dim=1)


class TurnEmbedding(nn.Module):
    """Positions without parameters: sine and cosine of 2 pi times each coordinate, repeated.

    The released formula divides the angle by temperature^(...) with the temperature 1, so that all
    frequencies are the same and an embedding has six different numbers.

    Args:
        dim: D, width of a token; what 3 times an even number leaves over is filled with zeros.

    Source: Chen et al., PointGPT, NeurIPS 2023, section 3.1, as released.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, center: Tensor) -> Tensor:
        """(B, G, 3) -> (B, G, D): sin x, cos x, sin x, ..., then y, then z, then zeros."""
        angle = center * (2 * math.pi)
        pairs = torch.stack([angle.sin(), angle.cos()], dim=-1)
        repeats = self.dim // 3 // 2
        features = pairs.unsqueeze(-2).expand(*pairs.shape[:-1], repeats, 2).flatten(-3)
        return F.pad(features, (0, self.dim - features.shape[-1]))


class CausalAttention(Attention):
    """Self-attention in which a token sees itself and what stands before it, with bias on q, k, v."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__(dim, num_heads)
        self.qkv = Linear(dim, 3 * dim)
        nn.init.xavier_uniform_(self.qkv.weight)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.proj.bias)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(B, T, D) -> (B, T, D); a mask (T, T), True where the row sees the column, replaces the order."""
        b, t, d = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.num_heads, d // self.num_heads).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        result: Tensor = self.proj(out.transpose(1, 2).reshape(b, t, d))
        return result


class CausalBlock(Block):
    """Causal block whose residuals run on the normalised input, as released: no plain pre-norm block."""

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, drop_path: float) -> None:
        super().__init__(dim, num_heads, mlp_ratio, drop_path)
        self.attn = CausalAttention(dim, num_heads)

    def attend(self, x: Tensor, tokens: Tokens) -> Tensor:
        """First half: (B, T, D) with positions -> (B, T, D).

        Source: Chen et al., PointGPT, NeurIPS 2023, released blocks.
        """
        x = self.norm1(x)
        result: Tensor = x + self.drop_path(self.attn(x, tokens.attn_mask))
        return result


class StartTokens(nn.Module):
    """What stands before the patches: the start token, and in classification a class token behind it.

    As released, the class token's position is added to the start token and the start token's position to the
    class token.

    Args:
        dim: width D of a token.
        with_class: have a class token.
    """

    def __init__(self, dim: int, *, with_class: bool = True) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.empty(dim))
        self.start_pos = nn.Parameter(torch.zeros(1, 1, dim))
        nn.init.normal_(self.start)
        self.with_class = with_class
        if with_class:
            self.token = nn.Parameter(torch.empty(1, 1, dim))
            self.pos = nn.Parameter(torch.empty(1, 1, dim))
            nn.init.trunc_normal_(self.token, std=0.02)
            nn.init.trunc_normal_(self.pos, std=0.02)

    def forward(self, batch_size: int) -> tuple[Tensor, Tensor]:
        """Return tokens and positions, each (B, P, D), P = 2 with a class token and 1 without."""
        token: Tensor = self.start[None, None]
        pos: Tensor = self.start_pos
        if self.with_class:
            token, pos = torch.cat([token, self.token], dim=1), torch.cat([self.pos, pos], dim=1)
        return token.expand(batch_size, -1, -1), pos.expand(batch_size, -1, -1)


class Generator(nn.Module):
    """Predicts the points of every patch from the feature of the patch before it.

    The network runs the blocks, so that gradient checkpointing is decided in one place; `decode` does the
    rest.

    Args:
        dim: width D of a token.
        depth: number of blocks.
        num_heads: attention heads.
        mlp_ratio: hidden width of a block's MLP / dim.
        group_size: K, points a patch.

    Attributes:
        start: a start token that the released network has and never uses; it is kept for the files.
    """

    def __init__(self, dim: int, depth: int, num_heads: int, mlp_ratio: float, group_size: int) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.empty(dim))
        nn.init.normal_(self.start)
        self.blocks = nn.ModuleList(CausalBlock(dim, num_heads, mlp_ratio, 0.0) for _ in range(depth))
        self.norm = nn.LayerNorm(dim)
        self.increase_dim = Linear(dim, 3 * group_size)

    def decode(self, x: Tensor) -> Tensor:
        """Turn what the last block puts out into points: (B, G, D) -> (B, G, K, 3)."""
        return torch.unflatten(self.increase_dim(self.norm(x)), -1, (-1, 3))


def generation_loss(predicted: Tensor, target: Tensor) -> Tensor:
    """Measure how far generated patches are from the true ones: chamfer L1 + chamfer L2.

    Args:
        predicted: (B, G, K, 3), any floating dtype; the loss is computed in float32 at least.
        target: (B, G, K, 3).

    Returns:
        (), the mean over all patches; NaN where a prediction is not finite.

    Source: Chen et al., PointGPT, NeurIPS 2023, section 3.3.
    """
    dtype = torch.promote_types(predicted.dtype, torch.float32)
    points = predicted.to(dtype).flatten(0, 1)
    loss = chamfer_loss(torch.nan_to_num(points), target.to(dtype).flatten(0, 1), "chamfer_l1_l2")
    return loss + (points.detach() * 0).sum()


class LargePatchEncoder(PatchEncoder):
    """The patch encoder of PointGPT-B and -L: the shared one behind one more hidden layer.

    Args:
        out_dim: width of the result.
        widths: hidden widths (W0, W1, W2, W3); (256, 512, 1024, 2048) as published. W2 is doubled by
            concatenation.
        fold: fold BatchNorm in evaluation mode.
        chunk: patches at a time, see `PatchEncoder`.

    Source: Chen et al., PointGPT, NeurIPS 2023, released models B and L.
    """

    def __init__(
        self, out_dim: int, widths: tuple[int, int, int, int], *, fold: bool = True, chunk: int = CHUNK
    ) -> None:
        super().__init__(out_dim, widths[1:], fold=fold, chunk=chunk)
        self.linear0 = Linear(3, widths[0])
        self.norm0 = nn.BatchNorm1d(widths[0])
        self.linear1 = Linear(widths[0], widths[1])

    def _rows(self, rows: Tensor, k: int) -> Tensor:
        return super()._rows(self._linear_norm_relu(rows, self.linear0, self.norm0), k)

    def _published_rows(self, rows: Tensor, k: int) -> Tensor:
        return super()._published_rows(F.relu(self.norm0(self.linear0(rows))), k)

    def _folds(self) -> bool:
        return super()._folds() and not self.norm0.training
