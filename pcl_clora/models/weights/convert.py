"""Write a weights file of the family under other names or in the other format, with the same numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from pcl_clora.errors import UserValueError
from pcl_clora.io import atomic_write, save_tensors
from pcl_clora.io.safe import refuse_overwriting_inputs
from pcl_clora.models.errors import WeightsError
from pcl_clora.models.key_map import KeyMap, LeftOut
from pcl_clora.models.method_files import ADAPTER, NO_KEYS, TASK, is_own_tensor, method_keys, network_keys
from pcl_clora.models.registry import model_classes
from pcl_clora.models.weights._containers import open_checkpoint
from pcl_clora.models.weights._hub_names import hub_table_of
from pcl_clora.models.weights._identify import TRAINED_WITH, trained_with
from pcl_clora.models.weights._left_out import SECOND_NAME, reason_left_out, unwrap
from pcl_clora.models.weights._naming import is_official, key_map_of, places_of_key
from pcl_clora.models.weights._official_view import (
    OfficialView,
    make_empty,
    name_pattern,
    view_officially,
    vocabulary,
)
from pcl_clora.models.weights._sources import open_source

Names = Literal["official", "hub", "native"]
BESIDE = ("transformer_k.", "queue", "dvae.")  # the hub keeps the network alone
SUFFIXES = (".safetensors", ".pth", ".pt")


@dataclass(frozen=True)
class Conversion:
    """What `convert_weights` wrote.

    Attributes:
        source: the file that was read.
        target: the file that was written.
        holds: what the file is, in words.
        naming: (names of the source, names of the target).
        num_tensors: how many were written.
        left_out: official key -> why it has no place under the new names.
    """

    source: str
    target: str
    holds: str
    naming: tuple[str, str]
    num_tensors: int
    left_out: Mapping[str, LeftOut]


def convert_weights(
    source: str | Path | nn.Module, target: str | Path, *, to: Names = "official", overwrite: bool = False
) -> Conversion:
    """Write weights under other names; types and values stay, kernels of size 1 come or go.

    An official file is written without `module.` and, as .pth, with the container that the published scripts
    read. Optimizer, epoch and metrics of a torch file are not kept. What a fine-tuning method added has
    official names where its released code has them; runs with other methods are merged.

    Args:
        source: official, hub or own file; folder of a finished run; "hub:<id>"; or a model, plain or adapted.
        target: .safetensors, .pth or .pt.
        to: "official", "hub" (torch-pointcloud) or "native" (names of this project's models).
        overwrite: replace a file that exists.

    Raises:
        WeightsError: if the source is refused, the target exists or has another suffix, or the names do not
            fit the network.
        UserValueError: if the target is the source or a file of the run, by whatever name.
    """
    target = Path(target)
    if target.suffix not in SUFFIXES:
        raise WeightsError(f"{target} must end in one of {', '.join(SUFFIXES)}.")
    if target.exists() and not overwrite:
        raise WeightsError(f"{target} exists; choose another name, or pass overwrite=True (--overwrite).")
    if to not in get_args(Names):
        raise WeightsError(f"to={to!r} is not known; choose one of {', '.join(get_args(Names))}.")
    if isinstance(source, nn.Module):
        checkpoint, label = open_checkpoint(tensors_of_model(source)), type(source).__name__
    else:
        refuse_overwriting_inputs([target], [source, *Path(source).rglob("*")])  # a run's folder has files
        checkpoint, label = open_source(source).checkpoint, str(source)
    view = view_officially(checkpoint)
    if checkpoint.other and not view.identity.model:
        raise WeightsError(f"{label} is {checkpoint.other.title}: {checkpoint.other.remedy}.")
    tensors, left_out = renamed(view, to)
    if not tensors:
        raise WeightsError(
            f"{label} ({view.identity}) has no tensor with a {to} name; nothing was written. "
            "`pcl-clora weights inspect` shows what it is."
        )
    header = {"format": "pcl_clora.weights", "naming": to, "holds": str(view.identity)}
    recorded = trained_with(view.identity, view.naming, view.checkpoint.extras)
    if recorded:
        header[TRAINED_WITH] = json.dumps(recorded)
    if view.adapter and any(map(is_own_tensor, tensors)):
        header |= {ADAPTER: json.dumps(view.adapter), TASK: view.identity.task}
    if target.suffix == ".safetensors":
        save_tensors(target, tensors, header)
    else:
        container = _container(view, to)
        atomic_write(target, lambda aside: torch.save({container: tensors, **header}, aside))
    return Conversion(label, str(target), str(view.identity), (view.naming, to), len(tensors), left_out)


def tensors_of_model(model: nn.Module) -> dict[str, Any]:
    """Return what a file of a model's weights holds: the tensors that its prediction follows from.

    Of an adapted model these are the backbone's, with the copies of the active adapter in place, and what the
    adapter adds; its settings, and those that a reader of the weights must share, stand beside them.

    Raises:
        WeightsError: if the adapter adds tensors that no released code knows; merge it.
        AdapterStateError: if an adapter is merged into the model.
    """
    tensors: dict[str, Any] = dict(model.state_dict())
    config = getattr(getattr(model, "base", model), "config", None)
    if hasattr(model, "network_tensors"):
        adapted: Any = model
        tensors = adapted.network_tensors()
        added = any(map(is_own_tensor, tensors))
        if added and adapted.released_files is None:
            raise WeightsError(
                f"{adapted.config.method} adds tensors for which no released code has names; call "
                "merge_and_unload() and convert the plain model, or keep the adapter with save_adapter()."
            )
        if added:
            tensors[ADAPTER] = json.dumps(adapted.config.model_dump(mode="json"))
            tensors[TASK] = getattr(config, "task", "")
    shared = {name: getattr(config, name) for name in getattr(config, "adoptable", ())}
    return {**tensors, TRAINED_WITH: json.dumps(shared)} if shared else tensors


def renamed(view: OfficialView, to: Names) -> tuple[dict[str, Tensor], dict[str, LeftOut]]:
    """Read all tensors of a file under other names.

    Returns:
        (new key -> tensor with memory of its own, official key -> why it is left out).

    Raises:
        WeightsError: if there are no such names for the network.
    """
    translate = {"official": _official, "hub": _hub, "native": _native}[to]
    found, left_out = translate(view)
    return {name: tensor.detach().clone() for name, tensor in found.items()}, left_out


def _official(view: OfficialView) -> tuple[dict[str, Tensor], dict[str, LeftOut]]:
    files = view.method if view.naming == "native" else None
    if files is None:
        return {official: view.tensor(official) for official in view.keys}, {}
    return {
        name: view.tensor(official) for official in view.keys for name in files.official_names(official)
    }, {}


def _hub(view: OfficialView) -> tuple[dict[str, Tensor], dict[str, LeftOut]]:
    wanted = [official for official in view.keys if not official.startswith(BESIDE)]
    table = hub_table_of(wanted, naming="official")
    strange = [
        official for official in wanted if table is None or table[1].translate(official, to="hub") is None
    ]
    if table is None or strange:
        which = f" of {len(strange)} tensors (first: {strange[0]})" if table else ""
        raise WeightsError(
            f"{view.checkpoint.source} is {view.identity}, for which no hub names{which} are known; official "
            "or native names in a .safetensors file keep it as safely."
        )
    key_map = table[1]
    found: dict[str, Tensor] = {}
    left_out: dict[str, LeftOut] = {}
    for official in view.keys:
        name = key_map.translate(official, to="hub")
        if name is None:
            left_out[official] = _reason(view, official)
        else:
            found[name] = key_map.translate_tensor(official, view.tensor(official), to="hub")
    return found, left_out


def _native(view: OfficialView) -> tuple[dict[str, Tensor], dict[str, LeftOut]]:
    classes = model_classes()
    places = [(view.identity.model, task) for task in (view.identity.task, "classification")]
    place = next((place for place in places if place in classes), None)
    if place is None:
        raise WeightsError(
            f"{view.checkpoint.source} is {view.identity}, for which this project has no model, so that it "
            "has no native names."
        )
    own, aliases, known = KeyMap(()), NO_KEYS, vocabulary(*place)
    if view.method is not None:
        with suppress(UserValueError):  # a network for which the method is not offered keeps its base alone
            own = network_keys(method_keys(view.adapter, make_empty(view.identity, *place)), own)
            aliases = view.method.twins
    key_map = network_keys(own, key_map_of(classes[place]))
    found: dict[str, Tensor] = {}
    left_out: dict[str, LeftOut] = {}
    for official in sorted(view.keys, key=lambda official: not is_official(key_map, official)):
        places_here = places_of_key(key_map, official, aliases)
        fits = (
            (a, n) for a, n in places_here if name_pattern(n) in known or own.translate(a, to="ours") == n
        )
        alias, name = next(fits, ("", ""))
        reason = _reason(view, official)
        if name in found and alias != official:
            left_out[official] = SECOND_NAME
        elif not name or name in found or (reason.kind == "scalar" and not is_own_tensor(name)):
            left_out[official] = reason
        else:
            found[name] = key_map.translate_tensor(alias, view.tensor(official), to="ours")
    return found, left_out


def _reason(view: OfficialView, official: str) -> LeftOut:
    unwrapped = view.unwrapped()
    return reason_left_out(unwrap(official), unwrapped, view.identity.method)


def _container(view: OfficialView, to: Names) -> str:
    """Name the entry of a torch file that the published scripts of the task read."""
    if to != "official":
        return "state_dict"
    return "model_state_dict" if view.identity.task == "part_segmentation" else "base_model"
