"""Tell from keys and shapes which network of the family a file belongs to, and how large it is."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pcl_clora.models.entry import BackboneEntry, FileFacts, Shapes
from pcl_clora.models.method_files import find_method
from pcl_clora.models.registry import entries, find_entry
from pcl_clora.models.weights._left_out import method_of


@dataclass(frozen=True)
class Identity:
    """What a file is.

    Attributes:
        model: the id that `create_model` takes, "" for a network this project does not have.
        title: its name in words.
        task: "classification", "part_segmentation", "pretraining", or "" for a backbone without head.
        method: published fine-tuning method whose tensors are in it, "" for none.
        adapter: settings of that method that the shapes show, with its name as `method`; empty if it is not
            offered here. What leaves no trace is not among them.
        sizes: settings of the model's config that the shapes show; num_heads leaves no trace in them.
    """

    model: str
    title: str
    task: str
    method: str = ""
    sizes: Mapping[str, Any] = field(default_factory=dict)
    adapter: Mapping[str, Any] = field(default_factory=dict)

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
        task, entry = task or self.task or "classification", find_entry(self.model)
        if entry is not None and task not in entry.tasks:
            task = "classification"
        shown = {"task": repr(task)} if task != "classification" else {}
        shown |= {name: repr(value) for name, value in self.sizes_for(task).items()}
        return f'create_model("{self.model}", ' + ", ".join(f"{k}={v}" for k, v in shown.items()) + ")"


TRAINED_WITH = "trained_with"  # entry of a file beside its tensors: settings as json, see `trained_with`

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
    file = FileFacts(shapes, wrappers, method_of(shapes))
    entry = recognise(file)
    if entry is not None and entry.files is not None:
        task, sizes = entry.files.task(file), entry.files.sizes(file)
        return Identity(entry.name, entry.title, task or "", file.method, sizes, _adapter(file))
    strangers = (name for marks, name in STRANGERS if file.any(marks))
    return Identity("", next(strangers, "a network that is not known here"), "")


def _adapter(file: FileFacts) -> dict[str, Any]:
    found = find_method(file.method)
    if found is None:
        return {}
    try:
        return {"method": found[0], **found[1].settings(file)}
    except (LookupError, ValueError, ArithmeticError):  # a part of a file, which does not show them
        return {"method": found[0]}


def recognise(file: FileFacts) -> BackboneEntry | None:
    """Find the backbone that a file is of; None for a network of nobody here."""
    fitting = [entry for entry in entries() if entry.files is not None and entry.files.are(file)]
    outdone = {name for entry in fitting if entry.files for name in entry.files.rather_than}
    return next((entry for entry in fitting if entry.name not in outdone), None)


def trained_with(identity: Identity, naming: str, extras: Mapping[str, Any]) -> dict[str, Any]:
    """Say which settings the weights of a file were trained with, as far as a model must share them.

    A file of this project says it itself or it is not known; of others, the backbone's entry says it.

    Args:
        identity: what the file is.
        naming: "native", "official" or "hub", how its keys are called.
        extras: what stands in the file beside its tensors.
    """
    told = {**extras, **read_json(extras.get("header"))}  # safetensors files of ours have one entry
    if isinstance(told.get("base_model"), dict):  # an adapter file
        return dict(told["base_model"])
    recorded = read_json(told.get(TRAINED_WITH))
    ours = naming == "native" or str(told.get("format", "")).startswith("pcl_clora.")
    if recorded or ours:
        return recorded
    entry = find_entry(identity.model)
    return dict(entry.files.trained_with) if entry is not None and entry.files is not None else {}


def read_json(text: object) -> dict[str, Any]:
    """Read an entry beside tensors: json text of a mapping, or a mapping; empty for anything else."""
    if isinstance(text, dict):
        return text
    try:
        content = json.loads(str(text))
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def same_network(first: str, second: str) -> bool:
    """Tell whether two ids are of one network, so that each takes the other's files."""
    one, other = find_entry(first), find_entry(second)
    return first == second or (one is not None and other is not None and one.network == other.network)


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
