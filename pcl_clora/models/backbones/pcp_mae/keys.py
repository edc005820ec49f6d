"""What PCP-MAE's official files call its tensors: Point-MAE's names, and more in pre-training."""

from __future__ import annotations

from pcl_clora.models.key_map import KeyMap, Rule
from pcl_clora.models.layers.family_keys import (
    CLASSIFIER_RULES,
    DECODER_RULES,
    PATCH_EMBED_RULES,
    TRANSFORMER_RULES,
    segmentation_rules,
)

_BODY_RULES = PATCH_EMBED_RULES + TRANSFORMER_RULES
CLASSIFICATION_KEYS = KeyMap(_BODY_RULES + CLASSIFIER_RULES)
SEGMENTATION_KEYS = KeyMap(_BODY_RULES + segmentation_rules())
PRETRAINING_KEYS = KeyMap(
    (
        *_BODY_RULES,
        *DECODER_RULES,
        Rule("mask_pos_token", "mask_pos_token"),
        Rule("pred_pos_proj.", "predict_pos."),
    )
)
