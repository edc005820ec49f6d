"""Adapters in the layout of peft: a folder with adapter_config.json and adapter_model.safetensors."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pcl_clora.adapters.base import AdapterStateError
from pcl_clora.adapters.combine import Factors, as_lora, low_rank_changes, whole_roles
from pcl_clora.adapters.files import AdapterFileError, refuse_non_finite
from pcl_clora.adapters.methods.lora import LoRAConfig
from pcl_clora.adapters.paths import at_or_inside, base_tensors
from pcl_clora.adapters.registry import build_method
from pcl_clora.errors import UserValueError
from pcl_clora.io import atomic_write, write_text

if TYPE_CHECKING:
    from pcl_clora.adapters.model import AdaptedModel

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # before every path in a file of peft
_DOWN, _UP = ".lora_A.weight", ".lora_B.weight"
# Settings of peft that change what an adapter computes and have no counterpart here -> their harmless values.
_ONLY: dict[str, tuple[Any, ...]] = {
    "bias": ("none",), "use_dora": (False, None), "fan_in_fan_out": (False, None), "lora_bias": (False, None),
    "layer_replication": (None,), "trainable_token_indices": (None,), "use_qalora": (False, None),
    "target_parameters": (None, []),
}  # fmt: skip


def is_peft_folder(path: str | Path) -> bool:
    """Tell whether a path is a folder that peft wrote, or its file of tensors."""
    place = Path(path)
    try:
        return (place / CONFIG).is_file() or (place.name == TENSORS and (place.parent / CONFIG).is_file())
    except OSError:
        return False


def save_peft(model: AdaptedModel, folder: str | Path) -> None:
    """Write the active adapter as a LoRA of peft; see `AdaptedModel.save_adapter`.

    Every layer gets one update of the whole layer, with scale 1. The head, if it is trained, is in
    `modules_to_save`.

    Raises:
        AdapterStateError: if a change is no low-rank update (a bias of CLoRA, a method of another kind).
        ValueError: if something is trained besides that peft has no place for, such as a class token.
    """
    assert model.active is not None
    slot = model.slot(model.active)
    changes = low_rank_changes(model.base, slot.key)
    if not changes:
        raise AdapterStateError(
            f"{slot.method.config.method} changes no linear layer by a low-rank update, so there is no LoRA "
            "to write; save it with layout='pcl_clora'."
        )
    config, state = as_lora(changes, whole_roles(model.base, model.interface), slot.method.config)
    heads = model.interface.parts.get("head", ())
    saved = model.adapter_state()
    own = {key.removeprefix("model."): saved[key] for key in saved if key.startswith("model.")}
    with model.installed(None):
        before = {name: tensor.clone() for name, tensor in base_tensors(model.base).items() if name in own}
    besides = [
        name
        for name, value in own.items()
        if not at_or_inside(name, heads) and not torch.equal(value, before[name])
    ]
    if besides:
        raise UserValueError(
            f"{besides[0]} is trained besides ({len(besides)} tensors), for which peft has no place; attach "
            "with train=['head'], or save with layout='pcl_clora'."
        )
    tensors = {f"{PREFIX}{name}": value for name, value in own.items() if at_or_inside(name, heads)}
    saved_head = [path for path in heads if at_or_inside(path, tuple(slot.owned))]
    for key, value in state.items():
        path, _, end = key.removeprefix("layers.").partition(".updates.")
        tensors[PREFIX + path + (_DOWN if end.endswith(".down") else _UP)] = value
    like = next(iter(model.base.parameters())).dtype
    tensors = {
        key: (value.to(like) if value.dtype == torch.float64 else value).detach().cpu().contiguous().clone()
        for key, value in tensors.items()
    }
    refuse_non_finite(tensors, f"Adapter {model.active!r} cannot be saved")
    described = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": config.rank,
        "lora_alpha": config.rank,
        "lora_dropout": float(getattr(slot.method.config, "dropout", 0.0)),
        "target_modules": sorted(changes),
        "modules_to_save": saved_head or None,
        "bias": "none",
    }
    place = Path(folder)
    if place.is_file():
        raise UserValueError(f"{place} is a file; the layout of peft is a folder, give another path.")
    atomic_write(place / TENSORS, lambda aside: save_file(tensors, aside, metadata={"format": "pt"}))
    write_text(place / CONFIG, json.dumps(described, indent=2) + "\n")


def load_peft(path: str | Path, model: AdaptedModel, name: str) -> None:
    """Attach a LoRA that peft saved as a `lora` adapter, and make it active.

    Raises:
        AdapterFileError: if the files are damaged, no LoRA, or have settings or layers that have no
            counterpart here. Nothing is attached then.
    """
    folder = Path(path).parent if Path(path).name == TENSORS else Path(path)
    settings = _read_config(folder)
    try:
        tensors = load_file(folder / TENSORS)
    except (OSError, SafetensorError) as error:
        raise AdapterFileError(
            folder / TENSORS, f"cannot be read ({error})", "save it with peft's save_pretrained()"
        ) from error
    changes, rest = _read_changes(folder, settings, tensors)
    places, heads = whole_roles(model.base, model.interface), model.interface.parts.get("head", ())
    strange = [layer for layer in changes if layer not in places]
    strange += [name for name in rest if not at_or_inside(name, heads)]
    if strange:
        raise AdapterFileError(
            folder, f"changes {strange[0]}, which is no layer of a role and no head of this model",
            "give the model that it was trained on, with an interface that names its layers",
        )  # fmt: skip
    config, state = as_lora(changes, places, LoRAConfig(train=("head",) if rest else ()))
    method = build_method(config.model_copy(update={"dropout": float(settings.get("lora_dropout") or 0.0)}))
    method.from_file = True
    before = model.chosen
    model.add_adapter(name, method)
    try:
        refuse_non_finite(tensors, "It holds values that no training gives")
        neutral = model.adapter_state()
        kept = {key: torch.zeros_like(value) for key, value in neutral.items() if key.startswith("layers.")}
        model.load_adapter_state({**kept, **state, **{f"model.{key}": value for key, value in rest.items()}})
    except (UserValueError, AdapterStateError) as error:
        model.remove_adapter(name)
        model.set_active(before)
        raise AdapterFileError(
            folder, str(error).rstrip("."), "give the model that it was trained on"
        ) from error


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        settings = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterFileError(
            folder / CONFIG, f"cannot be read ({error})", "save it with peft's save_pretrained()"
        ) from error
    if not isinstance(settings, dict) or settings.get("peft_type") != "LORA":
        kind = settings.get("peft_type") if isinstance(settings, dict) else type(settings).__name__
        raise AdapterFileError(
            folder, f"is an adapter of peft of type {kind}", "only LORA has a counterpart here"
        )
    for key, harmless in _ONLY.items():
        if key in settings and settings[key] not in harmless:
            raise AdapterFileError(
                folder, f"has {key}={settings[key]!r}, which has no counterpart here",
                "merge it with peft and load the weights",
            )  # fmt: skip
    return settings


def _read_changes(
    folder: Path, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Factors], dict[str, Tensor]]:
    """Return (path of a layer -> factors, the other tensors by the names of the model)."""
    named = {key.removeprefix(PREFIX): value for key, value in tensors.items()}
    changes: dict[str, Factors] = {}
    for key in [key for key in named if key.endswith(_DOWN)]:
        layer = key.removesuffix(_DOWN)
        down, up = named.pop(key).to(torch.float64), named.pop(layer + _UP, None)
        if up is None or down.dim() != 2 or up.dim() != 2 or up.shape[1] != down.shape[0]:
            raise AdapterFileError(
                folder, f"has no lora_A and lora_B that fit at {layer}", "save it again with peft"
            )
        changes[layer] = (down, _scale(folder, settings, layer, down.shape[0]) * up.to(torch.float64))
    if not changes:
        raise AdapterFileError(folder, "holds no lora_A and lora_B", "save it again with peft")
    return changes, named


def _scale(folder: Path, settings: Mapping[str, Any], layer: str, rank: int) -> float:
    """Return the factor of an update: alpha / r, or alpha / sqrt(r) with rsLoRA."""
    alpha = _of_pattern(settings.get("alpha_pattern"), layer, settings.get("lora_alpha"))
    said = _of_pattern(settings.get("rank_pattern"), layer, settings.get("r"))
    if not isinstance(alpha, int | float) or not math.isfinite(alpha) or said != rank:
        raise AdapterFileError(
            folder, f"says r={said} and lora_alpha={alpha} at {layer}, but its lora_A has {rank} rows",
            "give both files of one save_pretrained()",
        )  # fmt: skip
    return float(alpha) / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _of_pattern(pattern: Any, layer: str, default: Any) -> Any:
    """Return what peft's pattern says of a layer: its keys are ends of paths."""
    if isinstance(pattern, Mapping):
        for key, value in pattern.items():
            if layer == key or layer.endswith(f".{key}"):
                return value
    return default
