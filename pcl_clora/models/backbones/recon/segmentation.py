"""ReCon for part segmentation, in both senses."""

from __future__ import annotations

from torch import Tensor

from pcl_clora.models.backbones.point_mae.keys import SEGMENTATION_KEYS as PLAIN_KEYS
from pcl_clora.models.backbones.recon.keys import SEGMENTATION_KEYS, TOKEN_NAMES
from pcl_clora.models.backbones.recon.network import ReCon, ReConPlain
from pcl_clora.models.layers.part_segmentation import PartSegmenter


class ReConPlainSegmenter(PartSegmenter, ReConPlain):
    """The plain transformer with ReCon's weights, for part segmentation."""

    official_keys = PLAIN_KEYS


class ReConSegmenter(PartSegmenter, ReCon):
    """ReCon for part segmentation: the head also sees the maximum over its three tokens.

    Source: Qi et al., ReCon, ICML 2023, released part segmentation model.
    """

    official_keys = SEGMENTATION_KEYS
    keeps_prefix = True

    def global_features(self, last: Tensor) -> Tensor:
        """(B, 3 + G, D) -> (B, D), the maximum over class, image and text token, not normalised."""
        return last[:, : len(TOKEN_NAMES)].amax(dim=1)

    def num_extra_features(self) -> int:
        """Width of the maximum over the tokens."""
        return self.config.embed_dim
