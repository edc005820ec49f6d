"""Tables: what official files put before the names of a network, and what of them is no part of one."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable

from pcl_clora.models.key_map import KeyMap, Rule

# Prefix -> where it comes from. They are taken off one after another, in any order, at the start of a key.
WRAPPERS: dict[str, str] = {
    "module.": "saved from DataParallel",
    "MAE_encoder.": "encoder of a masked autoencoder: Point-MAE, ReCon, PCP-MAE",
    "ACT_encoder.": "encoder of ACT",
    "GPT_Transformer.": "extractor and generator of PointGPT",
    "transformer_q.": "the trained network of Point-BERT, beside its momentum copy transformer_k",
    "base_model.": "a wrapper around a whole network",
    "point_encoder.": "the point network of ACT's own teacher",
    "model.": "this project's adapter files with a whole network inside",
}

# Model -> (wrapper of its official pre-training files, keys that stand outside of it).
_BESIDE_ENCODER = r"(mask_token|MAE_decoder|decoder_pos_embed|increase_dim|pred_pos_proj|(img|text)_proj)\b"
PRETRAINING_WRAPPERS: dict[str, tuple[str, str]] = {
    "point_mae": ("MAE_encoder.", _BESIDE_ENCODER),
    "pcp_mae": ("MAE_encoder.", _BESIDE_ENCODER),
    "recon": ("MAE_encoder.", _BESIDE_ENCODER),
    "point_bert": ("transformer_q.", r"(transformer_k|queue|queue_ptr|dvae)\b"),
    "pointgpt_s": ("GPT_Transformer.", r"$"),
    "pointgpt_b": ("GPT_Transformer.", r"$"),
    "pointgpt_l": ("GPT_Transformer.", r"$"),
}

# Published methods that add to a network or rename its tensors -> keys that only they have. Whatever else
# in such a file has no place in a network is counted as theirs.
METHODS: dict[str, str] = {
    "DAPT": r"\.Adapter_MLP\.|^tfts_",
    "VPT-deep": r"^cls_prompt_list\.",
    "IDPT": r"^blocks\.(cls|dgcnn_cls\d+)\.",
    "PointGST": r"\.gft_adapter\.",
    "PointLoRA": r"\.lora_A$",
    "PPT": r"^blocks\.prompt_all_mlp\.",
    "Point-PEFT": r"\.cp_adapter\.",
    "MoST": r"\.point_monarch\.",
    "GAPrompt": r"^shift_net\.",
}

# Keys that a network may have no place for -> why they are left out. The first that fits decides.
LEFT_OUT: tuple[tuple[str, str], ...] = (
    (r"^transformer_k\.", "momentum copy of the network"),
    (r"^queue(_ptr)?$", "queue of the contrastive loss"),
    (r"^dvae\.", "tokenizer (dVAE) of pre-training"),
    (r"^(img|text)_encoder\.", "frozen teacher of pre-training"),
    (r"^(img|text)_proj(\.|$)", "projection to the teacher's features, used in pre-training only"),
    (
        r"^(MAE_decoder|decoder_pos_embed|increase_dim|lm_head|cls_head|pred_pos_proj|project)\.",
        "used in pre-training only",
    ),
    (r"^mask_(pos_)?token$", "used in pre-training only"),
    (r"^generator_blocks\.", "generator, used by the generation loss only"),
    (r"^blocks\.increase_dim\.", "not used by the published network"),
    (r"_contrast\.|^(img|text)_(token|pos)$", "contrast branch of ReCon, which this model does not have"),
    (r"^(cls_token|cls_pos|sos_pos|blocks\.sos)$", "learned token, which this model does not have"),
    (
        r"^(blocks\.)?cls_head_finetune\.|^(label_conv|propagation_\d|convs\d|bns\d)(_cls)?\."
        r"|^dgcnn_pro_\d\.|^(conv|bn)[12]\.",
        "head of another task",
    ),
)

# Names that some published code gives to the same tensors: (that name, the usual one).
ALIASES = KeyMap(
    (
        Rule("blocks.blocks.*.attn.qkv.linear.", "blocks.blocks.*.attn.qkv."),  # PointLoRA
        Rule("blocks.blocks.*.attn.proj.linear.", "blocks.blocks.*.attn.proj."),
        Rule("label_conv_cls.", "label_conv."),  # ACT's and IDPT's part segmentation
        Rule("propagation_0_cls.", "propagation_0."),
        Rule("convs1_cls.", "convs1."),
        Rule("convs2_cls.", "convs2."),
        Rule("convs3_cls.", "convs3."),
        Rule("bns1_cls.", "bns1."),
        Rule("bns2_cls.", "bns2."),
    ),
    sides=("other", "usual"),
)

_METHODS = {name: re.compile(marks) for name, marks in METHODS.items()}
_LEFT_OUT = tuple((re.compile(marks), reason) for marks, reason in LEFT_OUT)


def unwrap(key: str) -> str:
    """Take all wrappers off a key: module.MAE_encoder.norm.weight -> norm.weight."""
    before = ""
    while key != before:
        before = key
        for wrapper in WRAPPERS:
            key = key.removeprefix(wrapper)
    return key


def wrap(key: str, model: str) -> str:
    """Put the wrapper of a model's official pre-training files before a key, where they have it."""
    wrapper, outside = PRETRAINING_WRAPPERS.get(model, ("", ""))
    return key if not wrapper or re.match(outside, key) else wrapper + key


def wrappers_of(keys: Iterable[str]) -> list[str]:
    """List the wrappers that stand before some of the keys, in the order of the table."""
    seen: set[str] = set()
    for key in keys:
        rest = unwrap(key)
        start = key.removesuffix(rest)
        seen.update(wrapper for wrapper in WRAPPERS if wrapper in start)
    return [wrapper for wrapper in WRAPPERS if wrapper in seen]


def method_of(keys: Iterable[str]) -> str:
    """Name the published fine-tuning method that unwrapped keys belong to; "" for none that is known."""
    listed = list(keys)
    for name, marks in _METHODS.items():
        if any(marks.search(key) for key in listed):
            return name
    return ""


def reason_left_out(key: str, keys: Collection[str], method: str = "") -> str:
    """Say why an unwrapped key has no place in a model.

    Args:
        key: official name without wrappers.
        keys: all unwrapped keys of the file.
        method: what `method_of` says of the file.
    """
    owner, _, leaf = key.rpartition(".")
    if leaf == "weight" and f"{owner}.linear.weight" in keys:
        return "scalar of PointLoRA where the layer's weight used to be, which is under `linear`"
    for marks, reason in _LEFT_OUT:
        if marks.search(key):
            return reason
    return f"part of {method}, which this model does not have" if method else "not part of this model"
