"""What PointGPT's official files call its tensors: of S, and of B and L with the large patch encoder."""

from __future__ import annotations

from pcl_clora.models.key_map import KeyMap, Rule
from pcl_clora.models.layers.family_keys import CLASS_TOKEN_RULES, PATCH_EMBED_RULES, segmentation_rules
from pcl_clora.models.layers.hub_keys import hub_head, hub_map, hub_patch_encoder, same_names

_LARGE_PATCH_EMBED_RULES: tuple[Rule, ...] = (
    Rule("encoder.first_conv.0.", "patch_embed.linear0.", conv=True),
    Rule("encoder.first_conv.1.", "patch_embed.norm0."),
    Rule("encoder.first_conv.3.", "patch_embed.linear1.", conv=True),
    Rule("encoder.first_conv.4.", "patch_embed.norm1."),
    Rule("encoder.first_conv.6.", "patch_embed.linear2.", conv=True),
    Rule("encoder.second_conv.0.", "patch_embed.linear3.", conv=True),
    Rule("encoder.second_conv.1.", "patch_embed.norm2."),
    Rule("encoder.second_conv.3.", "patch_embed.linear4.", conv=True),
)


def _block_rules(theirs: str, ours: str) -> tuple[Rule, ...]:
    """Rules for a stack of blocks: multi-head attention of torch there, separate linear layers here."""
    return (
        Rule(f"{theirs}.*.ln_1.", f"{ours}.*.norm1."),
        Rule(f"{theirs}.*.attn.in_proj_weight", f"{ours}.*.attn.qkv.weight"),
        Rule(f"{theirs}.*.attn.in_proj_bias", f"{ours}.*.attn.qkv.bias"),
        Rule(f"{theirs}.*.attn.out_proj.", f"{ours}.*.attn.proj."),
        Rule(f"{theirs}.*.ln_2.", f"{ours}.*.norm2."),
        Rule(f"{theirs}.*.mlp.0.", f"{ours}.*.mlp.fc1."),
        Rule(f"{theirs}.*.mlp.2.", f"{ours}.*.mlp.fc2."),
    )


_BODY_RULES: tuple[Rule, ...] = (
    Rule("sos_pos", "prefix.start_pos"),
    Rule("blocks.sos", "prefix.start"),
    *_block_rules("blocks.layers", "blocks"),
    Rule("blocks.ln_f.", "norm."),
    Rule("blocks.increase_dim.0.", "increase_dim.", conv=True),
    Rule("generator_blocks.sos", "generator.start"),
    *_block_rules("generator_blocks.layers", "generator.blocks"),
    Rule("generator_blocks.ln_f.", "generator.norm."),
    Rule("generator_blocks.increase_dim.0.", "generator.increase_dim.", conv=True),
    Rule("norm.", "feature_norm."),
)
_CLASSIFIER_RULES: tuple[Rule, ...] = (
    *CLASS_TOKEN_RULES,
    Rule("blocks.cls_norm.", "head_norm."),
    Rule("blocks.cls_head_finetune.", "head."),
)
_SEGMENTATION_RULES: tuple[Rule, ...] = CLASS_TOKEN_RULES + segmentation_rules()

CLASSIFICATION_KEYS = KeyMap(PATCH_EMBED_RULES + _BODY_RULES + _CLASSIFIER_RULES)
SEGMENTATION_KEYS = KeyMap(PATCH_EMBED_RULES + _BODY_RULES + _SEGMENTATION_RULES)
PRETRAINING_KEYS = KeyMap(PATCH_EMBED_RULES + _BODY_RULES)
LARGE_CLASSIFICATION_KEYS = KeyMap(_LARGE_PATCH_EMBED_RULES + _BODY_RULES + _CLASSIFIER_RULES)
LARGE_SEGMENTATION_KEYS = KeyMap(_LARGE_PATCH_EMBED_RULES + _BODY_RULES + _SEGMENTATION_RULES)
LARGE_PRETRAINING_KEYS = KeyMap(_LARGE_PATCH_EMBED_RULES + _BODY_RULES)


def _hub_body(official: str, *, large: bool) -> tuple[Rule, ...]:
    """PointGPT's extractor and generator; `blocks.increase_dim` is unused and no hub file has it."""
    return (
        Rule(f"{official}sos_pos", "sos_pos"),
        *hub_patch_encoder(official, large=large),
        *(
            Rule(f"{official}{stack}.layers.*.mlp.{theirs}.", f"{stack}.layers.*.mlp.lins.{ours}.")
            for stack in ("blocks", "generator_blocks")
            for theirs, ours in ((0, 0), (2, 1))
        ),
        *(
            Rule(f"{official}{stack}.increase_dim.0.", f"{stack}.increase_dim.lins.0.", conv=True)
            for stack in ("blocks", "generator_blocks")
        ),
        *(
            rule
            for stack in ("blocks", "generator_blocks")
            for rule in same_names(
                official,
                "",
                f"{stack}.sos",
                f"{stack}.ln_f.",
                f"{stack}.layers.*.ln_1.",
                f"{stack}.layers.*.ln_2.",
                f"{stack}.layers.*.attn.",
            )
        ),
        Rule(f"{official}norm.", "norm."),
    )


_HUB_HEAD = (
    *same_names("", "", "cls_token", "cls_pos"),
    Rule("blocks.cls_norm.", "cls_norm."),
    *hub_head("blocks.cls_head_finetune"),
)
HUB_TABLES: dict[str, KeyMap] = {
    "PointGPT-S pre-training": hub_map(_hub_body("GPT_Transformer.", large=False)),
    "PointGPT-S classification": hub_map((*_hub_body("", large=False), *_HUB_HEAD)),
    "PointGPT-B/L pre-training": hub_map(_hub_body("GPT_Transformer.", large=True)),
    "PointGPT-B/L classification": hub_map((*_hub_body("", large=True), *_HUB_HEAD)),
}
