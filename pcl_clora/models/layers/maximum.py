"""Maxima over the points of a patch and over tokens, whose backward passes touch what was largest alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.library import Library, register_autograd, register_fake
from torch.utils.flop_counter import register_flop_formula

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

    Of k rows at most one a channel has a gradient. In training on a CPU the backward pass of a linear layer
    adds up the rows of the maxima instead of multiplying the others by zero, k times less arithmetic, and the
    result of the layer is not kept.

    Args:
        layer: the linear layer; whatever else stands in its place is called as it is.
        rows: (M * k, C_in), float.
        k: rows a patch.

    Source: ours; equal to the products up to rounding.
    """
    if not _adds_up(layer, rows):
        return max_over_group(layer(rows), k)
    found: Tensor = _ops.max_of_linear(rows, layer.weight, layer.bias, k)[0]
    return found


def _writes_to_maxima(x: Tensor) -> bool:
    """Whether a maximum has a backward pass here that is worth its slower forward pass."""
    return x.is_cpu and x.requires_grad and torch.is_grad_enabled() and not torch.compiler.is_compiling()


def _adds_up(layer: nn.Module, rows: Tensor) -> bool:
    """Whether this is a step of training, in full precision and by autograd's own engine.

    In evaluation mode the layer is called as it is, so that what watches layers (counters, hooks) sees it.
    """
    return (
        layer.training
        and torch.is_grad_enabled()
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


# The operators. Gradients of first order are sums of rows, of second order products: those are rare.

_library = Library("pcl_clora", "FRAGMENT")  # type: ignore[no-untyped-call]  # must live as long as the ops
_tags = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_contiguous_strides)
_library.define(  # type: ignore[no-untyped-call]
    "max_of_linear(Tensor rows, Tensor weight, Tensor? bias, SymInt k) -> (Tensor, Tensor)", tags=_tags
)
_library.define(  # type: ignore[no-untyped-call]
    "max_of_linear_rows(Tensor gradient, Tensor places, Tensor weight, SymInt k) -> Tensor", tags=_tags
)
_library.define(  # type: ignore[no-untyped-call]
    "max_of_linear_weight(Tensor gradient, Tensor places, Tensor rows) -> Tensor", tags=_tags
)
_ops = torch.ops.pcl_clora


def _max_of_linear(rows: Tensor, weight: Tensor, bias: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
    """Maximum of each run of k rows behind the layer, and which of them it is: (M, C_out) each."""
    found, places = _pooled(linear(rows, weight, bias), k)
    return found, places.to(_places_dtype(k))


def _places_dtype(k: int) -> torch.dtype:
    return torch.uint8 if k <= 256 else torch.int32


def _rows_gradient(gradient: Tensor, places: Tensor, weight: Tensor, k: int) -> Tensor:
    """Gradient of the rows, (M * k, C_in): for every row the weights of its channels."""
    sorted_places, channels = places.sort(dim=1, stable=True)
    which = sorted_places.long().add_(torch.arange(len(places))[:, None] * k).reshape(-1)
    counts = which.new_zeros(len(places) * k).scatter_add_(0, which, torch.ones_like(which))
    return _sums(
        weight, channels.reshape(-1), counts.cumsum(0) - counts, gradient.gather(1, channels).reshape(-1)
    )


def _weight_gradient(gradient: Tensor, places: Tensor, rows: Tensor) -> Tensor:
    """Gradient of the weight, (C_out, C_in): for every channel its patches' largest rows."""
    (patches, channels), total = gradient.shape, rows.new_zeros(gradient.shape[1], rows.shape[1])
    k = len(rows) // patches
    for begin in range(0, patches, PATCHES):
        some, where = gradient[begin : begin + PATCHES], places[begin : begin + PATCHES]
        which = where.long().add_(torch.arange(len(where))[:, None] * k).t().reshape(-1)
        largest = rows[begin * k : (begin + PATCHES) * k]
        total += _sums(largest, which, torch.arange(channels) * len(where), some.t().reshape(-1))
    return total


def _sums(table: Tensor, which: Tensor, begins: Tensor, factors: Tensor) -> Tensor:
    """Weighted sums of rows of a table: sum i has those from begins[i] to begins[i + 1], in order."""
    return torch.embedding_bag(table, which, begins, False, 0, False, factors)[0]  # mode 0: sum


for _name, _kernel in (
    ("max_of_linear", _max_of_linear),
    ("max_of_linear_rows", _rows_gradient),
    ("max_of_linear_weight", _weight_gradient),
):
    _library.impl(_name, _kernel, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]


def _fake(rows: Tensor, weight: Tensor, bias: Tensor | None, k: int) -> tuple[Tensor, Tensor]:
    shape = (rows.shape[0] // k, weight.shape[0])
    return rows.new_empty(shape), rows.new_empty(shape, dtype=_places_dtype(k))


def _fake_rows(gradient: Tensor, places: Tensor, weight: Tensor, k: int) -> Tensor:
    return gradient.new_empty((gradient.shape[0] * k, weight.shape[1]))


def _fake_weight(gradient: Tensor, places: Tensor, rows: Tensor) -> Tensor:
    return gradient.new_empty((gradient.shape[1], rows.shape[1]))


register_fake("pcl_clora::max_of_linear", _fake)
register_fake("pcl_clora::max_of_linear_rows", _fake_rows)
register_fake("pcl_clora::max_of_linear_weight", _fake_weight)


def _setup(
    ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None, int], output: tuple[Tensor, Tensor]
) -> None:
    rows, weight, _, ctx.k = inputs
    rows_count, weight_count = ctx.needs_input_grad[:2]
    places = output[1] if rows_count or weight_count else None
    ctx.save_for_backward(rows if weight_count else None, weight if rows_count else None, places)


def _backward(ctx: Any, gradient: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    rows, weight, places = ctx.saved_tensors
    for_rows = None if weight is None else _ops.max_of_linear_rows(gradient, places, weight, ctx.k)
    for_weight = None if rows is None else _ops.max_of_linear_weight(gradient, places, rows)
    return for_rows, for_weight, gradient.sum(0) if ctx.needs_input_grad[2] else None, None


def _at(places: Tensor, rows: Tensor, weight: Tensor) -> Tensor:
    """Pick from rows @ weight^T what lies at the places: (M, C_out)."""
    products = (rows @ weight.t()).view(len(places), -1, len(weight))
    return products.gather(1, places[:, None].long())[:, 0]


def _setup_rows(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, int], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:3])


def _backward_rows(ctx: Any, above: Tensor) -> tuple[Tensor | None, ...]:
    gradient, places, weight = ctx.saved_tensors
    for_gradient = _at(places, above, weight) if ctx.needs_input_grad[0] else None
    wanted = ctx.needs_input_grad[2]
    return for_gradient, None, _ops.max_of_linear_weight(gradient, places, above) if wanted else None, None


def _setup_weight(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward_weight(ctx: Any, above: Tensor) -> tuple[Tensor | None, ...]:
    gradient, places, rows = ctx.saved_tensors
    for_gradient = _at(places, rows, above) if ctx.needs_input_grad[0] else None
    k, wanted = len(rows) // len(places), ctx.needs_input_grad[2]
    return for_gradient, None, _ops.max_of_linear_rows(gradient, places, above, k) if wanted else None


register_autograd("pcl_clora::max_of_linear", _backward, setup_context=_setup)
register_autograd("pcl_clora::max_of_linear_rows", _backward_rows, setup_context=_setup_rows)
register_autograd("pcl_clora::max_of_linear_weight", _backward_weight, setup_context=_setup_weight)


@register_flop_formula(_ops.max_of_linear)
def _flops(rows: Sequence[int], weight: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * rows[0] * weight[0] * weight[1]


@register_flop_formula((_ops.max_of_linear_rows, _ops.max_of_linear_weight))
def _gradient_flops(
    gradient: Sequence[int], places: Sequence[int], other: Sequence[int], *_: Any, **__: Any
) -> int:
    return 2 * gradient[0] * gradient[1] * other[1]
