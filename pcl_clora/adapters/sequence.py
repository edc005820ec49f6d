"""What methods share that change the sequence of tokens: further tokens, blocks in two steps, pooling.

Further tokens travel beside the sequence from block to block, in `Tokens.memo`, and stand behind it only
while a block runs. So the backbone keeps the length it knows, whatever a method adds; where they stand is of
no effect, because attention does not know an order. Where a backbone is causal, every token may look at them,
and they look at one another only.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal, cast

import torch
import torch.nn.functional as F
from pydantic import model_validator
from torch import Tensor, nn

from pcl_clora import ops
from pcl_clora.adapters.base import AdapterMethod, Delta
from pcl_clora.adapters.config import LayerwiseConfig
from pcl_clora.adapters.paths import chosen_blocks, locate
from pcl_clora.errors import UserTypeError, UserValueError
from pcl_clora.models.interface import ModelInterface, SplitBlock, Tokens
from pcl_clora.models.layers.heads import ClassificationHead


class PublishedConfig(LayerwiseConfig):
    """Settings of a method that is offered as released and in a mended form."""

    mode: Literal["corrected", "paper"] = "corrected"  # "paper": as the released code computes and trains

    @model_validator(mode="before")
    @classmethod
    def _released_statistics(cls, values: Any) -> Any:
        """In paper mode the BatchNorms of frozen parts run in training mode, as in all released code."""
        if isinstance(values, dict) and values.get("mode") == "paper" and "freeze" not in values:
            return {**values, "freeze": {"norm_stats": "track"}}
        return values


class SequenceMethod(AdapterMethod):
    """A method that needs patches of points and their blocks."""

    mergeable: ClassVar[bool] = False

    def chosen(self, interface: ModelInterface) -> list[int]:
        """List the blocks that it changes.

        Raises:
            ValueError: if the backbone takes images, or does not have a block.
        """
        if interface.input_shape is not None:
            raise UserValueError(
                f"{self.config.method} needs patches of points with centres, and this backbone takes images; "
                "use a method that changes weights only, such as clora or lora."
            )
        blocks = self.config.blocks if isinstance(self.config, LayerwiseConfig) else ()
        return sorted(chosen_blocks(interface, blocks))


class PrefixedPooling(Delta):
    """The head's input where further tokens stand behind the patches.

    Args:
        num_prefix: learned tokens before the patches, whose share of the backbone's own pooling stays.
        extra: what becomes of the further tokens.
        patches: what becomes of the patch tokens.
        num_extra: how many further tokens there are; 0 = as many as patches.
        extra_first: whether they stand before what becomes of the patches.
        prefix: whether the head sees the tokens before the patches.
    """

    def __init__(
        self,
        num_prefix: int,
        num_extra: int,
        *,
        extra: Literal["mean", "none"] = "mean",
        patches: Literal["max", "mean", "none"] = "max",
        extra_first: bool = True,
        prefix: bool = True,
    ) -> None:
        super().__init__()
        self.num_prefix, self.num_extra, self.prefix = num_prefix, num_extra, prefix
        self.extra, self.patches, self.extra_first = extra, patches, extra_first

    def forward(self, base_layer: nn.Module, compute: Any, features: Tensor) -> Tensor:
        """(B, T + E, D) -> (B, num_pooled D): the tokens before the patches, then extra and patches."""
        total = features.shape[1]
        count = self.num_extra or (total - self.num_prefix) // 2
        body, extra = features.tensor_split([total - count], dim=1)
        own: Tensor = base_layer(compute, body)
        dim = features.shape[2]
        before, largest = own[:, : -dim if self.prefix else 0], own[:, -dim:]
        patches = {"max": [largest], "mean": [body[:, self.num_prefix :].mean(dim=1)], "none": []}[
            self.patches
        ]
        further = [extra.mean(dim=1)] if self.extra == "mean" else []
        middle = further + patches if self.extra_first else patches + further
        return torch.cat([before, *middle], dim=1)

    def num_pooled(self, own: int) -> int:
        """Count the features of width D that come out, for a backbone with so many of its own."""
        return (own - 1 if self.prefix else 0) + (self.patches != "none") + (self.extra == "mean")


def as_split(block: nn.Module, method: str) -> SplitBlock:
    """Return a block that runs in two steps.

    Raises:
        TypeError: if it does not.
    """
    if not isinstance(block, SplitBlock):
        raise UserTypeError(
            f"{method} steps in between attention and MLP, but {type(block).__name__} does not run in two "
            "steps, attend() and feed(); give the block these methods, see models/interface.py."
        )
    return block


def check_split(model: nn.Module, interface: ModelInterface, blocks: Collection[int], method: str) -> None:
    """Require that blocks run in two steps, before anything is attached."""
    for index in blocks:
        owner, leaf = locate(model, interface.blocks[index])
        as_split(getattr(owner, leaf), method)


def check_patches(interface: ModelInterface, wanted: int, setting: str, *, further: int = 0) -> None:
    """Require that a cloud has as many patches as a setting asks for, where the backbone says how many.

    Args:
        interface: of the backbone.
        wanted: how many.
        setting: what asks for them, such as "neighbors=20".
        further: tokens that count too.

    Raises:
        ValueError: if it has fewer.
    """
    there = interface.num_patches + further
    if interface.num_patches and wanted > there:
        beside = f", and {further} tokens stand beside them" if further else ""
        raise UserValueError(
            f"{setting} is more than there are: this backbone cuts a cloud into {interface.num_patches} "
            f"patches{beside}; lower it."
        )


def seen_by_all(tokens: Tokens, length: int, extra: int, causal: bool, device: torch.device) -> Tokens:
    """Let every token of a sequence look at `extra` ones behind it, and these at one another.

    Args:
        tokens: what the block would be called with.
        length: tokens without the further ones.
        extra: how many further ones.
        causal: whether a block without a mask looks back only.
        device: of the features.
    """
    mask = tokens.attn_mask
    if mask is None and not causal:
        return tokens
    wide = torch.ones(length + extra, length + extra, dtype=torch.bool, device=device)
    wide[:length, :length] = wide[:length, :length].tril() if mask is None else mask
    wide[length:, :length] = False
    return replace(tokens, attn_mask=wide)


def largest_of_neighbors(t: Tensor, rows: Tensor) -> Tensor:
    """Take the maximum over the neighbours of every patch, channel by channel.

    With a gradient on a CPU the rows of the maxima are found first, without it, so that the backward pass
    writes one value a patch and channel, and not one a neighbour: a sixth of the time. Of equal ones the
    first counts there.

    Args:
        t: (B, G, C).
        rows: (B * G * k,), int64, see `neighbor_rows`.

    Returns:
        (B, G, C).
    """
    flat = t.flatten(0, 1)
    count, width = flat.shape
    if not (t.is_cpu and t.requires_grad and torch.is_grad_enabled()) or torch.compiler.is_compiling():
        return flat.index_select(0, rows).view(count, -1, width).amax(dim=1).view_as(t)
    with torch.no_grad():
        near = flat.index_select(0, rows).view(count, -1, 1, width).permute(0, 3, 1, 2)  # as it is in memory
        _, which = F.adaptive_max_pool2d(near, (1, 1), return_indices=True)
        best = rows.view(count, -1).gather(1, which.view(count, width))
    return flat.gather(0, best).view_as(t)


def small_mlp(dim: int, width: int, out_features: int = 0) -> nn.Sequential:
    """Make an MLP D - width - D with GELU, normal with deviation 0.02 and biases zero at the start."""
    first, second = nn.Linear(dim, width), nn.Linear(width, out_features or dim)
    for layer in (first, second):
        nn.init.trunc_normal_(layer.weight, std=0.02)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(first, nn.GELU(), second)


def on_patches_and_extras(
    x: Tensor, sizes: tuple[int, int, int], on_patches: nn.Module, on_extra: nn.Module
) -> Tensor:
    """Add an MLP's output to the patches, then another one's to the further tokens; out of place.

    Args:
        x: (B, T + E, D).
        sizes: where the patches start, how many they are, and E.
        on_patches: of the patches.
        on_extra: of the last E tokens.
    """
    (start, count, extra), total = sizes, x.shape[1]
    count = min(count, total - start)
    x = x + F.pad(on_patches(x[:, start : start + count]), (0, 0, start, total - start - count))
    return x + F.pad(on_extra(x[:, total - extra :]), (0, 0, total - extra, 0))


def more_patches(tokens: Tokens, count: int, size: int) -> tuple[Tensor, Tensor]:
    """Embed patches of a sampling of their own.

    Args:
        tokens: the sequence as it entered the first block.
        count: how many; 0 takes the sequence's own patches once more.
        size: points in one.

    Returns:
        features and positions, each (B, count, D).

    Raises:
        ValueError: if the pass started behind the grouping, so that there are no points.
    """
    if not count:
        start, end = tokens.num_prefix, tokens.num_prefix + tokens.center.shape[1]
        return tokens.x[:, start:end], tokens.pos[:, start:end]
    if tokens.regroup is None or tokens.embed is None:
        raise UserValueError(
            f"{count} further patches are cut out of the clouds, but this pass started behind their "
            "grouping; run the whole model."
        )
    return tokens.embed(*tokens.regroup(count, size))


def patch_entry(interface: ModelInterface, method: str) -> dict[str, str]:
    """Name the entry of the patch encoder, which some methods train besides: path -> reason.

    Raises:
        ValueError: if the backbone does not name the entry.
    """
    if not interface.patch_entry:
        raise UserValueError(
            f"{method} trains the first layers of the patch encoder, which this backbone does not name; use "
            "a backbone with the small patch encoder, such as point_mae or pointgpt_s."
        )
    return {path: "entry of the patch encoder" for path in interface.patch_entry}


def outer_layers(interface: ModelInterface, method: str) -> dict[str, str]:
    """Name the entry of the patch encoder and the positions' layers, which some methods train besides."""
    positions = {path: "positions" for path in interface.parts.get("pos_embed", ())}
    return {**patch_entry(interface, method), **positions}


def family_head(model: nn.Module, in_features: int, num_classes: int, **more: Any) -> nn.Module:
    """Make the head of Point-MAE, with the sizes of a backbone's settings, whatever its own head is."""
    config = cast(Any, model).config
    sizes = {"width": config.head_width, "dropout": config.head_dropout}
    return ClassificationHead(in_features, num_classes, **sizes, **more)


def lengthened(outputs: Sequence[Tensor], behind: Mapping[int, Tensor]) -> list[Tensor]:
    """Put tokens behind the outputs of some blocks.

    Args:
        outputs: (B, T, D) of every block.
        behind: number of a block -> (B, M, D).
    """
    return [
        torch.cat([output, behind[index]], dim=1) if index in behind else output
        for index, output in enumerate(outputs)
    ]


def neighbor_rows(tokens: Tokens, k: int) -> Tensor:
    """Find the k nearest patches of every patch, itself included, once a cloud.

    Args:
        tokens: the sequence; its memo keeps the answer.
        k: how many.

    Returns:
        (B * G * k,), int64, rows of a tensor (B * G, ...).

    Raises:
        ValueError: if there are fewer patches.
    """
    b, g, _ = tokens.center.shape
    if k > g:
        raise UserValueError(f"neighbors={k} is more than a cloud has patches ({g}); lower it.")
    if ("neighbors", k) not in tokens.memo:
        center = tokens.center.detach()
        center = center if center.dtype == torch.float64 else center.float()  # half precision is not enough
        first = torch.arange(b, device=center.device)[:, None, None] * g
        tokens.memo["neighbors", k] = (ops.knn(center, center, k).idx + first).flatten()
    rows: Tensor = tokens.memo["neighbors", k]
    return rows
