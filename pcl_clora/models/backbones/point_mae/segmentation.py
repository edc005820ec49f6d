"""Point-MAE for part segmentation."""

from __future__ import annotations

from pcl_clora.models.backbones.point_mae.keys import SEGMENTATION_KEYS
from pcl_clora.models.backbones.point_mae.network import PointMAE
from pcl_clora.models.layers.part_segmentation import PartSegmenter


class PointMAESegmenter(PartSegmenter, PointMAE):
    """Point-MAE for part segmentation.

    Source: Pang et al., Point-MAE, ECCV 2022, released part segmentation model.
    """

    official_keys = SEGMENTATION_KEYS
