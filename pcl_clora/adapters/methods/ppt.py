"""PPT: more patches as prompts, and small MLPs on patches, prompts and all tokens, shared by all blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field, NonNegativeInt, PositiveInt, model_validator
from torch import Tensor, nn

from pcl_clora.adapters.base import Delta
from pcl_clora.adapters.config import AdapterConfig
from pcl_clora.adapters.paths import locate
from pcl_clora.adapters.sequence import (
    PrefixedPooling,
    PublishedConfig,
    SequenceMethod,
    as_split,
    check_split,
    family_head,
    lengthened,
    more_patches,
    on_patches_and_extras,
    outer_layers,
    seen_by_all,
    small_mlp,
)
from pcl_clora.errors import UserValueError
from pcl_clora.models.entry import FileFacts
from pcl_clora.models.interface import ModelInterface, Tokens
from pcl_clora.models.key_map import KeyMap, Rule
from pcl_clora.models.method_files import MethodFiles


class PPTConfig(PublishedConfig):
    """Settings of position-prompt tuning."""

    method: Literal["ppt"] = "ppt"
    width: PositiveInt = 256  # hidden width of the MLPs; 128 in the released part segmentation
    num_extra: NonNegativeInt = 0  # prompts, which are patches of their own; 0 = the backbone's patches again
    extra_size: PositiveInt = Field(32)  # points in a patch of a prompt; read with num_extra only

    @model_validator(mode="after")
    def _all_blocks(self) -> PPTConfig:
        if self.blocks:
            raise UserValueError("ppt's prompts pass through all blocks; leave blocks out.")
        return self


class PPTDelta(Delta):
    """A block with the prompts behind its sequence, and the MLPs before it and beside its own."""

    def __init__(self, method: PPT, interface: ModelInterface, index: int) -> None:
        super().__init__()
        self._method, self.index, self.causal = (method,), index, interface.causal  # a tuple: no owner
        self.is_last = index == len(interface.blocks) - 1 and not interface.takes_category
        self.shifted = method.config.mode == "paper" and interface.takes_category

    def forward(self, block: nn.Module, x: Tensor, pos: Tensor, tokens: Tokens) -> Tensor:
        """(B, T, D) -> (B, T, D), from the last block (B, T + E, D) with the prompts behind."""
        method, length, config = self._method[0], x.shape[1], self._method[0].config
        if self.index:
            extra, extra_pos = tokens.memo["ppt", self.index - 1]
        else:
            extra, extra_pos = more_patches(tokens, config.num_extra, config.extra_size)
        wide = seen_by_all(tokens, length, extra.shape[1], self.causal, x.device)
        x = torch.cat([x + pos, extra + extra_pos], dim=1)
        start = tokens.num_prefix + self.shifted  # the release counts a class token in segmentation too
        sizes = (start, tokens.center.shape[1], extra.shape[1])
        x = on_patches_and_extras(x, sizes, method.on_patches[0], method.on_extra[0])
        halves = as_split(block, "ppt")
        x = halves.attend(x, wide)
        x = halves.feed(x) + method.on_all[0](x)
        tokens.memo["ppt", self.index] = (x[:, length:], extra_pos)
        return x if self.is_last else x[:, :length]


class PromptedDecoding(Delta):
    """The global features of a segmentation head go over patches and prompts."""

    def forward(
        self,
        base_layer: nn.Module,
        gather: Any,
        tokens: Tokens,
        outputs: list[Tensor],
        fetched: Sequence[int],
    ) -> Any:
        """What a segmentation head reads."""
        outputs = lengthened(outputs, {index: tokens.memo["ppt", index][0] for index in fetched})
        found = base_layer(gather, tokens, outputs, fetched)
        pooled = torch.cat([found.features.amax(dim=1), found.features.mean(dim=1)], dim=1)
        return found._replace(features=found.features[:, : tokens.center.shape[1]], pooled=pooled)


def _read_settings(file: FileFacts) -> dict[str, Any]:
    return {"mode": "paper", "width": file.shapes["blocks.prompt_mlp.0.weight"][0]}


class PPT(SequenceMethod):
    """Position-prompt tuning: patches of a second sampling are prompts, with their own positions.

    Before every block x + pos goes through one MLP on the patches and one on the prompts, each added; a third
    one, of all tokens, is added to the block's own: x = x + MLP(LN2 x) + mlp(x). All three are D - 256 - D
    with GELU and are shared by all blocks. The head, with GELU, sees [class token, mean of the patches, mean
    of the prompts]. In part segmentation the prompts are the patches once more, and the head's maximum and
    mean go over both.

    Trained besides: the entry of the patch encoder and the positions' layers. On Point-MAE 675,584 numbers,
    1,042,191 with class token and head of 15 classes; segmentation (width 128) 380,288, with the head
    5,618,994, in paper mode 1,152 fewer. Not mergeable. Not the base at the start. It does not depend on
    batch mates.

    Mended (mode corrected): in segmentation the release counts a class token that is not there, so that the
    first prompt goes through both MLPs and the first patch through none, and it leaves the layer of the
    category random and untrained; frozen BatchNorms stay frozen; any number of patches works, and a batch of
    one.

    Ours (C): prompts are seen by all tokens of a causal backbone and look at one another only.

    Source: Zhang et al., Positional Prompt Tuning for Efficient 3D Representation Learning, 2024, as
    released.
    """

    config_type: ClassVar[type[AdapterConfig]] = PPTConfig
    config: PPTConfig
    released_files = MethodFiles("PPT", r"^blocks\.prompt_all_mlp\.", _read_settings)
    official_keys: KeyMap = KeyMap(
        (
            Rule("blocks.prompt_mlp.", "method.on_patches.0."),
            Rule("blocks.prompt_pos_mlp.", "method.on_extra.0."),
            Rule("blocks.prompt_all_mlp.", "method.on_all.0."),
        )
    )

    def __init__(self, config: AdapterConfig) -> None:
        super().__init__(config)
        self.on_patches, self.on_extra, self.on_all = nn.ModuleList(), nn.ModuleList(), nn.ModuleList()

    def make_deltas(self, model: nn.Module, interface: ModelInterface) -> dict[str, Delta]:
        """Make the MLPs, one delta a block, and what the head reads."""
        blocks, dim, like = self.chosen(interface), interface.embed_dim, next(model.parameters())
        check_split(model, interface, blocks, "ppt")
        if interface.takes_category and self.config.num_extra:
            raise UserValueError(
                "ppt's prompts are the patches once more in part segmentation; leave num_extra out."
            )
        deltas: dict[str, Delta] = (
            {interface.place("decoder"): PromptedDecoding()}
            if interface.takes_category
            else {interface.place("pool"): self._pooling(interface)}
        )
        for mlps in (self.on_patches, self.on_extra, self.on_all):
            mlps.append(small_mlp(dim, self.config.width))
        self.to(like.device, like.dtype)
        return deltas | {interface.blocks[index]: PPTDelta(self, interface, index) for index in blocks}

    def owned_paths(self, model: nn.Module, interface: ModelInterface) -> dict[str, str]:
        """Name what is trained besides; in paper mode not the category's layer of a segmentation head."""
        paths = {**super().owned_paths(model, interface), **outer_layers(interface, "ppt")}
        head = interface.parts["head"][0]
        if self.config.mode == "paper" and interface.takes_category and head in paths:
            why, (owner, leaf) = paths.pop(head), locate(model, head)
            names = [name for name, _ in getattr(owner, leaf).named_children() if name != "label"]
            paths.update({f"{head}.{name}": why for name in names})
        return paths

    def _pooling(self, interface: ModelInterface) -> PrefixedPooling:
        count = self.config.num_extra
        return PrefixedPooling(interface.num_prefix, count, patches="mean", extra_first=False)

    def num_pooled(self, interface: ModelInterface) -> int | None:
        """One more than the backbone, in classification."""
        return None if interface.takes_category else interface.num_pooled + 1

    def make_head(self, model: nn.Module, interface: ModelInterface, num_classes: int) -> nn.Module:
        """Make the head of the release, normal with deviation 0.02 at the start."""
        pooled = self.num_pooled(interface)
        if pooled is None:
            return super().make_head(model, interface, num_classes)
        head = family_head(model, pooled * interface.embed_dim, num_classes, activation=nn.GELU)
        for layer in head.modules():
            if isinstance(layer, nn.Linear):
                nn.init.trunc_normal_(layer.weight, std=0.02)
                nn.init.zeros_(layer.bias)
        return head
