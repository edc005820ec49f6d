"""int8 inference on a CPU: weights with a scale an output, activations with a range that calibration found.

The products are those of FBGEMM, torch's own int8 library: on processors with VNNI, and on those with AVX2
with activations of 7 bits, since its sums of pairs are 16 bits wide there. Input and output of a layer stay
float32. What is not a product of tokens or patches (norms, attention, positions, head) stays as it is.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, nn

from pcl_clora.errors import UserValueError
from pcl_clora.models.layers.maximum import max_over_group
from pcl_clora.models.layers.product import Activation, Affine, activate, linear
from pcl_clora.models.layers.transformer import PatchEncoder, affine_parts

ENGINE = "fbgemm"
MARGIN = 1.1  # times as fast as float32 that int8 must be
ROWS, WIDTH = 512, 384  # of the product that is tried
Range = tuple[float, float]


class Int8Linear(nn.Module):
    """A linear layer in int8; before `freeze` it computes in float32 and remembers the range of its inputs.

    Args:
        layer: what it computes.
        activation: of its result, where the caller asks for none.

    Attributes:
        range: smallest and largest input that was met.
    """

    fuses = True  # takes an activation as second argument, see `layers.product.Linear`

    def __init__(self, layer: nn.Linear | Affine, activation: Activation = "none") -> None:
        super().__init__()
        self._float: tuple[Tensor, Tensor | None] | None = (
            layer.weight.detach(),
            None if layer.bias is None else layer.bias.detach(),
        )
        self.activation = activation
        self.range: Range = (0.0, 0.0)  # zero is always in it, and exact
        self._packed: Any = None
        self._scale, self._zero = 1.0, 0

    def forward(self, x: Tensor, activation: Activation = "none") -> Tensor:
        """(..., C_in), float32 -> (..., C_out), float32."""
        activation = self.activation if activation == "none" else activation
        if self._float is not None:
            low, high = (float(value) for value in x.aminmax())
            self.range = (min(self.range[0], low), max(self.range[1], high))
            return linear(x, *self._float, activation)
        product = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
        y = cast(Tensor, product(x.float().contiguous(), self._scale, self._zero, self._packed))
        return activate(y, activation)

    def freeze(self) -> None:
        """Compute in int8 from now on, with the range that was met."""
        assert self._float is not None
        weight, bias = self._float
        levels = 255 if has_vnni() else 127
        low, high = self.range
        self._scale = max((high - low) / levels, 1e-12)
        self._zero = min(max(round(-low / self._scale), 0), levels)
        self._packed = _pack(weight, bias)
        self._float = None


class Int8PatchEncoder(nn.Module):
    """A patch encoder in evaluation mode whose layers but the first, which reads three numbers, are int8.

    Args:
        encoder: what it computes, its norms folded.
    """

    def __init__(self, encoder: PatchEncoder) -> None:
        super().__init__()
        width = encoder.linear2.out_features
        self.chunk = encoder.chunk
        self._first = affine_parts(encoder.linear1, encoder.norm1)[0]
        pooled, own = affine_parts(encoder.linear3, encoder.norm2, (width, width))
        self.linear2 = Int8Linear(encoder.linear2)
        self.pooled, self.own = Int8Linear(pooled), Int8Linear(own)
        self.linear4 = Int8Linear(encoder.linear4)

    def forward(self, neighborhood: Tensor) -> Tensor:
        """(B, G, K, 3) -> (B, G, C), as `PatchEncoder`."""
        b, g, k, _ = neighborhood.shape
        pieces = torch.split(neighborhood.reshape(b * g * k, 3), self.chunk * k)
        return torch.cat([self._rows(piece, k) for piece in pieces]).view(b, g, -1)

    def _rows(self, rows: Tensor, k: int) -> Tensor:
        x = self.linear2(self._first(rows, "relu"))
        own = self.own(x)
        own.view(-1, k, own.shape[1]).add_(self.pooled(max_over_group(x, k))[:, None])
        return max_over_group(self.linear4(own.relu_()), k)


@dataclass(frozen=True)
class Quantised:
    """A network in int8 and what is known of it.

    Attributes:
        model: for inference only; it cannot be trained or saved.
        ranges: of the inputs of its int8 layers, by their path: what another runtime needs to do the same.
        difference: largest difference to float32 on the calibration clouds / largest float32 output.
        agreement: share of calibration outputs with the same largest logit.
        gain: how many times as fast as float32 an int8 product is here.
    """

    model: nn.Module
    ranges: dict[str, Range]
    difference: float
    agreement: float
    gain: float


def quantise(model: nn.Module, batches: Sequence[tuple[Tensor, ...]], *, anyway: bool = False) -> Quantised:
    """Make an int8 copy of a network with a patch encoder and transformer blocks.

    Args:
        model: merged, without adapters; it stays as it is.
        batches: inputs of the model, clouds like those it will see; a few dozen are enough.
        anyway: also where int8 is not faster.

    Raises:
        ValueError: if there are no batches, the network has adapters or no blocks, torch has no int8 product
            here, or, without `anyway`, it is not faster than float32 on this processor.
    """
    gain = measured_gain()
    if gain < MARGIN and not anyway:
        raise UserValueError(
            f"An int8 product is {gain:.2f} times as fast as a float32 one on this processor, less than "
            f"{MARGIN:g}; stay with float32, which is exact, or ask for it anyway."
        )
    if not batches:
        raise UserValueError("int8 needs clouds to calibrate on; give one batch or more.")
    copied = observing_copy(model)
    with torch.inference_mode():
        expected = torch.cat([_logits(copied(*batch)) for batch in batches])
        ranges = {name: layer.range for name, layer in int8_layers(copied).items()}
        for layer in int8_layers(copied).values():
            layer.freeze()
        found = torch.cat([_logits(copied(*batch)) for batch in batches])
    difference = float((found - expected).abs().max() / expected.abs().max())
    agreement = float((found.argmax(-1) == expected.argmax(-1)).float().mean())
    return Quantised(copied, ranges, difference, agreement, gain)


def observing_copy(model: nn.Module) -> nn.Module:
    """Copy a network with `Int8Linear` in place of the layers of its blocks and its patch encoder.

    The copy computes in float32 and notes ranges until its layers are frozen.

    Raises:
        ValueError: if it has adapters, or no blocks.
    """
    blocks = getattr(model, "blocks", None)
    if not isinstance(blocks, nn.ModuleList):
        raise UserValueError(
            f"{type(model).__name__} is no bare network with blocks; merge adapters: merge_and_unload()."
        )
    if any(hasattr(module, "base_layer") for module in model.modules()):
        raise UserValueError("The network has adapters; merge them first: merge_and_unload().")
    copied = copy.deepcopy(model).eval().requires_grad_(False)
    for owner in list(cast(nn.ModuleList, copied.blocks).modules()):
        for name, child in list(owner.named_children()):
            if isinstance(child, nn.Linear):
                setattr(owner, name, Int8Linear(child))
    encoder = getattr(copied, "patch_embed", None)
    if type(encoder) is PatchEncoder:
        copied.patch_embed = Int8PatchEncoder(encoder)
    return copied


def int8_layers(model: nn.Module) -> dict[str, Int8Linear]:
    """List the int8 layers of a network by their path."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Int8Linear)}


@cache
def has_vnni() -> bool:
    """Whether int8 products are added in 32 bits here, seen by one whose pairs do not fit in 16.

    The processor's flags do not say it: the environment may hold FBGEMM to older instructions.
    """
    product = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32
    with torch.inference_mode():
        full: Tensor = product(torch.ones(8, 64), 1 / 255, 0, _pack(torch.ones(64, 64), None))
    return bool((full - 64).abs().max() < 1)


def measured_gain(width: int = WIDTH) -> float:
    """Time an int8 product against the float32 one of this process: how many times as fast it is.

    Raises:
        ValueError: if torch has no int8 product on this processor.
    """
    generator = torch.Generator().manual_seed(0)
    x, weight = (
        torch.rand(shape, generator=generator) - 0.5 for shape in ((ROWS, width), (4 * width, width))
    )
    small = Int8Linear(Affine(weight))
    with torch.inference_mode():
        small(x)
        try:
            small.freeze()
            small(x)
        except (RuntimeError, AttributeError) as error:
            raise UserValueError(
                f"torch {torch.__version__} has no int8 product on this processor "
                f"({str(error).splitlines()[0]}); stay with float32."
            ) from error
        runs: dict[str, Callable[[], Tensor]] = {
            "float32": lambda: linear(x, weight),
            "int8": lambda: small(x),
        }
        seconds = dict.fromkeys(runs, float("inf"))
        for name in [*runs] * 8:
            start = time.thread_time()
            runs[name]()
            seconds[name] = min(seconds[name], time.thread_time() - start)
    return seconds["float32"] / seconds["int8"]


def _pack(weight: Tensor, bias: Tensor | None) -> Any:
    """Round a weight to int8 with a scale an output, and lay it out for the library."""
    scale = weight.abs().amax(1).double().clamp_min(1e-12) / 127
    engine = torch.backends.quantized.engine
    torch.backends.quantized.engine = ENGINE
    try:
        with warnings.catch_warnings(), torch.inference_mode(False):
            warnings.simplefilter("ignore")  # a later torch may have these in another place
            rounded = torch.quantize_per_channel(
                weight.clone(), scale, torch.zeros(len(scale), dtype=torch.int64), 0, torch.qint8
            )
            return torch.ops.quantized.linear_prepack(rounded, None if bias is None else bias.clone())
    finally:
        torch.backends.quantized.engine = engine


def _logits(output: Tensor) -> Tensor:
    return output.float().flatten(0, -2)
