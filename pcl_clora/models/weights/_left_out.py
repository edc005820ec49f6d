"""Tables: what official files put before the names of a network, and what of them is no part of one."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from functools import cache

from pcl_clora.models.entry import BackboneEntry
from pcl_clora.models.key_map import KeyMap, LeftOut, Rule
from pcl_clora.models.method_files import title_of
from pcl_clora.models.registry import entries, find_entry

# Prefix -> where it comes from, beside those of the backbones' own files. They are taken off one after
# another, in any order, at the start of a key.
WRAPPERS: dict[str, str] = {
    "module.": "saved from DataParallel",
    "base_model.": "a wrapper around a whole network",
    "model.": "this project's adapter files with a whole network inside",
}

# Published methods that are not offered here and add to a network or rename its tensors -> keys that only
# they have. Whatever else in such a file has no place in a network is counted as theirs.
OTHER_METHODS: dict[str, str] = {
    "MoST": r"\.point_monarch\.",
    "GAPrompt": r"^shift_net\.",
}

# Keys of any network that another may have no place for -> why they are left out.
LEFT_OUT: tuple[tuple[str, LeftOut], ...] = (
    (r"^(cls_token|cls_pos)$", LeftOut("token", "learned token, which this model does not have")),
    (
        r"^(blocks\.)?cls_(head_finetune|norm)\.|^(label_conv|propagation_\d|convs\d|bns\d)(_cls)?\."
        r"|^dgcnn_pro_\d\.|^(conv|bn)[12]\.",
        LeftOut("head", "head of another task"),
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

SECOND_NAME = LeftOut("second", "another name of a tensor that is read")

_OTHERS = {name: re.compile(marks) for name, marks in OTHER_METHODS.items()}


@cache
def _wrappers(known: tuple[BackboneEntry, ...]) -> dict[str, str]:
    return WRAPPERS | {
        wrapper: origin for entry in known if entry.files for wrapper, origin in entry.files.wrappers.items()
    }


@cache
def _reasons(known: tuple[BackboneEntry, ...]) -> tuple[tuple[re.Pattern[str], LeftOut], ...]:
    of_entries = (reason for entry in known if entry.files for reason in entry.files.left_out)
    return tuple((re.compile(marks), reason) for marks, reason in dict.fromkeys((*of_entries, *LEFT_OUT)))


def all_wrappers() -> dict[str, str]:
    """List what may stand before keys: prefix -> where it comes from."""
    return _wrappers(entries())


def unwrap(key: str) -> str:
    """Take all wrappers off a key: module.MAE_encoder.norm.weight -> norm.weight."""
    before = ""
    while key != before:
        before = key
        for wrapper in all_wrappers():
            key = key.removeprefix(wrapper)
    return key


def wrap(key: str, model: str) -> str:
    """Put the wrapper of a model's official pre-training files before a key, where they have it."""
    entry = find_entry(model)
    if entry is None or entry.files is None or re.match(entry.files.beside, key):
        return key
    return next(iter(entry.files.wrappers), "") + key


def wrappers_of(keys: Iterable[str]) -> list[str]:
    """List the wrappers that stand before some of the keys, in the order of the table."""
    seen: set[str] = set()
    for key in keys:
        rest = unwrap(key)
        start = key.removesuffix(rest)
        seen.update(wrapper for wrapper in all_wrappers() if wrapper in start)
    return [wrapper for wrapper in all_wrappers() if wrapper in seen]


def method_of(keys: Iterable[str]) -> str:
    """Name the published fine-tuning method that unwrapped keys belong to; "" for none that is known."""
    listed = list(keys)
    others = (name for name, marks in _OTHERS.items() if any(marks.search(key) for key in listed))
    return title_of(listed) or next(others, "")


def reason_left_out(key: str, keys: Collection[str], method: str = "") -> LeftOut:
    """Say why an unwrapped key has no place in a model.

    Args:
        key: official name without wrappers.
        keys: all unwrapped keys of the file.
        method: what `method_of` says of the file.
    """
    owner, _, leaf = key.rpartition(".")
    if leaf == "weight" and f"{owner}.linear.weight" in keys:
        return LeftOut(
            "scalar", "scalar of PointLoRA where the layer's weight used to be, which is under `linear`"
        )
    for marks, reason in _reasons(entries()):
        if marks.search(key):
            return reason
    if method:
        return LeftOut("method", f"part of {method}, which this model does not have")
    return LeftOut("unknown", "not part of this model")
