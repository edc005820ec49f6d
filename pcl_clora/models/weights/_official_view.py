"""Any weights file of the family as the official file it could have been: keys, shapes, and what it is."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from pcl_clora.models.config import Task
from pcl_clora.models.key_map import KeyMap
from pcl_clora.models.method_files import (
    ADAPTER,
    TASK,
    MethodFiles,
    Settings,
    is_own_tensor,
    method_files,
    method_keys,
    network_keys,
)
from pcl_clora.models.registry import build_model, find_entry, model_classes, parse_model_config
from pcl_clora.models.weights._containers import Checkpoint
from pcl_clora.models.weights._hub_names import hub_table_of
from pcl_clora.models.weights._identify import Identity, identify, read_json
from pcl_clora.models.weights._left_out import unwrap, wrap, wrappers_of
from pcl_clora.models.weights._naming import key_map_of, read_naming

NATIVE_MARK = "patch_embed.linear"  # how the first layers are called here and in no other project
ENOUGH_OF_TUNED = 0.5  # the same where a fine-tuning method may have brought a head of its own
ENOUGH = 0.9  # share of the keys that must be ours for a file to count as one of this project


@dataclass(frozen=True)
class OfficialView:
    """A file by its official names.

    Attributes:
        checkpoint: the file.
        naming: how its own keys are called: "native", "official" or "hub".
        identity: what it is.
        keys: official key, with the wrappers of official files but without `module.` -> key of the file.
        key_map: what turned the keys of a native or hub file into official ones; None for an official file.
        adapter: settings of the fine-tuning method in it, with its name as `method`; empty for none.
    """

    checkpoint: Checkpoint
    naming: str
    identity: Identity
    keys: Mapping[str, str]
    key_map: KeyMap | None = None
    adapter: Settings = field(default_factory=dict)

    @property
    def method(self) -> MethodFiles | None:
        """How released files of the fine-tuning method in it look; None for none that is offered here."""
        return method_files().get(str(self.adapter.get("method", "")))

    def tensor(self, official: str) -> Tensor:
        """Read a tensor in the shape it has in an official file."""
        key = self.keys[official]
        tensor = self.checkpoint.tensors[key]
        if self.key_map is None:
            return tensor
        own = key if self.naming == "hub" else unwrap(key)
        return self.key_map.translate_tensor(own, tensor, to="official")

    def unwrapped(self) -> dict[str, str]:
        """Official key without wrappers -> official key; what stands beside a network keeps its prefix."""
        return {unwrap(official): official for official in self.keys}


def view_officially(checkpoint: Checkpoint) -> OfficialView:
    """Recognise a file, whatever its names are. Keys that nothing is known of stay as they are."""
    naming = read_naming(checkpoint.tensors)
    shapes = {name: checkpoint.like(key).shape for key, name in naming.unwrapped.items()}
    identity = identify(shapes, wrappers_of(checkpoint.tensors))
    if naming.kind == "hub":
        table = hub_table_of(checkpoint.tensors, naming="hub")
        assert table is not None
        return OfficialView(checkpoint, "hub", identity, _turned(naming.official), table[1])
    native = None
    if any(unwrap(key).startswith(NATIVE_MARK) for key in checkpoint.tensors):
        native = _view_of_native(checkpoint)
    turned = _turned(naming.official)
    return native or OfficialView(checkpoint, "official", identity, turned, adapter=identity.adapter)


def _turned(official: Mapping[str, str]) -> dict[str, str]:
    return {name: key for key, name in official.items()}


def _view_of_native(checkpoint: Checkpoint) -> OfficialView | None:
    """Recognise one of our own state dicts: by the key map that knows most of it, then by what it lacks."""
    base = [key for key in checkpoint.tensors if not is_own_tensor(unwrap(key))]
    own = {name_pattern(unwrap(key)) for key in base}
    adapter, task_told = recorded_adapter(checkpoint)
    enough = ENOUGH_OF_TUNED if adapter else ENOUGH
    best: tuple[int, int, dict[str, str], KeyMap, Task] = (0, 0, {}, KeyMap(()), "classification")
    for (model, of_task), network in model_classes().items():
        if task_told not in ("", of_task):
            continue
        key_map = key_map_of(network)
        official = {key: key_map.translate(unwrap(key), to="official") for key in base}
        known = sum(name is not None for name in official.values())
        if known < max(best[0], enough * len(official)):
            continue
        different = len(own ^ vocabulary(model, of_task))
        if known > best[0] or different < best[1]:
            best = (known, different, {key: name or key for key, name in official.items()}, key_map, of_task)
        if known == len(official) and different == 0:
            break
    _, _, names, key_map, task = best
    if not names:
        return None
    shapes = {name: checkpoint.like(key).shape for key, name in names.items()}
    identity = identify(shapes)
    if adapter:
        empty = make_empty(identity, identity.model, task)
        key_map = network_keys(method_keys(adapter, empty), key_map)
        names = {key: key_map.translate(unwrap(key), to="official") or key for key in checkpoint.tensors}
        shapes = {name: checkpoint.like(key).shape for key, name in names.items()}
        identity = replace(identify(shapes), adapter=adapter)
    if identity.task == "pretraining":
        names = {key: wrap(name, identity.model) for key, name in names.items()}
    return OfficialView(checkpoint, "native", identity, _turned(names), key_map, adapter)


def recorded_adapter(checkpoint: Checkpoint) -> tuple[dict[str, Any], str]:
    """Read what a file of this project says of the method whose tensors are in it.

    Returns:
        (settings of the method, task of the network); ({}, "") without one.
    """
    if not any(is_own_tensor(unwrap(key)) for key in checkpoint.tensors):
        return {}, ""
    told = {**checkpoint.extras, **read_json(checkpoint.extras.get("header"))}
    settings = read_json(told.get(ADAPTER))
    return (settings, str(told.get(TASK, ""))) if "method" in settings else ({}, "")


def make_empty(identity: Identity, model: str, task: str) -> nn.Module:
    """Make a network of a file's sizes without memory for its weights.

    The number of heads leaves no trace in a file; heads of width 64, as published, are assumed where they
    fit, which changes no shape.
    """
    settings = {"name": model, "task": task, **identity.sizes_for(task)}
    entry, width = find_entry(model), settings.get("embed_dim", 384)
    if entry is not None and "num_heads" in entry.config.model_fields:
        settings["num_heads"] = width // 64 if width % 64 == 0 else 1
    with torch.device("meta"):
        return build_model(parse_model_config(settings))


@cache
def vocabulary(model: str, task: str) -> frozenset[str]:
    """List the names of a network, whatever its depth; see `name_pattern`."""
    with torch.device("meta"):
        network = build_model(parse_model_config({"name": model, "task": task}))
    return frozenset(name_pattern(name) for name in network.state_dict())


def name_pattern(name: str) -> str:
    """Write a name without the number of its block: blocks.3.norm1.bias -> blocks.*.norm1.bias."""
    return re.sub(r"\bblocks\.\d+\.", "blocks.*.", name)


def is_buffer(name: str) -> bool:
    """Tell running statistics from parameters by their name."""
    return re.search(r"\.(running_mean|running_var|num_batches_tracked)$", name) is not None
