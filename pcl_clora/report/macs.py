"""Count multiply-adds in both conventions: what the papers print, and what is really executed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from pcl_clora.engine.modes import evaluation_mode
from pcl_clora.models.layers.product import use_route

OWN_OPS = "pcl_clora"  # namespace of our operators; FPS, kNN and grouping are counted apart


@dataclass(frozen=True)
class ExecutedCount:
    """What one forward pass of one cloud executes.

    Attributes:
        macs: multiply-adds of all matrix products, attention included; FLOPs are twice as many.
        attention_macs: the share of the products inside scaled dot-product attention.
        grouping_flops: FLOPs of farthest point sampling, neighbour search and other operators of our own, by
            operator, by their registered formulas.
        modules: module path -> macs, every module that was called, "" for the whole model.
    """

    macs: int
    attention_macs: int
    grouping_flops: Mapping[str, int] = field(default_factory=dict)
    modules: Mapping[str, int] = field(default_factory=dict)

    @property
    def layer_macs(self) -> int:
        """Multiply-adds of products with weights: everything but attention."""
        return self.macs - self.attention_macs


def count_layers(model: nn.Module, points: Tensor, *more: Tensor) -> dict[str, int]:
    """Count multiply-adds of the linear and convolution layers that are called, as the papers' counters do.

    A product that is no layer of its own (attention, a weight used by hand) is not seen: that is the
    convention. Normalisation, activations, sampling and neighbour search are not counted either.

    Args:
        model: run in evaluation mode, without gradients.
        points: (1, N, 3), one cloud; the convention is batch 1.
        more: further inputs of the model, such as a category.

    Returns:
        Layer path -> multiply-adds.
    """
    counts: dict[str, int] = {}
    names = {module: name for name, module in model.named_modules()}

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        counts[names[module]] = counts.get(names[module], 0) + _layer_macs(module, inputs[0], output)

    layers = [module for module in names if isinstance(module, nn.Linear | nn.modules.conv._ConvNd)]
    handles = [module.register_forward_hook(hook) for module in layers]
    try:
        with evaluation_mode(model), torch.no_grad():
            model(points, *more)
    finally:
        for handle in handles:
            handle.remove()
    return counts


def _layer_macs(module: nn.Module, inputs: Tensor, output: Tensor) -> int:
    """Multiply-adds of one call: a weight is used once per position of the output (transposed: input)."""
    if isinstance(module, nn.Linear):
        return output.numel() * module.in_features
    weight = module.weight
    assert isinstance(weight, Tensor)
    positions = inputs if getattr(module, "transposed", False) else output
    return positions.numel() * weight[0].numel()


class _AttentionCounter(TorchFunctionMode):
    """Notes how many FLOPs a counter gains inside scaled dot-product attention."""

    def __init__(self, counter: FlopCounterMode) -> None:
        super().__init__()
        self.flops = 0
        self._counter = counter

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        before = self._counter.get_total_flops()
        result = func(*args, **(kwargs or {}))
        self.flops += self._counter.get_total_flops() - before
        return result


def count_executed(model: nn.Module, points: Tensor, *more: Tensor) -> ExecutedCount:
    """Count what one forward pass really multiplies, attention included.

    Fused attention kernels count as nothing on some devices, so the plain products run instead while
    counting.

    Args:
        model: run in evaluation mode. Gradients stay on: torch's module tracker needs the graph of outputs
            that are views of parameters, such as class tokens.
        points: (1, N, 3), one cloud.
        more: further inputs of the model, such as a category.

    Source: torch.utils.flop_counter; the formulas of our own operators are registered next to them.
    """
    counter = FlopCounterMode(display=False)
    attention = _AttentionCounter(counter)
    plain = (sdpa_kernel(SDPBackend.MATH), use_route("torch"))  # products are no operators of our own then
    with evaluation_mode(model), torch.enable_grad(), plain[0], plain[1], counter, attention:
        model(points, *more)
    root = type(model).__name__
    modules: dict[str, int] = {}
    grouping: dict[str, int] = {}
    for path, by_op in counter.get_flop_counts().items():
        own = {str(op): flops for op, flops in by_op.items() if str(op).startswith(OWN_OPS + ".")}
        if path == "Global":
            grouping = {op.removeprefix(OWN_OPS + "."): flops for op, flops in own.items()}
        name = "" if path in ("Global", root) else path.removeprefix(root + ".")
        modules[name] = (sum(by_op.values()) - sum(own.values())) // 2
    return ExecutedCount(modules.get("", 0), attention.flops // 2, grouping, modules)
