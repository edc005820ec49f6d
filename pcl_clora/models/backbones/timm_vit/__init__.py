"""Vision transformers of timm, whose files timm itself loads."""

from __future__ import annotations

from pcl_clora.models.backbones.timm_vit.network import PREFIX, TimmConfig, TimmViT, list_timm_models
from pcl_clora.models.entry import BackboneEntry, Variants

ENTRIES = (
    BackboneEntry(
        "timm",
        "an image transformer (timm)",
        TimmConfig,
        {"classification": TimmViT},
        variants=Variants(PREFIX, "architecture", list_timm_models),
    ),
)
