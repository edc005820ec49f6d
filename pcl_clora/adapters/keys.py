"""The one map between names in the live model and names in an adapter file, used both ways."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pcl_clora.adapters.base import TunerLayer
from pcl_clora.adapters.paths import live_path, walk
from pcl_clora.adapters.plan import trainable_plan

if TYPE_CHECKING:
    from pcl_clora.adapters.model import AdaptedModel


def file_keys(model: AdaptedModel, name: str) -> dict[str, str]:
    """Map names of the state_dict to names in the file, for what the active adapter saves; one to one.

    Names in the file carry neither the adapter's name nor `base_layer`: "method.*" is shared by layers,
    "layers.<path>.*" is one layer's own, "model.<path>" is the backbone's name of a trained part.

    Args:
        model: the adapted model.
        name: its active adapter.
    """
    prefixes = {f"methods.{name}.": "method."}
    for node in walk(model.base):
        if isinstance(node.module, TunerLayer):
            prefixes[f"base.{node.live}.deltas.{name}."] = f"layers.{node.path}."
    for path in model.owned_paths(name):
        prefixes[f"base.{live_path(model.base, path)}"] = f"model.{path}"
    keys: dict[str, str] = {}
    for live in trainable_plan(model):
        prefix = max((p for p in prefixes if live.startswith(p)), key=len)
        keys[live] = prefixes[prefix] + live.removeprefix(prefix)
    assert len(set(keys.values())) == len(keys), "two tensors of an adapter have one name in its file"
    return keys
