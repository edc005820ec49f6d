"""See how a model looks at a cloud, patches and attention, while it answers. Its outputs stay as they are."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


@contextmanager
def watching(model: AdaptedModel) -> Iterator[Callable[[Tensor], Look]]:
    """Follow a forward pass of one cloud inside the context.

    The attention is computed a second time from the queries and keys of the last block that runs, adapters
    included, because the fast path does not keep it.

    Args:
        model: in evaluation mode.

    Yields:
        What turns the points (N, 3) that the model was given into a `Look`, once the pass is over.

    Raises:
        ValueError: if the model does not cut clouds into patches.
    """
    if not hasattr(model.base, "tokenize"):
        raise UserValueError(
            f"{type(model.base).__name__} does not cut clouds into patches; there is nothing to show."
        )
    interface, seen = model.interface, dict[str, Any]()

    def module(path: str) -> nn.Module:
        return model.base.get_submodule(live_path(model.base, path))

    def note_tokens(_: nn.Module, given: tuple[Any, ...]) -> None:
        seen["center"] = given[2].center

    def note_mask(_: nn.Module, given: tuple[Any, ...]) -> None:
        seen["mask"] = given[1] if len(given) > 1 else None

    def note_projection(_: nn.Module, given: tuple[Any, ...], result: Tensor) -> None:
        seen["qkv"] = result

    handles = [module(interface.blocks[-1]).register_forward_pre_hook(note_tokens)]
    if "qkv" in interface.linears:
        path = f"{interface.blocks[-1]}.{interface.linears['qkv']}"
        attention = module(path.rpartition(".")[0])
        seen["num_heads"] = getattr(attention, "num_heads", None)
        handles.append(attention.register_forward_pre_hook(note_mask))
        handles.append(module(path).register_forward_hook(note_projection))
    try:
        yield lambda points: _look(points, seen)
    finally:
        for handle in handles:
            handle.remove()


@torch.inference_mode()
def _look(points: Tensor, seen: dict[str, Any]) -> Look:
    center = seen["center"][0]
    patch = ops.knn(center[None], points[None], 1).idx[0, :, 0]
    if "qkv" not in seen or seen["num_heads"] is None:
        return Look(center, patch, None, False)
    weights = _attention(seen["qkv"], seen["num_heads"], seen.get("mask"))
    num_prefix = weights.shape[-1] - len(center)
    rows = weights[0, :, :1] if num_prefix else weights[0]
    return Look(center, patch, rows.mean(dim=(0, 1))[num_prefix:] * len(center), num_prefix > 0)


def _attention(qkv: Tensor, num_heads: int, mask: Tensor | None) -> Tensor:
    """Compute attention weights (B, heads, T, T) from what a block projects, (B, T, 3 D)."""
    batch, tokens, width = qkv.shape
    q, k, _ = qkv.float().view(batch, tokens, 3, num_heads, -1).permute(2, 0, 3, 1, 4)
    scores = q @ k.transpose(-1, -2) / (width // 3 // num_heads) ** 0.5
    weights: Tensor = (scores if mask is None else scores.masked_fill(~mask, -torch.inf)).softmax(dim=-1)
    return weights
