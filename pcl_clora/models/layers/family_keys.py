"""What the official files of the family call the parts that all its networks have; sizes read by these."""

from __future__ import annotations

from typing import Any

from pcl_clora.models.config import Task
from pcl_clora.models.entry import FileFacts
from pcl_clora.models.key_map import LeftOut, Rule

PATCH_EMBED_RULES: tuple[Rule, ...] = (
    Rule("encoder.first_conv.0.", "patch_embed.linear1.", conv=True),
    Rule("encoder.first_conv.1.", "patch_embed.norm1."),
    Rule("encoder.first_conv.3.", "patch_embed.linear2.", conv=True),
    Rule("encoder.second_conv.0.", "patch_embed.linear3.", conv=True),
    Rule("encoder.second_conv.1.", "patch_embed.norm2."),
    Rule("encoder.second_conv.3.", "patch_embed.linear4.", conv=True),
)
TRANSFORMER_RULES: tuple[Rule, ...] = (
    Rule("pos_embed.", "pos_embed."),
    Rule("blocks.blocks.*.", "blocks.*."),
    Rule("norm.", "norm."),
)
CLASS_TOKEN_RULES: tuple[Rule, ...] = (
    Rule("cls_token", "prefix.token"),
    Rule("cls_pos", "prefix.pos"),
)
HEAD_RULES: tuple[Rule, ...] = (Rule("cls_head_finetune.", "head."),)
CLASSIFIER_RULES: tuple[Rule, ...] = CLASS_TOKEN_RULES + HEAD_RULES
DECODER_RULES: tuple[Rule, ...] = (
    Rule("mask_token", "mask_token"),
    Rule("decoder_pos_embed.", "decoder_pos_embed."),
    Rule("MAE_decoder.", "decoder."),
    Rule("increase_dim.0.", "rebuild.", conv=True),
)

PRETRAINING_ONLY = LeftOut("pretraining", "used in pre-training only")
MASKED_AUTOENCODER = {"MAE_encoder.": "encoder of a masked autoencoder: Point-MAE, ReCon, PCP-MAE"}
BESIDE_ENCODER = r"(mask_token|MAE_decoder|decoder_pos_embed|increase_dim|pred_pos_proj|(img|text)_proj)\b"
DECODER_LEFT_OUT = (
    (r"^(MAE_decoder|decoder_pos_embed|increase_dim)\.", PRETRAINING_ONLY),
    (r"^mask_token$", PRETRAINING_ONLY),
)
TRAINED_WITH = {"fps_compat": "pointnet2"}
"""All released weights saw patches whose centres the pointnet2 library had chosen."""


def segmentation_rules(suffix: str = "") -> tuple[Rule, ...]:
    """Say what the official part segmentation files call the parts of `SegmentationHead`.

    Args:
        suffix: what stands behind the first component of their names; "_cls" in the files of ACT.
    """
    propagation = f"propagation_0{suffix}"
    return (
        Rule(f"label_conv{suffix}.0.", "head.label.linear.", conv=True),
        Rule(f"label_conv{suffix}.1.", "head.label.norm."),
        Rule(f"{propagation}.mlp_convs.0.", "head.propagation.linear1.", conv=True),
        Rule(f"{propagation}.mlp_convs.1.", "head.propagation.linear2.", conv=True),
        Rule(f"{propagation}.mlp_bns.0.", "head.propagation.norm1."),
        Rule(f"{propagation}.mlp_bns.1.", "head.propagation.norm2."),
        Rule(f"convs1{suffix}.", "head.linear1.", conv=True),
        Rule(f"bns1{suffix}.", "head.norm1."),
        Rule(f"convs2{suffix}.", "head.linear2.", conv=True),
        Rule(f"bns2{suffix}.", "head.norm2."),
        Rule(f"convs3{suffix}.", "head.linear3.", conv=True),
    )


def is_patch_transformer(file: FileFacts) -> bool:
    """Tell whether a file has the transformer of Point-MAE, whatever its positions are made of."""
    return file.has("pos_embed.0.weight", "blocks.blocks.0.norm1.weight")


def has_coordinate_positions(file: FileFacts) -> bool:
    """Tell whether positions are made from three coordinates, as in Point-MAE."""
    return is_patch_transformer(file) and file.shapes["pos_embed.0.weight"][1] == 3


def read_task(file: FileFacts) -> Task | None:
    """Tell by heads and decoders which task the network in a file has; None for a backbone alone."""
    if file.any(r"^(convs3|convs3_cls|segmentation_head_cls)\."):
        return "part_segmentation"
    if file.any(r"\bcls_head_finetune\."):
        return "classification"
    return "pretraining" if file.any(r"^(MAE_decoder|mask_token|lm_head|cls_head)\b") else None


def read_sizes(file: FileFacts) -> dict[str, Any]:
    """Read settings of `TransformerConfig` from shapes; what is as published is left out, widths excepted."""
    width = file.width("norm.weight", "blocks.blocks.0.norm1.weight")
    encoder = file.width("encoder.second_conv.3.weight")
    hidden = file.width("blocks.blocks.0.mlp.fc1.weight")
    parts = ("first_conv.0", "first_conv.3", "second_conv.0")
    encoder_widths = tuple(file.width(f"encoder.{part}.weight") for part in parts)
    found = {
        "num_classes": file.width("cls_head_finetune.8.weight", "cls_head_finetune.3.weight"),
        "embed_dim": width,
        "depth": file.count(r"blocks\.blocks\.(\d+)\."),
        "group_size": file.width("increase_dim.0.weight") // 3,  # what puts points out shows how many
        "encoder_dim": encoder if encoder != width else 0,
        "mlp_ratio": hidden / width if width and hidden != 4 * width else 0,
        "encoder_widths": encoder_widths if all(encoder_widths) and encoder_widths != (128, 256, 512) else 0,
    }
    return {name: value for name, value in found.items() if value} | segmentation_sizes(file)


def segmentation_sizes(file: FileFacts) -> dict[str, Any]:
    """Read settings of a part segmentation head, where they are not the published ones of Point-MAE."""

    def widths(*names: str) -> tuple[int, ...]:
        return tuple(
            file.width(f"{name}.weight", f"{name.replace('.', '_cls.', 1)}.weight") for name in names
        )

    parts = file.width("convs3.weight", "convs3_cls.weight")
    if not parts:
        own_head = file.width("segmentation_head_cls.cls_head.7.weight")  # a head that a method brings
        return {"num_parts": own_head} if own_head else {}
    propagation = widths("propagation_0.mlp_convs.0", "propagation_0.mlp_convs.1")
    hidden = tuple(file.width(f"{name}.weight", f"{name}_cls.weight") for name in ("convs1", "convs2"))
    sizes: dict[str, Any] = {"num_parts": parts}
    if propagation != (1536, 1024):
        sizes["propagation_widths"] = propagation
    if hidden != (512, 256):
        sizes["segmentation_widths"] = hidden
    return sizes


def pretraining_sizes(file: FileFacts, **usual: tuple[int, int]) -> dict[str, Any]:
    """Read settings of the section `pretraining`: the decoder's depth, and what a network has besides.

    Args:
        file: the file.
        **usual: further settings -> (what the file shows, 0 for nothing; the published value).
    """
    shown = {"decoder_depth": (file.count(r"MAE_decoder\.blocks\.(\d+)\."), 4), **usual}
    changed = {name: found for name, (found, published) in shown.items() if found not in (0, published)}
    return {"pretraining": changed} if changed else {}
