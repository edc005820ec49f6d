"""What Point-MAE's official files call its tensors."""

from __future__ import annotations

from pcl_clora.models.key_map import KeyMap, Rule
from pcl_clora.models.layers.family_keys import (
    CLASSIFIER_RULES,
    PATCH_EMBED_RULES,
    TRANSFORMER_RULES,
    segmentation_rules,
)
from pcl_clora.models.layers.hub_keys import (
    HUB_DECODER,
    HUB_SEGMENTATION_HEAD,
    hub_head,
    hub_map,
    hub_patch_encoder,
    hub_transformer,
    same_names,
)

_NETWORK_RULES = (*PATCH_EMBED_RULES, *TRANSFORMER_RULES, Rule("reduce_dim.", "reduce_dim."))  # encoder_dim
CLASSIFICATION_KEYS = KeyMap(_NETWORK_RULES + CLASSIFIER_RULES)
SEGMENTATION_KEYS = KeyMap(_NETWORK_RULES + segmentation_rules())
HUB_TABLES: dict[str, KeyMap] = {
    "Point-MAE pre-training": hub_map(
        (
            *hub_patch_encoder("MAE_encoder.", "MAE_encoder."),
            *hub_transformer("MAE_encoder.", "MAE_encoder."),
            *HUB_DECODER,
        )
    ),
    "Point-MAE classification": hub_map(
        (
            *same_names("", "", "cls_token", "cls_pos"),
            *hub_patch_encoder(),
            *hub_transformer("", "", norm="norm_f"),
            *hub_head("cls_head_finetune"),
        )
    ),
    "Point-MAE part segmentation": hub_map(
        (*hub_patch_encoder(), *hub_transformer("", "", norm="norm_f"), *HUB_SEGMENTATION_HEAD)
    ),
}
