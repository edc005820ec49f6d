"""Tell from keys and shapes which network of the family a file belongs to, and how large it is."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pcl_clora.models.weights._left_out import method_of

Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Identity:
    """What a file is.

    Attributes:
        model: the id that `create_model` takes, "" for a network this project does not have.
        title: its name in words.
        task: "classification", "part_segmentation", "pretraining", or "" for a backbone without head.
        method: published fine-tuning method whose tensors are in it, "" for none.
        sizes: settings of the model's config that the shapes show; num_heads leaves no trace in them.
    """

    model: str
    title: str
    task: str
    method: str = ""
    sizes: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        words = [self.title]
        if self.task:
            words.append(
                {"part_segmentation": "part segmentation", "pretraining": "pre-training"}.get(
                    self.task, self.task
                )
            )
        if self.method:
            words.append(f"fine-tuned with {self.method}")
        return ", ".join(words)

    def sizes_for(self, task: str) -> dict[str, Any]:
        """Return the settings for a network of a task that is as large as the one in the file."""
        return {name: value for name, value in self.sizes.items() if TASK_SIZES.get(name, task) == task}

    def as_call(self, task: str = "") -> str:
        """Write the call that makes a model of these sizes: create_model("point_mae", embed_dim=48, ...).

        Args:
            task: of the model; that of the file by default.
        """
        if not self.model:
            return ""
        task = task or self.task or "classification"
        if task == "pretraining" and self.model in WITHOUT_PRETRAINING:
            task = "classification"
        shown = {"task": repr(task)} if task != "classification" else {}
        shown |= {name: repr(value) for name, value in self.sizes_for(task).items()}
        return f'create_model("{self.model}", ' + ", ".join(f"{k}={v}" for k, v in shown.items()) + ")"


# Networks whose pre-training files are known, but that have no pre-training form here.
WITHOUT_PRETRAINING = ("act",)

# Settings that only one task has -> the task.
TASK_SIZES = {
    "num_classes": "classification",
    "num_parts": "part_segmentation",
    "propagation_widths": "part_segmentation",
    "segmentation_widths": "part_segmentation",
    "pretraining": "pretraining",
}

# What marks other networks whose files are met beside those of the family -> what they are.
STRANGERS: tuple[tuple[str, str], ...] = (
    (r"^codebook$|^dgcnn_1\.", "a tokenizer (dVAE) of Point-BERT"),
    (r"^(h_encoder|h_decoder|token_prop)\.", "Point-M2AE"),
    (r"^patch_embed\.proj\.", "an image transformer (timm)"),
    (r"^conv1\.weight$|^layer1\.0\.conv", "a convolutional image network"),
    (r"^(sa1|sa_module|sa1\.mlp|feat\.stn)", "PointNet or PointNet++"),
    (r"^encoder\.encoder\.\d+\.\d+\.convs", "PointNeXt (openpoints)"),
    (r"\.mixer\.(A_log|in_proj)", "PointMamba"),
)


def identify(shapes: Shapes, wrappers: Sequence[str] = ()) -> Identity:
    """Tell what a file is.

    Args:
        shapes: official key without wrappers -> shape.
        wrappers: what stood before the keys; ACT's files differ from Point-MAE's in nothing else.
    """
    model, title = _network(shapes, wrappers)
    if not model:
        return Identity("", title, "")
    return Identity(model, title, _task(shapes, wrappers), method_of(shapes), _sizes(shapes))


def _network(shapes: Shapes, wrappers: Sequence[str]) -> tuple[str, str]:
    width = _first(shapes, "norm.weight", "blocks.ln_f.weight", "blocks.blocks.0.norm1.weight")
    if "blocks.layers.0.ln_1.weight" in shapes:
        size = {384: "s", 768: "b", 1024: "l"}.get(width, "s")
        return f"pointgpt_{size}", f"PointGPT-{size.upper()}"
    if "blocks.blocks.0.norm1_contrast.weight" in shapes:
        return "recon", "ReCon with its contrast branch"
    if "reduce_dim.weight" in shapes:
        return "point_bert", "Point-BERT"
    position = shapes.get("pos_embed.0.weight")
    if position is not None and "blocks.blocks.0.norm1.weight" in shapes:
        if position[1] != 3:
            return "pcp_mae", "PCP-MAE"
        if "ACT_encoder." in wrappers or ("label_conv_cls.0.weight" in shapes and not method_of(shapes)):
            return "act", "ACT"
        return "point_mae", "Point-MAE"
    for marks, name in STRANGERS:
        if any(re.search(marks, key) for key in shapes):
            return "", name
    return "", "a network that is not known here"


def _task(shapes: Shapes, wrappers: Sequence[str]) -> str:
    starts = {key.split(".")[0] for key in shapes}
    if starts & {"convs3", "convs3_cls", "dgcnn_pro_1"}:
        return "part_segmentation"
    if any("cls_head_finetune." in key for key in shapes):
        return "classification"
    pretraining = {"MAE_decoder", "mask_token", "lm_head", "cls_head", "transformer_k"}
    # A hub file of PointGPT shows by its missing class token that nothing was fine-tuned yet.
    without_class = "blocks.layers.0.ln_1.weight" in shapes and "cls_token" not in shapes
    if starts & pretraining or "GPT_Transformer." in wrappers or without_class:
        return "pretraining"
    return ""


def _sizes(shapes: Shapes) -> dict[str, Any]:
    """Read settings from shapes; what a file does not show is left out."""
    sizes: dict[str, Any] = {}
    width = _first(shapes, "norm.weight", "blocks.ln_f.weight", "blocks.blocks.0.norm1.weight")
    hidden = _first(shapes, "blocks.blocks.0.mlp.fc1.weight", "blocks.layers.0.mlp.0.weight")
    encoder = _first(shapes, "encoder.second_conv.3.weight")
    classes = _first(
        shapes,
        *(f"{at}cls_head_finetune.{layer}.weight" for at in ("", "blocks.") for layer in (8, 3)),
    )
    depth = _count(shapes, r"blocks\.(?:blocks|layers)\.(\d+)\.")
    generator = _count(shapes, r"generator_blocks\.layers\.(\d+)\.")
    if classes:
        sizes["num_classes"] = classes
    if width:
        sizes["embed_dim"] = width
    if depth:
        sizes["depth"] = depth
    if generator:
        sizes["generator_depth"] = generator
    points = _first(shapes, "generator_blocks.increase_dim.0.weight", "increase_dim.0.weight")
    if points:
        sizes["group_size"] = points // 3  # the networks that put points out show how many a patch has
    if encoder and encoder != width:
        sizes["encoder_dim"] = encoder
    if width and hidden and hidden != 4 * width:
        sizes["mlp_ratio"] = hidden / width
    widths = tuple(
        _first(shapes, f"encoder.{part}.weight") for part in ("first_conv.0", "first_conv.3", "second_conv.0")
    )
    if all(widths) and widths not in ((128, 256, 512), (256, 512, 2048)):
        sizes["encoder_widths"] = widths
    return sizes | _task_sizes(shapes)


def _task_sizes(shapes: Shapes) -> dict[str, Any]:
    """Read settings of heads and decoders, where they are not the published ones."""

    def widths(*keys: str) -> tuple[int, ...]:
        return tuple(
            _first(shapes, f"{key}.weight", f"{key.replace('.', '_cls.', 1)}.weight") for key in keys
        )

    sizes: dict[str, Any] = {}
    decoder = _count(shapes, r"MAE_decoder\.blocks\.(\d+)\.")
    section = {
        "decoder_depth": (decoder, 4),
        "image_dim": (_first(shapes, "img_proj.weight"), 768),
        "text_dim": (_first(shapes, "text_proj.weight"), 512),
    }
    changed = {name: found for name, (found, usual) in section.items() if found not in (0, usual)}
    if changed:
        sizes["pretraining"] = changed
    parts = _first(shapes, "convs3.weight", "convs3_cls.weight")
    if parts:
        sizes["num_parts"] = parts
        propagation = widths("propagation_0.mlp_convs.0", "propagation_0.mlp_convs.1")
        hidden = tuple(_first(shapes, f"{key}.weight", f"{key}_cls.weight") for key in ("convs1", "convs2"))
        if propagation != (1536, 1024):
            sizes["propagation_widths"] = propagation
        if hidden != (512, 256):
            sizes["segmentation_widths"] = hidden
    elif "dgcnn_pro_1.layer1.0.weight" in shapes:
        sizes["num_parts"] = _first(shapes, "conv2.weight")
    return sizes


def _count(shapes: Shapes, pattern: str) -> int:
    """Count numbered parts, as 1 + the largest number; 0 for none."""
    return max((int(fits[1]) + 1 for key in shapes if (fits := re.match(pattern, key))), default=0)


def _first(shapes: Shapes, *keys: str) -> int:
    """First dimension of the first of the keys that is there; 0 for none."""
    return next((int(shapes[key][0]) for key in keys if shapes.get(key)), 0)


def differences(found: Identity, config: object, task: str) -> list[str]:
    """List where a file differs from a model's config: "embed_dim 96 in the file, 48 in the model".

    The number of classes is no difference: a head for other classes is left out.
    """
    listed = []
    for name, value in found.sizes_for(task).items():
        own = getattr(config, name, None)
        if name in TASK_SIZES or own is None:
            continue
        if value != own:
            listed.append(f"{name} {value} in the file, {own} in the model")
    return listed
