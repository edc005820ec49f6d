"""Attention whose layers are called one after the other, in place of torch's, which reads their weights."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcl_clora.errors import UserValueError


class OpenAttention(nn.Module):
    """`nn.MultiheadAttention` for self-attention, with the fused layer `qkv` and the layer `proj`.

    It is called as torch's module is, and gives the same to rounding. The tensors are those of the module
    that it stands for; the state dict names them qkv.* and proj.*.

    Args:
        torch_attention: the module.

    Raises:
        ValueError: if it has keys or values of another width, biases of keys and values, or a zero token.

    Source: Vaswani et al., Attention Is All You Need, NeurIPS 2017, section 3.2.
    """

    in_proj_bias = None  # tells nn.TransformerEncoderLayer that its kernel over the bare weights is no way
    in_proj_weight = None
    _qkv_same_embed_dim = True

    def __init__(self, torch_attention: nn.MultiheadAttention) -> None:
        super().__init__()
        if (
            not torch_attention._qkv_same_embed_dim
            or torch_attention.bias_k is not None
            or torch_attention.add_zero_attn
        ):
            raise UserValueError(
                "This nn.MultiheadAttention has keys or values of another width, biases of its keys, or a "
                "zero token (kdim, vdim, add_bias_kv, add_zero_attn), for which there is no equal here."
            )
        dim, weight = torch_attention.embed_dim, torch_attention.in_proj_weight
        self.embed_dim, self.num_heads = dim, torch_attention.num_heads
        self.batch_first, self.dropout = torch_attention.batch_first, torch_attention.dropout
        has_bias = torch_attention.in_proj_bias is not None
        with torch.device("meta"):
            self.qkv = nn.Linear(dim, 3 * dim, bias=has_bias)
            self.proj = nn.Linear(dim, dim, bias=torch_attention.out_proj.bias is not None)
        self.qkv.weight, self.proj.weight = weight, torch_attention.out_proj.weight
        if has_bias:
            self.qkv.bias = torch_attention.in_proj_bias
        if self.proj.bias is not None:
            self.proj.bias = torch_attention.out_proj.bias
        self.train(torch_attention.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Run self-attention.

        Args:
            query: (B, T, D) with batch_first, else (T, B, D); key and value must be the same tensor.
            key: the same.
            value: the same.
            key_padding_mask: (B, T), True (or -inf) at tokens that nobody looks at.
            need_weights: also return the attention.
            attn_mask: (T, T) or (B H, T, T), True where a token may not look, or numbers that are added.
            average_attn_weights: the mean of the heads' attention instead of each.
            is_causal: a hint that `attn_mask` is causal, as in torch; the mask counts.

        Returns:
            The result in the shape of the query, and the attention (B, T, T) or (B, H, T, T), None if it is
            not needed.

        Raises:
            ValueError: if key or value is another tensor, or there is no batch.
        """
        if key is not query or value is not query:
            raise UserValueError("OpenAttention stands for self-attention: key and value must be the query.")
        if query.dim() != 3:
            raise UserValueError(f"The query is {tuple(query.shape)}; give a batch (B, T, D).")
        x = query if self.batch_first else query.transpose(0, 1)
        b, t, d = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.num_heads, d // self.num_heads).permute(2, 0, 3, 1, 4)
        mask = _mask(x, self.num_heads, attn_mask, key_padding_mask)
        rate, weights = self.dropout if self.training else 0.0, None
        if need_weights:
            score = q @ k.mT * (d // self.num_heads) ** -0.5
            attention = (score if mask is None else score + mask).softmax(dim=-1)
            attention = F.dropout(attention, rate)
            out = attention @ v
            weights = attention.mean(dim=1) if average_attn_weights else attention
        else:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=rate)
        y: Tensor = self.proj(out.transpose(1, 2).reshape(b, t, d))
        return (y if self.batch_first else y.transpose(0, 1)), weights


def _mask(x: Tensor, num_heads: int, attn_mask: Tensor | None, padding: Tensor | None) -> Tensor | None:
    """Make both masks one that is added to the scores: (B or 1, H or 1, T, T)."""
    total: Tensor | None = None
    if attn_mask is not None:
        mask = _added(attn_mask, x)
        total = mask.view(-1, num_heads, *mask.shape[1:]) if mask.dim() == 3 else mask[None, None]
    if padding is not None:
        hidden = _added(padding, x)[:, None, None, :]
        total = hidden if total is None else total + hidden
    return total


def _added(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape, dtype=like.dtype, device=like.device).masked_fill(mask, -torch.inf)
    return mask.to(like)


def replace_attention(model: nn.Module) -> int:
    """Put an equal `OpenAttention` in place of every `nn.MultiheadAttention` of a model.

    Torch's module reads the weights of its layers without calling them, so that no adapter could change them.
    The parameters are the same objects; hooks on the replaced modules are lost.

    Args:
        model: changed in place.

    Returns:
        How many were replaced.

    Raises:
        ValueError: if one cannot be replaced; then none is.

    Example:
        >>> model = torchvision.models.vit_b_16()
        >>> replace_attention(model)
        12
        >>> model.interface = describe_transformer(model)
    """
    found = [
        (owner, name, child)
        for owner in model.modules()
        for name, child in owner.named_children()
        if isinstance(child, nn.MultiheadAttention)
    ]
    made = [OpenAttention(child) for _, _, child in found]
    for (owner, name, _), attention in zip(found, made, strict=True):
        setattr(owner, name, attention)
    return len(found)
