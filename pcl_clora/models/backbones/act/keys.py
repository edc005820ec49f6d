"""What ACT's official files call its tensors: Point-MAE's names, but for the part segmentation head."""

from __future__ import annotations

from pcl_clora.models.key_map import KeyMap
from pcl_clora.models.layers.family_keys import PATCH_EMBED_RULES, TRANSFORMER_RULES, segmentation_rules

SEGMENTATION_KEYS = KeyMap(PATCH_EMBED_RULES + TRANSFORMER_RULES + segmentation_rules("_cls"))
