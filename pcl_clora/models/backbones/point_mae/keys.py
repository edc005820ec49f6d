"""What Point-MAE's official files call its tensors."""

from __future__ import annotations

from pcl_clora.models.key_map import KeyMap
from pcl_clora.models.layers.family_keys import (
    CLASSIFIER_RULES,
    PATCH_EMBED_RULES,
    TRANSFORMER_RULES,
    segmentation_rules,
)

CLASSIFICATION_KEYS = KeyMap(PATCH_EMBED_RULES + TRANSFORMER_RULES + CLASSIFIER_RULES)
SEGMENTATION_KEYS = KeyMap(PATCH_EMBED_RULES + TRANSFORMER_RULES + segmentation_rules())
