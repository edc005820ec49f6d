"""What Point-BERT's official files call its tensors."""

from __future__ import annotations

from pcl_clora.models.key_map import KeyMap, Rule
from pcl_clora.models.layers.family_keys import (
    CLASS_TOKEN_RULES,
    CLASSIFIER_RULES,
    PATCH_EMBED_RULES,
    TRANSFORMER_RULES,
)
from pcl_clora.models.layers.hub_keys import hub_map, hub_patch_encoder, hub_transformer, same_names

_BODY_RULES: tuple[Rule, ...] = (
    *PATCH_EMBED_RULES,
    Rule("reduce_dim.", "reduce_dim."),
    *TRANSFORMER_RULES,
)
_TOKENIZER_RULES: tuple[Rule, ...] = (
    *(Rule(f"dvae.{rule.first}", f"tokenizer.{rule.second}", conv=rule.conv) for rule in PATCH_EMBED_RULES),
    Rule("dvae.dgcnn_1.input_trans.", "tokenizer.reduce.", conv=1),
    *(
        rule
        for layer in (1, 2, 3, 4)
        for rule in (
            Rule(f"dvae.dgcnn_1.layer{layer}.0.", f"tokenizer.edges.{layer - 1}.linear.", conv=2),
            Rule(f"dvae.dgcnn_1.layer{layer}.1.", f"tokenizer.edges.{layer - 1}.norm."),
        )
    ),
    Rule("dvae.dgcnn_1.layer5.0.", "tokenizer.vocabulary.", conv=1),
    Rule("dvae.dgcnn_1.layer5.1.", "tokenizer.norm."),
)


def _propagation_rules(number: int) -> tuple[Rule, ...]:
    theirs, ours = f"propagation_{number}", f"head.propagation{number}"
    return (
        Rule(f"{theirs}.mlp_convs.0.", f"{ours}.linear1.", conv=True),
        Rule(f"{theirs}.mlp_convs.1.", f"{ours}.linear2.", conv=True),
        Rule(f"{theirs}.mlp_bns.0.", f"{ours}.norm1."),
        Rule(f"{theirs}.mlp_bns.1.", f"{ours}.norm2."),
    )


def _graph_rules(number: int) -> tuple[Rule, ...]:
    theirs, ours = f"dgcnn_pro_{number}", f"head.graph{number}"
    return tuple(
        Rule(f"{theirs}.layer{layer}.{index}.", f"{ours}.layer{layer}.{part}.", conv=2 * (index == 0))
        for layer in (1, 2)
        for index, part in enumerate(("linear", "norm"))
    )


_SEGMENTATION_RULES: tuple[Rule, ...] = (
    *(rule for number in (2, 1, 0) for rule in _propagation_rules(number)),
    *(rule for number in (1, 2) for rule in _graph_rules(number)),
    Rule("conv1.", "head.linear1.", conv=True),
    Rule("bn1.", "head.norm1."),
    Rule("conv2.", "head.linear2.", conv=True),
)

CLASSIFICATION_KEYS = KeyMap(_BODY_RULES + CLASSIFIER_RULES)
SEGMENTATION_KEYS = KeyMap(_BODY_RULES + CLASS_TOKEN_RULES + _SEGMENTATION_RULES)
PRETRAINING_KEYS = KeyMap(
    (
        *_BODY_RULES,
        *CLASS_TOKEN_RULES,
        Rule("mask_token", "mask_token"),
        Rule("lm_head.", "token_head."),
        Rule("cls_head.", "contrast_head."),
        *_TOKENIZER_RULES,
    )
)
HUB_TABLES: dict[str, KeyMap] = {
    "Point-BERT pre-training": hub_map(
        (
            *same_names(
                "transformer_q.", "", "cls_token", "cls_pos", "mask_token", "reduce_dim.", "lm_head."
            ),
            *hub_patch_encoder("transformer_q."),
            *hub_transformer("transformer_q.", "", blocks="blocks"),
            Rule("transformer_q.cls_head.0.", "cls_head.lins.0."),
            Rule("transformer_q.cls_head.2.", "cls_head.lins.1."),
        )
    ),
    "Point-BERT classification": hub_map(
        (
            *same_names("", "encoder.", "cls_token", "cls_pos", "reduce_dim."),
            *hub_patch_encoder("", "encoder."),
            *hub_transformer("", "encoder.", blocks="blocks"),
            Rule("cls_head_finetune.0.", "head.lins.0."),
            Rule("cls_head_finetune.3.", "head.lins.1."),
        )
    ),
}
