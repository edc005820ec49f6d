"""The part segmentation networks of the backbones: what each has different from `PartSegmenter`."""

from __future__ import annotations

from torch import Tensor, nn

from pcl_clora.models.backbones.act.network import ACT
from pcl_clora.models.backbones.pcp_mae.network import PCPMAE
from pcl_clora.models.backbones.point_mae.network import PATCH_EMBED_RULES, TRANSFORMER_RULES, PointMAE
from pcl_clora.models.backbones.recon.network import TOKEN_NAMES, TOKEN_RULES, ReCon, ReConPlain
from pcl_clora.models.key_map import KeyMap
from pcl_clora.models.layers.part_segmentation import PartSegmenter, segmentation_rules

_SHARED_RULES = PATCH_EMBED_RULES + TRANSFORMER_RULES


class PointMAESegmenter(PartSegmenter, PointMAE):
    """Point-MAE for part segmentation.

    Source: Pang et al., Point-MAE, ECCV 2022, released part segmentation model.
    """

    official_keys = KeyMap(_SHARED_RULES + segmentation_rules())


class ACTSegmenter(PartSegmenter, ACT):
    """ACT for part segmentation: Point-MAE's network; its files call the head by other names.

    Source: Dong et al., ACT, ICLR 2023, released part segmentation model.
    """

    official_keys = KeyMap(_SHARED_RULES + segmentation_rules("_cls"))


class PCPMAESegmenter(PartSegmenter, PCPMAE):
    """PCP-MAE for part segmentation.

    Source: Zhang et al., PCP-MAE, NeurIPS 2024, released part segmentation model.
    """

    official_keys = KeyMap(_SHARED_RULES + segmentation_rules())


class ReConPlainSegmenter(PartSegmenter, ReConPlain):
    """The plain transformer with ReCon's weights, for part segmentation."""

    official_keys = KeyMap(_SHARED_RULES + segmentation_rules())


class ReConSegmenter(PartSegmenter, ReCon):
    """ReCon for part segmentation: the head also sees the maximum over its three tokens.

    Source: Qi et al., ReCon, ICML 2023, released part segmentation model.
    """

    official_keys = KeyMap(_SHARED_RULES + TOKEN_RULES + segmentation_rules())

    def make_prefix(self) -> nn.Module:
        """Build the three learned tokens."""
        return ReCon.make_prefix(self)

    def global_features(self, last: Tensor) -> Tensor:
        """(B, 3 + G, D) -> (B, D), the maximum over class, image and text token, not normalised."""
        return last[:, : len(TOKEN_NAMES)].amax(dim=1)

    def num_extra_features(self) -> int:
        """Width of the maximum over the tokens."""
        return self.config.embed_dim
