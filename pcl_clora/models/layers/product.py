"""The matrix product of every linear layer, done by the library that is faster on this processor.

On a CPU torch has two libraries for float32 products: its BLAS (MKL), and oneDNN behind a private operator
that its compiler uses too. Which is faster depends on the processor: on AMD cores with AVX-512 oneDNN is
twice as fast, on cores with AVX2 only they are alike. A trial of a few milliseconds decides, once a process.
The two round differently, so a run writes down what was chosen, and whoever goes on with it asks for the same
(`use_route`).

Where gradients are wanted the product is a registered operator, `torch.ops.pcl_clora.linear`. Where none are,
oneDNN is called by its name, an activation included, and under autocast in bfloat16. While a graph is
captured (compile, export), on other devices and for other dtypes it is torch's own `linear`.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.library import Library, register_autograd, register_fake
from torch.utils.flop_counter import register_flop_formula

from pcl_clora.errors import UserValueError
from pcl_clora.models.layers.prepared import Prepared

Activation = Literal["none", "relu", "gelu"]
Route = Literal["torch", "onednn"]
ROUTES: tuple[Route, ...] = get_args(Route)
ENVIRONMENT = "PCL_CLORA_PRODUCT"
"""Environment variable that names a route instead of the trial."""

MARGIN = 1.1  # times as fast as torch's own that oneDNN must be, so that the choice does not hang on noise
WIDTH = 384  # of the product that is tried where no layer says its own
SMALLEST = 192

_asked: ContextVar[Route | None] = ContextVar("product route", default=None)


@dataclass(frozen=True)
class Choice:
    """What this process does where nobody asks for a route.

    Attributes:
        route: the library.
        reason: why.
        gflops: of both libraries in the trial, floating point operations in ns; empty without a trial.
    """

    route: Route
    reason: str
    gflops: Mapping[Route, float] = field(default_factory=dict)

    def __str__(self) -> str:
        speeds = ", ".join(f"{name} {speed:.0f} GFLOP/s" for name, speed in self.gflops.items())
        return f"{self.route} ({self.reason}{': ' if speeds else ''}{speeds})"


_found: dict[str, Choice] = {}


def has_onednn() -> bool:
    """Whether this torch has oneDNN's product; its operator is private, so a release may lack it."""
    built: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    return built and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def route(width: int = WIDTH) -> Route:
    """Say which library does float32 products on the CPU now.

    What `use_route` asks for, else what the environment variable PCL_CLORA_PRODUCT names, else the faster one
    in a trial at the first call of the process.

    Args:
        width: features of a token, of the product that is tried.

    Raises:
        ValueError: if the environment names a route that is not known, or not there in this torch.
    """
    asked = _asked.get()
    return choose(width).route if asked is None else asked


def choose(width: int = WIDTH) -> Choice:
    """Choose a route for this process, at the first call: see `route`, whatever `use_route` asks for."""
    if not _found:
        named = os.environ.get(ENVIRONMENT, "")
        if named:
            _found["choice"] = Choice(known_route(named, ENVIRONMENT), f"{ENVIRONMENT}={named}")
        else:
            _found["choice"] = _try(width)
    return _found["choice"]


@contextmanager
def use_route(name: str) -> Iterator[None]:
    """Do float32 products by one library inside the block; "" leaves the choice as it is.

    Raises:
        ValueError: if the route is not known, or this torch does not have it.
    """
    if not name:
        yield
        return
    token = _asked.set(known_route(name, "product route"))
    try:
        yield
    finally:
        _asked.reset(token)


def known_route(name: str, what: str) -> Route:
    """Return the route of a name.

    Args:
        name: of the route.
        what: said it, for the message.

    Raises:
        ValueError: if it is not known, or this torch does not have it.
    """
    if name not in ROUTES:
        raise UserValueError(f"{what}={name!r} is not known; use {' or '.join(ROUTES)}.")
    if name == "onednn" and not has_onednn():
        raise UserValueError(
            f"{what}=onednn, but torch {torch.__version__} has no such product here; use torch (results then "
            "differ in the last digits)."
        )
    return name


def _try(width: int) -> Choice:
    """Time both libraries, one after another, on a product of the model's width.

    One thread's processor time is compared, so that other programs on the machine do not decide, and a
    product of at least SMALLEST features, since a smaller one measures the calls.
    """
    if not has_onednn():
        return Choice("torch", f"torch {torch.__version__} has no product of oneDNN")
    products: dict[Route, Callable[[Tensor, Tensor, None], Tensor]] = {"torch": F.linear, "onednn": _onednn}
    seconds: dict[Route, float] = dict.fromkeys(products, float("inf"))
    width, threads = max(width, SMALLEST), torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            x, weight = torch.ones(128, width), torch.ones(4 * width, width)
            for name in ROUTES * 8:
                start = time.thread_time()
                products[name](x, weight, None)
                seconds[name] = min(seconds[name], time.thread_time() - start)
    finally:
        torch.set_num_threads(threads)
    better: Route = "onednn" if seconds["torch"] > MARGIN * seconds["onednn"] else "torch"
    flops = 2 * x.numel() * weight.shape[0]
    return Choice(better, f"trial at width {width}", {name: flops / seconds[name] / 1e9 for name in ROUTES})


def linear(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    activation: Activation = "none",
    *,
    prepared: Prepared | None = None,
) -> Tensor:
    """Multiply rows by a matrix: activation(x @ weight^T + bias).

    Args:
        x: (..., C_in), float.
        weight: (C_out, C_in), of the same dtype.
        bias: (C_out,), or None.
        activation: of the result; "gelu" is the exact one.
        prepared: where the weight may be kept in a form that multiplies faster, if it is not trained now.

    Returns:
        (..., C_out).

    Source: torch.nn.functional.linear, which it equals up to rounding: 2e-6 of the largest output, 1e-5 with
        an activation. oneDNN is 10 % faster where the weight lies in memory by columns.
    """
    if not _is_ours(x, weight):
        return activate(F.linear(x, weight, bias), activation)
    trains = torch.is_grad_enabled() and (weight.requires_grad or (bias is not None and bias.requires_grad))
    if torch.is_autocast_enabled("cpu"):
        if trains:
            return activate(F.linear(x, weight, bias), activation)
        x = x.to(torch.bfloat16)
        rows, bias = _in_bfloat16(weight, bias, prepared)
        if torch.is_grad_enabled() and x.requires_grad:
            return activate(F.linear(x, rows, bias), activation)
        return _onednn(x, rows, bias, activation)
    known: Tensor | None = None
    if prepared is not None and not trains:
        known = prepared.get("columns", (weight,), lambda: weight.t().contiguous().t())
    if trains or (torch.is_grad_enabled() and x.requires_grad):
        return activate(cast(Tensor, _ops.linear(x, weight, bias, known)), activation)
    return _onednn(x, weight if known is None else known, bias, activation)


def _is_ours(x: Tensor, weight: Tensor) -> bool:
    """Whether oneDNN is to multiply here."""
    return (
        not torch.compiler.is_compiling()
        and x.is_cpu
        and weight.dtype == torch.float32
        and x.numel() > 0
        and (
            torch.get_autocast_dtype("cpu") == torch.bfloat16 and _multiplies_bfloat16()
            if torch.is_autocast_enabled("cpu")
            else x.dtype == torch.float32
        )
        and route() == "onednn"
        and not torch._C._are_functorch_transforms_active()
    )


def _multiplies_bfloat16() -> bool:
    """Whether oneDNN has a product of bfloat16 here: it needs AVX-512, torch's own is emulated without."""
    known = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", None)
    return known is not None and bool(known())


def _in_bfloat16(
    weight: Tensor, bias: Tensor | None, prepared: Prepared | None
) -> tuple[Tensor, Tensor | None]:
    """Cast as autocast does; once where the result may be kept."""

    def make() -> tuple[Tensor, Tensor | None]:
        return weight.to(torch.bfloat16), None if bias is None else bias.to(torch.bfloat16)

    if prepared is None:
        return weight.to(torch.bfloat16), None if bias is None else bias.to(torch.bfloat16)
    return prepared.get("bfloat16", (weight,) if bias is None else (weight, bias), make)


def activate(x: Tensor, activation: Activation) -> Tensor:
    """Apply an activation."""
    if activation == "none":
        return x
    return F.gelu(x) if activation == "gelu" else F.relu(x)


class Linear(nn.Linear):
    """A linear layer whose product is `linear`; parameters, names and initialisation are torch's."""

    fuses = True  # takes an activation as second argument

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self.prepared = Prepared()

    def forward(self, input: Tensor, activation: Activation = "none") -> Tensor:
        """(..., C_in) -> (..., C_out)."""
        kept = self.prepared if "weight" in self._parameters else None  # else it is computed at every call
        return linear(input, self.weight, self.bias, activation, prepared=kept)

    def _apply(self, fn: Any, recurse: bool = True) -> Linear:
        self.prepared.clear()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        return self


@dataclass(frozen=True, eq=False)
class Affine:
    """What a linear layer computes, with a weight that is no parameter: folded, or a part of one.

    Attributes:
        weight: (C_out, C_in).
        bias: (C_out,), or None.
        prepared: see `linear`.
    """

    weight: Tensor
    bias: Tensor | None = None
    prepared: Prepared | None = None

    def __call__(self, x: Tensor, activation: Activation = "none") -> Tensor:
        """(..., C_in) -> (..., C_out)."""
        return linear(x, self.weight, self.bias, activation, prepared=self.prepared)


# The operator. Its kernel also takes what the door above sends elsewhere: gradients are checked in float64.

_library = Library("pcl_clora", "FRAGMENT")  # type: ignore[no-untyped-call]  # must live as long as the op
_tags = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_contiguous_strides)
_library.define(  # type: ignore[no-untyped-call]
    "linear(Tensor x, Tensor weight, Tensor? bias, Tensor? columns=None) -> Tensor", tags=_tags
)
_library.define("linear_weight_gradient(Tensor gradient, Tensor x) -> Tensor", tags=_tags)  # type: ignore[no-untyped-call]
_ops = torch.ops.pcl_clora


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None, activation: Activation = "none") -> Tensor:
    """Multiply by oneDNN, whose reference kernel, 100 times slower, takes inputs that are not contiguous."""
    if not _is_plain(weight):
        weight = weight.contiguous()
    how: tuple[str, list[float], str] = (
        activation,
        [],
        "none" if activation == "gelu" else "",
    )  # which form of GELU
    return cast(Tensor, torch.ops.mkldnn._linear_pointwise(x.contiguous(), weight, bias, *how))


def _is_plain(matrix: Tensor) -> bool:
    """Whether a matrix lies in memory without gaps, as rows or as columns."""
    return matrix.is_contiguous() or matrix.t().is_contiguous()


def _by_onednn(*tensors: Tensor | None) -> bool:
    return route() == "onednn" and all(
        tensor is None or (tensor.is_cpu and tensor.dtype == torch.float32 and tensor.numel() > 0)
        for tensor in tensors
    )


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, columns: Tensor | None = None) -> Tensor:
    if _by_onednn(x, weight, bias):
        y = _onednn(x.reshape(-1, x.shape[-1]), weight if columns is None else columns, bias)
        # No view, so that it may be edited in place.
        return cast(Tensor, torch.ops.aten._unsafe_view(y, (*x.shape[:-1], len(weight))))
    return F.linear(x, weight, bias).clone() if x.numel() == 0 else F.linear(x, weight, bias)


def _weight_gradient(gradient: Tensor, x: Tensor) -> Tensor:
    above, below = gradient.reshape(-1, gradient.shape[-1]), x.reshape(-1, x.shape[-1])
    if not _by_onednn(gradient, x):
        return above.t() @ below
    # The left matrix must be turned in memory, so it is the one that has less to turn, the result included.
    (rows, outputs), inputs = above.shape, below.shape[1]
    if rows * outputs <= rows * inputs + outputs * inputs:
        return _onednn(above.t(), below.t(), None)
    return _onednn(below.t(), above.t(), None).t().contiguous()


_library.impl("linear", _linear, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
_library.impl("linear_weight_gradient", _weight_gradient, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]


def _fake_linear(x: Tensor, weight: Tensor, bias: Tensor | None, columns: Tensor | None = None) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[0]))


def _fake_weight_gradient(gradient: Tensor, x: Tensor) -> Tensor:
    return x.new_empty((gradient.shape[-1], x.shape[-1]))


register_fake("pcl_clora::linear", _fake_linear)
register_fake("pcl_clora::linear_weight_gradient", _fake_weight_gradient)


def _setup(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor | None, Tensor | None], output: Tensor) -> None:
    x, weight, _, _ = inputs
    x_counts, weight_counts = ctx.needs_input_grad[0], ctx.needs_input_grad[1]
    ctx.save_for_backward(x if weight_counts else None, weight if x_counts else None)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
    x, weight = ctx.saved_tensors
    for_x = None if weight is None else _ops.linear(gradient, weight.t(), None)
    for_weight = None if x is None else _ops.linear_weight_gradient(gradient, x)
    for_bias = gradient.flatten(0, -2).sum(0) if ctx.needs_input_grad[2] else None
    return for_x, for_weight, for_bias, None


def _setup_weight_gradient(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward_weight_gradient(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
    upper, x = ctx.saved_tensors
    for_upper = _ops.linear(x, gradient, None) if ctx.needs_input_grad[0] else None
    for_x = _ops.linear(upper, gradient.t(), None) if ctx.needs_input_grad[1] else None
    return for_upper, for_x


register_autograd("pcl_clora::linear", _backward, setup_context=_setup)
register_autograd(
    "pcl_clora::linear_weight_gradient", _backward_weight_gradient, setup_context=_setup_weight_gradient
)


def _linear_flops(x: Sequence[int], weight: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * math.prod(x) * weight[0]


def _weight_gradient_flops(gradient: Sequence[int], x: Sequence[int], *_: Any, **__: Any) -> int:
    return 2 * math.prod(x) * gradient[-1]


register_flop_formula(_ops.linear)(_linear_flops)
if has_onednn():
    register_flop_formula(torch.ops.mkldnn._linear_pointwise)(_linear_flops)
register_flop_formula(_ops.linear_weight_gradient)(_weight_gradient_flops)
