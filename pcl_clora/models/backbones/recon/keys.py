"""What ReCon's official files call the tensors of the network with its contrast branch."""

from __future__ import annotations

from pcl_clora.models.key_map import KeyMap, Rule
from pcl_clora.models.layers.family_keys import (
    DECODER_RULES,
    HEAD_RULES,
    PATCH_EMBED_RULES,
    TRANSFORMER_RULES,
    segmentation_rules,
)

TOKEN_NAMES = ("cls", "img", "text")
_BODY_RULES: tuple[Rule, ...] = (
    *PATCH_EMBED_RULES,
    *TRANSFORMER_RULES,
    *(Rule(f"{name}_{kind}", f"prefix.{name}.{kind}") for name in TOKEN_NAMES for kind in ("token", "pos")),
)
CLASSIFICATION_KEYS = KeyMap(_BODY_RULES + HEAD_RULES)
SEGMENTATION_KEYS = KeyMap(_BODY_RULES + segmentation_rules())
PRETRAINING_KEYS = KeyMap(
    (*_BODY_RULES, *DECODER_RULES, Rule("img_proj.", "img_proj."), Rule("text_proj.", "text_proj."))
)
