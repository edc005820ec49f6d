"""Ask a model how it looks at a cloud: patches, and attention. Its outputs stay as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pcl_clora import ops
from pcl_clora.adapters import AdaptedModel
from pcl_clora.adapters.paths import live_path
from pcl_clora.errors import UserValueError


@dataclass(frozen=True)
class Look:
    """How a model looks at one cloud.

    Attributes:
        center: (G, 3), centres of its patches, in the order of the tokens.
        patch: (N,), int64, the patch whose centre is nearest to a point. Patches overlap; this draws borders.
        attention: (G,), float32, how much of the last block's attention a patch gets, times G, so that 1 is
            an even share: mean over the heads. None where the model has no such layer.
        of_class_token: whether it is the attention of the class token; otherwise the mean over all tokens,
            for models without a class token.
    """

    center: Tensor
    patch: Tensor
    attention: Tensor | None
    of_class_token: bool

    @property
    def attention_name(self) -> str:
        """What the attention is, in a few words."""
        return "attention of the class token" if self.of_class_token else "attention, mean over tokens"


def look(model: AdaptedModel, points: Tensor, *more: Tensor) -> Look:
    """Find patches and attention of one cloud.

    The attention is computed a second time from the queries and keys of the last block that runs, adapters
    included, because the fast path does not keep it.

    Args:
        model: in evaluation mode.
        points: (N, 3), as the model takes them, on its device.
        more: further inputs of the model, without the first dimension (the category).

    Raises:
        ValueError: if the model does not cut clouds into patches.
    """
    base: Any = model.base
    if not hasattr(base, "tokenize"):
        raise UserValueError(
            f"{type(base).__name__} does not cut clouds into patches; there is nothing to show."
        )
    inputs = (points[None], *(value[None] for value in more))
    with torch.inference_mode():
        center = base.tokenize(points[None]).center
        weights = _last_attention(model, inputs)
        patch = ops.knn(center, points[None], 1).idx[0, :, 0]
    num_groups = center.shape[1]
    attention, of_class_token = None, False
    if weights is not None:
        num_prefix = weights.shape[-1] - num_groups
        of_class_token = num_prefix > 0
        rows = weights[0, :, :1] if of_class_token else weights[0]
        attention = rows.mean(dim=(0, 1))[num_prefix:] * num_groups
    return Look(center[0], patch, attention, of_class_token)


def _last_attention(model: AdaptedModel, inputs: tuple[Tensor, ...]) -> Tensor | None:
    """Run the model and compute the attention weights (B, heads, T, T) of its last block."""
    interface = model.interface
    if "qkv" not in interface.linears:
        return None
    path = f"{interface.blocks[-1]}.{interface.linears['qkv']}"
    projection = model.base.get_submodule(live_path(model.base, path))
    attention = model.base.get_submodule(live_path(model.base, path.rpartition(".")[0]))
    num_heads = getattr(attention, "num_heads", None)
    if num_heads is None:
        return None
    seen: dict[str, Any] = {}

    def note_projection(module: nn.Module, given: tuple[Any, ...], result: Tensor) -> None:
        seen["qkv"] = result

    def note_mask(module: nn.Module, given: tuple[Any, ...]) -> None:
        seen["mask"] = given[1] if len(given) > 1 else None

    handles = (
        projection.register_forward_hook(note_projection),
        attention.register_forward_pre_hook(note_mask),
    )
    try:
        model(*inputs)
    finally:
        for handle in handles:
            handle.remove()
    if "qkv" not in seen:
        return None
    batch, tokens, width = seen["qkv"].shape
    q, k, _ = seen["qkv"].float().view(batch, tokens, 3, num_heads, -1).permute(2, 0, 3, 1, 4)
    scores = q @ k.transpose(-1, -2) / (width // 3 // num_heads) ** 0.5
    if seen.get("mask") is not None:
        scores = scores.masked_fill(~seen["mask"], -torch.inf)
    weights: Tensor = scores.softmax(dim=-1)
    return weights
