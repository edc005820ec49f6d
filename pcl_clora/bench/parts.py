"""Where the time and the memory of a network go: by part, by saved tensors, and against the matmul peak."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from pcl_clora.adapters import Delta
from pcl_clora.bench.plain import PlainAttention, PlainEncoder, PlainLoRA, PlainMlp
from pcl_clora.models.layers import product
from pcl_clora.models.layers.part_segmentation import SegmentationHead
from pcl_clora.models.layers.transformer import Attention, Mlp, PatchEncoder

OTHER = "other"
OPTIMISER = "optimiser"
PARTS: dict[str, tuple[type[nn.Module], ...]] = {
    "patch encoder": (PatchEncoder, PlainEncoder),
    "attention": (Attention, PlainAttention),
    "MLP": (Mlp, PlainMlp),
    "norms": (nn.LayerNorm,),
    "adapter": (Delta, PlainLoRA),
    "segmentation head": (SegmentationHead,),
}
_BASES = (".base_layer", ".qkv.base")  # the layer under an adapter; its time is that of the part around


class PartClock:
    """Adds up processor time by the part of the network that runs, forward and backward.

    Forward, a part begins and ends with its module. Backward, it begins where the gradient of its output is
    there, and ends where that of its input is; what no part claims is "other": residuals, positions, the
    head, the loss. A module that is not called as one is part of what surrounds it.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._label, self._since = OTHER, time.process_time()

    def switch(self, label: str) -> None:
        """From now on it is the turn of another part."""
        now = time.process_time()
        self.seconds[self._label] = self.seconds.get(self._label, 0.0) + now - self._since
        self._label, self._since = label, now

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Follow the parts of a network inside the block."""
        handles = []
        labels: dict[str, str] = {}
        for name, module in model.named_modules():
            outer = labels.get(name.rpartition(".")[0], OTHER)
            label = next((part for part, kinds in PARTS.items() if isinstance(module, kinds)), outer)
            if outer == "segmentation head":
                label = outer
            if name.endswith(_BASES):
                label = "attention" if ".attn." in name else "MLP"
            labels[name] = label
            if label != outer or name.endswith(_BASES):
                handles += self._follow(module, label, outer)
        self.seconds, self._label, self._since = {}, OTHER, time.process_time()
        try:
            yield
        finally:
            self.switch(OTHER)
            for handle in handles:
                handle.remove()

    def _follow(self, module: nn.Module, label: str, outer: str) -> list[Any]:
        before: list[str] = []

        def enter(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            before.append(self._label)
            self.switch(label)

        def leave(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            around = before.pop()
            self.switch(around)
            for tensor, hook in (
                (output, lambda _: self.switch(label)),
                (inputs[0] if inputs else None, lambda _: self._back(label, around)),
            ):
                inner = tensor is output and getattr(tensor, "_is_of_a_part", False)  # of the layer below
                if isinstance(tensor, Tensor) and tensor.requires_grad and not inner:
                    tensor.register_hook(hook)  # type: ignore[no-untyped-call]
            if isinstance(output, Tensor):
                output._is_of_a_part = True  # type: ignore[attr-defined]

        return [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]

    def _back(self, label: str, around: str) -> None:
        if self._label == label:
            self.switch(around)


def saved_bytes(run: Callable[[], Any], known: Mapping[str, Tensor]) -> int:
    """Count the bytes of the tensors that a forward pass keeps for its backward pass, each storage once.

    Args:
        run: the forward pass; what it returns is kept alive while counting.
        known: weights, buffers and input, which exist anyway.
    """
    weights = {tensor.untyped_storage().data_ptr() for tensor in known.values()}
    kept: dict[int, Any] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage
        return tensor.detach()  # an output that comes back as it is would keep its graph alive, and itself

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    total = sum(int(storage.nbytes()) for storage in kept.values())
    del result
    return total


class _Flops(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the FLOPs of matrix products by torch's formulas; what has none is taken apart where it can be.

    FlopCounterMode follows modules besides, for which every output that needs a gradient must have a graph:
    that of a module which returns views of its parameters has none in inference mode.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total: int = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        formula = flop_registry.get(func._overloadpacket)
        if formula is None and func is not torch.ops.prim.device.default:
            with self:
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = func(*args, **kwargs)
        if formula is not None and (func.namespace != "pcl_clora" or "linear" in func.name()):
            self.total += int(formula(*args, **kwargs, out_val=result))
        return result


def count_flops(run: Callable[[], Any]) -> int:
    """Count the FLOPs of the matrix products that something executes, attention included."""
    with sdpa_kernel(SDPBackend.MATH), _Flops() as counter:
        run()
    total: int = counter.total
    return total


def matmul_peak(rows: int, width: int, *, repeats: int = 12) -> dict[str, float]:
    """Measure how fast this process multiplies at the shapes of a block, in GFLOP/s, the best of all.

    Args:
        rows: tokens of a batch.
        width: D of a token; products are D -> 4 D, 4 D -> D and D -> 3 D.
        repeats: rounds; the quickest counts.

    Returns:
        "torch" and, where there is one, "onednn" for float32; "bfloat16".
    """
    kinds: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"torch": F.linear, "bfloat16": F.linear}
    if product.has_onednn():
        kinds["onednn"] = lambda x, weight: torch.ops.mkldnn._linear_pointwise(
            x, weight, None, "none", [], ""
        )
    best = dict.fromkeys(kinds, 0.0)
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        for inputs, outputs in ((width, 4 * width), (4 * width, width), (width, 3 * width)):
            x = torch.randn(rows, inputs, generator=generator)
            weight = torch.randn(outputs, inputs, generator=generator)
            pairs = {name: (x, weight) for name in kinds}
            pairs["bfloat16"] = (x.bfloat16(), weight.bfloat16())
            for _ in range(repeats):
                for name, multiply in kinds.items():
                    began = clock()
                    multiply(*pairs[name])
                    took = clock() - began
                    best[name] = max(best[name], 2e-9 * rows * inputs * outputs / max(took, 1e-9))
    return best
