"""PCP-MAE for part segmentation."""

from __future__ import annotations

from pcl_clora.models.backbones.pcp_mae.keys import SEGMENTATION_KEYS
from pcl_clora.models.backbones.pcp_mae.network import PCPMAE
from pcl_clora.models.layers.part_segmentation import PartSegmenter


class PCPMAESegmenter(PartSegmenter, PCPMAE):
    """PCP-MAE for part segmentation.

    Source: Zhang et al., PCP-MAE, NeurIPS 2024, released part segmentation model.
    """

    official_keys = SEGMENTATION_KEYS
