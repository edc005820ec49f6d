"""PointGPT for part segmentation: Point-MAE's head on the blocks of the causal transformer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from pcl_clora.models.backbones.pointgpt.keys import LARGE_SEGMENTATION_KEYS, SEGMENTATION_KEYS
from pcl_clora.models.backbones.pointgpt.network import PointGPT, PointGPTLarge
from pcl_clora.models.interface import ModelInterface, Tokens
from pcl_clora.models.layers.part_segmentation import Fetched, PartSegmenter


class PointGPTSegmenter(PartSegmenter, PointGPT):  # type: ignore[misc]
    """PointGPT for part segmentation, with the small patch encoder.

    The head sees the outputs of three blocks through a norm of their own. Blocks behind the last of them,
    the last norm and the generator change nothing, so they do not run; the released network runs them and
    throws the result away, as `published_form` does.

    Source: Chen et al., PointGPT, NeurIPS 2023, released part segmentation model.
    """

    official_keys = SEGMENTATION_KEYS
    keeps_prefix = True

    def make_head_norm(self) -> nn.Module:
        """Build nothing: the head pools no class token."""
        return nn.Identity()

    def describe_parts(self, tokens: tuple[str, ...], unused: tuple[str, ...]) -> ModelInterface:
        """Make the interface: the class token is new in fine-tuning, and the head has a norm of its own."""
        shared = super().describe_parts(("prefix.token", "prefix.pos"), ("norm", "increase_dim", "generator"))
        norms = tuple(name for name in shared.parts["norms"] if name.startswith("blocks."))
        parts = {**shared.parts, "norms": (*norms, "feature_norm")}
        return replace(shared, parts=parts, places={"norm": "feature_norm", "decoder": "decoding"})

    def num_run(self) -> int:
        """Count the blocks that run."""
        return len(self.blocks) if self.published else super().num_run()

    def gather(self, tokens: Tokens, outputs: list[Tensor], fetched: Sequence[int]) -> Fetched:
        """Put side by side what the head looks at."""
        if self.published:
            self.generate(self.norm(outputs[-1]), tokens.center)
        found = [self.feature_norm(outputs[number][:, tokens.num_prefix :]) for number in fetched]
        return Fetched(tokens.center, torch.cat(found, dim=-1), None)


class PointGPTLargeSegmenter(PointGPTSegmenter, PointGPTLarge):  # type: ignore[misc]
    """PointGPT for part segmentation, with the large patch encoder of B and L.

    Source: as `PointGPTSegmenter`.
    """

    official_keys = LARGE_SEGMENTATION_KEYS
