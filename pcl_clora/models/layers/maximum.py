"""Maxima over the points of a patch and over tokens, whose backward passes touch what was largest alone."""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcl_clora.models.layers.product import Linear, linear

PATCHES = 32  # whose rows are added up together, so that they stay in the processor's cache


def max_over_tokens(x: Tensor) -> Tensor:
    """(B, T, D) -> (B, D), the maximum over a sequence.

    With a gradient on a CPU its backward pass keeps the places of the maxima and not the sequence, and writes
    to them alone: the first one where several are equal, as in the published code.
    """
    return x.max(dim=1).values if _writes_to_maxima(x) else x.amax(dim=1)


def max_over_group(rows: Tensor, k: int) -> Tensor:
    """(M * k, C) -> (M, C), maximum over each run of k rows.

    With a gradient on a CPU the maximum is torch's pooling, whose backward pass writes to the rows of the
    maxima alone: the first one where several are equal, as in the published code. That of `amax` compares
    every value again, which takes five times as long.
    """
    if _writes_to_maxima(rows):
        return _pooled(rows, k)[0]
    return rows.view(-1, k, rows.shape[1]).amax(dim=1)


def max_of_linear(layer: nn.Module, rows: Tensor, k: int) -> Tensor:
    """(M * k, C_in) -> (M, C_out), `max_over_group(layer(rows), k)`.

    Of k rows at most one a channel has a gradient. With a trained layer on a CPU the backward pass adds up
    the rows of the maxima instead of multiplying the others by zero, k times less arithmetic, and the result
    of the layer is not kept.

    Args:
        layer: the linear layer; whatever else stands in its place is called as it is.
        rows: (M * k, C_in), float.
        k: rows a patch.

    Source: ours; equal to the products up to rounding.
    """
    if not _adds_up(layer, rows):
        return max_over_group(layer(rows), k)
    found = _MaxOfLinear.apply(rows, layer.weight, layer.bias, k)
    return cast(Tensor, found)


def _writes_to_maxima(x: Tensor) -> bool:
    """Whether a maximum has a backward pass here that is worth its slower forward pass."""
    return x.is_cpu and x.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_compiling()


def _adds_up(layer: nn.Module, rows: Tensor) -> bool:
    """Whether there is a backward pass, in full precision and by autograd's own engine."""
    return (
        torch.is_grad_enabled()
        and not torch.compiler.is_compiling()
        and type(layer) is Linear
        and not any(
            getattr(layer, f"_{kind}_hooks")
            for kind in ("forward", "forward_pre", "backward", "backward_pre")
        )
        and rows.is_cpu
        and rows.numel() > 0
        and rows.dtype == layer.weight.dtype in (torch.float32, torch.float64)
        and not torch.is_autocast_enabled("cpu")
        and (rows.requires_grad or any(parameter.requires_grad for parameter in layer.parameters()))
        and not torch._C._are_functorch_transforms_active()
    )


def _pooled(rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Maximum of each run of k rows and which of them it is, the first one of equal ones: (M, C) each."""
    width = rows.shape[1]
    as_image = rows.view(-1, k, 1, width).permute(0, 3, 1, 2)  # in memory as it is
    found, places = F.adaptive_max_pool2d_with_indices(as_image, (1, 1))
    return found.view(-1, width), places.view(-1, width)


class _MaxOfLinear(torch.autograd.Function):
    """The maximum of a linear layer over each run of k rows."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None, k: int) -> Tensor:
        found, places = _pooled(linear(rows, weight, bias), k)
        ctx.k = k
        ctx.save_for_backward(rows, weight, places.to(torch.uint8 if k <= 256 else torch.int32))
        return found

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        rows, weight, places = ctx.saved_tensors
        wants_rows, wants_weight, wants_bias = ctx.needs_input_grad[:3]
        of_bias = gradient.sum(0) if wants_bias else None
        if torch.is_grad_enabled():  # which is to be differentiated once more
            spread = gradient.new_zeros(len(places), ctx.k, len(weight))
            spread = spread.scatter(1, places[:, None].long(), gradient[:, None]).flatten(0, 1)
            of_rows = spread @ weight if wants_rows else None
            return of_rows, spread.t() @ rows if wants_weight else None, of_bias, None
        of_rows = _add_up_weights(gradient, places, weight, ctx.k) if wants_rows else None
        of_weight = _add_up_rows(gradient, places, rows, ctx.k) if wants_weight else None
        return of_rows, of_weight, of_bias, None


def _add_up_rows(gradient: Tensor, places: Tensor, rows: Tensor, k: int) -> Tensor:
    """Gradient of the weight, (C_out, C_in): for every channel its patches' largest rows."""
    (patches, channels), total = gradient.shape, rows.new_zeros(gradient.shape[1], rows.shape[1])
    for begin in range(0, patches, PATCHES):
        some, where = gradient[begin : begin + PATCHES], places[begin : begin + PATCHES]
        which = where.long().add_(torch.arange(len(where))[:, None] * k).t().reshape(-1)
        largest = rows[begin * k : (begin + PATCHES) * k]
        total += _sums(largest, which, torch.arange(channels) * len(where), some.t().reshape(-1))
    return total


def _add_up_weights(gradient: Tensor, places: Tensor, weight: Tensor, k: int) -> Tensor:
    """Gradient of the rows, (M * k, C_in): for every row the weights of its channels."""
    sorted_places, channels = places.sort(dim=1, stable=True)
    which = sorted_places.long().add_(torch.arange(len(places))[:, None] * k).reshape(-1)
    counts = which.new_zeros(len(places) * k).scatter_add_(0, which, torch.ones_like(which))
    return _sums(
        weight, channels.reshape(-1), counts.cumsum(0) - counts, gradient.gather(1, channels).reshape(-1)
    )


def _sums(table: Tensor, which: Tensor, begins: Tensor, factors: Tensor) -> Tensor:
    """Weighted sums of rows of a table: sum i has those from begins[i] to begins[i + 1], in order."""
    return torch.embedding_bag(table, which, begins, False, 0, False, factors)[0]  # mode 0: sum
