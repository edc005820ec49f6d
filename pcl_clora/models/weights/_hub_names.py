"""How the torch-pointcloud hub calls the tensors of official files: one table a kind of file.

Every table maps official keys without `module.` to those of the hub, so that it serves any model that knows
its official keys. Their linear layers are the convolutions of size 1 of the official files.
"""

from __future__ import annotations

from collections.abc import Iterable

from pcl_clora.models.key_map import KeyMap, Rule


def _patch_encoder(official: str = "", hub: str = "", *, large: bool = False) -> tuple[Rule, ...]:
    """Rules of the patch encoder; the `large` one of PointGPT B and L has three layers before the maximum."""
    first = ("0", "3", "6") if large else ("0", "3")
    norms = ("1", "4") if large else ("1",)
    local, whole = f"{hub}encoder.local_mlp", f"{hub}encoder.global_mlp"
    return (
        *(
            Rule(f"{official}encoder.first_conv.{theirs}.", f"{local}.lins.{i}.", conv=True)
            for i, theirs in enumerate(first)
        ),
        *(
            Rule(f"{official}encoder.first_conv.{theirs}.", f"{local}.norms.{i}.module.")
            for i, theirs in enumerate(norms)
        ),
        Rule(f"{official}encoder.second_conv.0.", f"{whole}.lins.0.", conv=True),
        Rule(f"{official}encoder.second_conv.1.", f"{whole}.norms.0.module."),
        Rule(f"{official}encoder.second_conv.3.", f"{whole}.lins.1.", conv=True),
    )


def _transformer(
    official: str, hub: str, *, blocks: str = "blocks.blocks", norm: str = "norm"
) -> tuple[Rule, ...]:
    return (
        Rule(f"{official}pos_embed.0.", f"{hub}pos_embed.lins.0."),
        Rule(f"{official}pos_embed.2.", f"{hub}pos_embed.lins.1."),
        *_blocks(f"{official}blocks.blocks", f"{hub}{blocks}"),
        Rule(f"{official}norm.", f"{hub}{norm}."),
    )


def _blocks(official: str, hub: str) -> tuple[Rule, ...]:
    return (
        Rule(f"{official}.*.mlp.fc1.", f"{hub}.*.mlp.lins.0."),
        Rule(f"{official}.*.mlp.fc2.", f"{hub}.*.mlp.lins.1."),
        *(Rule(f"{official}.*.{part}.", f"{hub}.*.{part}.") for part in ("norm1", "norm2", "attn")),
    )


def _same(official: str, hub: str, *names: str) -> tuple[Rule, ...]:
    return tuple(Rule(f"{official}{name}", f"{hub}{name}") for name in names)


def _head(official: str) -> tuple[Rule, ...]:
    return (
        *(Rule(f"{official}.{layer}.", f"head.lins.{i}.") for i, layer in enumerate((0, 4, 8))),
        *(Rule(f"{official}.{layer}.", f"head.norms.{i}.module.") for i, layer in enumerate((1, 5))),
    )


_DECODER = (
    Rule("mask_token", "mask_token"),
    Rule("decoder_pos_embed.0.", "decoder_pos_embed.lins.0."),
    Rule("decoder_pos_embed.2.", "decoder_pos_embed.lins.1."),
    *_blocks("MAE_decoder.blocks", "MAE_decoder.blocks"),
    Rule("MAE_decoder.norm.", "MAE_decoder.norm."),
    Rule("increase_dim.0.", "increase_dim.lins.0.", conv=True),
)
_SEGMENTATION_HEAD = (
    Rule("label_conv.0.", "label_conv.lins.0.", conv=True),
    Rule("label_conv.1.", "label_conv.norms.0.module."),
    Rule("propagation_0.mlp_convs.*.", "propagation_0.mlp.lins.*.", conv=True),
    Rule("propagation_0.mlp_bns.*.", "propagation_0.mlp.norms.*.module."),
    Rule("convs1.", "head.lins.0.", conv=True),
    Rule("convs2.", "head.lins.1.", conv=True),
    Rule("convs3.", "head.lins.2.", conv=True),
    Rule("bns1.", "head.norms.0.module."),
    Rule("bns2.", "head.norms.1.module."),
)


def _point_gpt(official: str, *, large: bool) -> tuple[Rule, ...]:
    """PointGPT's extractor and generator; `blocks.increase_dim` is unused and no hub file has it."""
    return (
        Rule(f"{official}sos_pos", "sos_pos"),
        *_patch_encoder(official, large=large),
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
            for rule in _same(
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


_POINT_GPT_HEAD = (
    *_same("", "", "cls_token", "cls_pos"),
    Rule("blocks.cls_norm.", "cls_norm."),
    *_head("blocks.cls_head_finetune"),
)


def _hub_map(rules: tuple[Rule, ...]) -> KeyMap:
    return KeyMap(rules, sides=("official", "hub"))


# Kind of file -> official keys <-> hub keys. A kind is recognised by how many keys it translates.
HUB_TABLES: dict[str, KeyMap] = {
    "Point-MAE pre-training": _hub_map(
        (
            *_patch_encoder("MAE_encoder.", "MAE_encoder."),
            *_transformer("MAE_encoder.", "MAE_encoder."),
            *_DECODER,
        )
    ),
    "Point-MAE classification": _hub_map(
        (
            *_same("", "", "cls_token", "cls_pos"),
            *_patch_encoder(),
            *_transformer("", "", norm="norm_f"),
            *_head("cls_head_finetune"),
        )
    ),
    "Point-MAE part segmentation": _hub_map(
        (*_patch_encoder(), *_transformer("", "", norm="norm_f"), *_SEGMENTATION_HEAD)
    ),
    "Point-BERT pre-training": _hub_map(
        (
            *_same("transformer_q.", "", "cls_token", "cls_pos", "mask_token", "reduce_dim.", "lm_head."),
            *_patch_encoder("transformer_q."),
            *_transformer("transformer_q.", "", blocks="blocks"),
            Rule("transformer_q.cls_head.0.", "cls_head.lins.0."),
            Rule("transformer_q.cls_head.2.", "cls_head.lins.1."),
        )
    ),
    "Point-BERT classification": _hub_map(
        (
            *_same("", "encoder.", "cls_token", "cls_pos", "reduce_dim."),
            *_patch_encoder("", "encoder."),
            *_transformer("", "encoder.", blocks="blocks"),
            Rule("cls_head_finetune.0.", "head.lins.0."),
            Rule("cls_head_finetune.3.", "head.lins.1."),
        )
    ),
    "PointGPT-S pre-training": _hub_map(_point_gpt("GPT_Transformer.", large=False)),
    "PointGPT-S classification": _hub_map((*_point_gpt("", large=False), *_POINT_GPT_HEAD)),
    "PointGPT-B/L pre-training": _hub_map(_point_gpt("GPT_Transformer.", large=True)),
    "PointGPT-B/L classification": _hub_map((*_point_gpt("", large=True), *_POINT_GPT_HEAD)),
}


def hub_table_of(keys: Iterable[str], *, naming: str) -> tuple[str, KeyMap] | None:
    """Find the table that fits a file.

    Args:
        keys: the keys of the file, official ones without `module.`.
        naming: "hub" or "official", what the keys are.

    Returns:
        (kind of file, its table), or None where none translates nine keys in ten.
    """
    listed = list(keys)
    if naming == "hub" and not any(".lins." in key for key in listed):
        return None
    other = "official" if naming == "hub" else "hub"
    best: tuple[int, str] = (0, "")
    for kind, table in HUB_TABLES.items():
        known = sum(table.translate(key, to=other) is not None for key in listed)
        best = max(best, (known, kind), key=lambda pair: pair[0])
    count, kind = best
    return (kind, HUB_TABLES[kind]) if listed and count >= 0.9 * len(listed) else None
