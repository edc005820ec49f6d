"""ACT for part segmentation."""

from __future__ import annotations

from pcl_clora.models.backbones.act.keys import SEGMENTATION_KEYS
from pcl_clora.models.backbones.act.network import ACT
from pcl_clora.models.layers.part_segmentation import PartSegmenter


class ACTSegmenter(PartSegmenter, ACT):
    """ACT for part segmentation: Point-MAE's network; its files call the head by other names.

    Source: Dong et al., ACT, ICLR 2023, released part segmentation model.
    """

    official_keys = SEGMENTATION_KEYS
