"""How the torch-pointcloud hub calls the tensors of official files: rules that the families share.

A family's tables map official keys without `module.` to those of the hub, so that they serve any model that
knows its official keys. Linear layers there are the convolutions of size 1 of the official files.
"""

from __future__ import annotations

from pcl_clora.models.key_map import KeyMap, Rule


def hub_patch_encoder(official: str = "", hub: str = "", *, large: bool = False) -> tuple[Rule, ...]:
    """Write the rules of the patch encoder; the `large` one has three layers before the maximum."""
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


def hub_transformer(
    official: str, hub: str, *, blocks: str = "blocks.blocks", norm: str = "norm"
) -> tuple[Rule, ...]:
    """Write the rules of positions, blocks and last norm."""
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


def same_names(official: str, hub: str, *names: str) -> tuple[Rule, ...]:
    """Write rules for names that only their prefixes tell apart."""
    return tuple(Rule(f"{official}{name}", f"{hub}{name}") for name in names)


def hub_head(official: str) -> tuple[Rule, ...]:
    """Write the rules of a classification head of three layers."""
    return (
        *(Rule(f"{official}.{layer}.", f"head.lins.{i}.") for i, layer in enumerate((0, 4, 8))),
        *(Rule(f"{official}.{layer}.", f"head.norms.{i}.module.") for i, layer in enumerate((1, 5))),
    )


HUB_DECODER = (
    Rule("mask_token", "mask_token"),
    Rule("decoder_pos_embed.0.", "decoder_pos_embed.lins.0."),
    Rule("decoder_pos_embed.2.", "decoder_pos_embed.lins.1."),
    *_blocks("MAE_decoder.blocks", "MAE_decoder.blocks"),
    Rule("MAE_decoder.norm.", "MAE_decoder.norm."),
    Rule("increase_dim.0.", "increase_dim.lins.0.", conv=True),
)
HUB_SEGMENTATION_HEAD = (
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


def hub_map(rules: tuple[Rule, ...]) -> KeyMap:
    """Make a table of rules whose second side is the hub's."""
    return KeyMap(rules, sides=("official", "hub"))
