"""Load weights safely and say exactly what was loaded: matched, missing, unexpected, and why.

Files come from strangers, so nothing is ever unpickled freely: safetensors, or
`torch.load(weights_only=True)` with numpy scalars allowed. Key maps are data next to the models
(`official_keys`); this file only applies them.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pcl_clora.models.interface import get_interface

CONTAINERS = ("base_model", "model_state_dict", "model", "state_dict")
# What files put before the names of the backbone, after "module.": official pre-training, published
# wrappers, and our own adapter files, which a `full` run fills with a whole network.
WRAPPERS = ("MAE_encoder.", "base_model.", "model.")
PRETRAINING_ONLY = r"^(MAE_decoder|decoder_pos_embed|increase_dim|mask_token|lm_head|cls_head)\b"
NUMPY_SCALARS = [
    np.dtype,
    np.core.multiarray.scalar if not hasattr(np, "_core") else np._core.multiarray.scalar,
    *(type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "int32", "bool")),
]


class WeightsError(ValueError):
    """A weights file that cannot or must not be loaded; the message says why and what to do."""


@dataclass(frozen=True)
class LoadReport:
    """What `load_weights` did.

    Attributes:
        source: the file, or "state dict".
        container: the entry of the file that held the weights, "" for a plain state dict.
        matched: names of the model that were filled.
        missing: names of the model that keep their values.
        unexpected: key of the file -> why it was left out.
    """

    source: str
    container: str
    matched: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [
            f"{self.source}: {len(self.matched)} matched, {len(self.missing)} missing, "
            f"{len(self.unexpected)} unexpected"
            + (f" (weights under {self.container!r})" if self.container else "")
        ]
        lines += _grouped("missing, keep their values", self.missing)
        for reason in sorted(set(self.unexpected.values())):
            lines += _grouped(f"left out, {reason}", [k for k, r in self.unexpected.items() if r == reason])
        return "\n".join(lines)


def _grouped(title: str, names: tuple[str, ...] | list[str]) -> list[str]:
    """One line with the first parts of the names and how often each occurs."""
    if not names:
        return []
    counts: dict[str, int] = {}
    for name in names:
        counts[name.split(".")[0]] = counts.get(name.split(".")[0], 0) + 1
    return [f"  {title}: " + ", ".join(f"{top} ({n})" for top, n in sorted(counts.items()))]


def read_state_dict(path: str | Path) -> tuple[dict[str, Tensor], str]:
    """Read the tensors of a weights file without running code from it.

    Args:
        path: a .safetensors file, or a file of torch.save with one of the known containers or a plain state
            dict.

    Returns:
        (key -> tensor, name of the container or "").

    Raises:
        WeightsError: if the file is missing, damaged, wants to run code, or holds no tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"Weights file {path} does not exist; check the path.")
    if path.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(path), ""
        except SafetensorError as error:
            raise WeightsError(
                f"{path} is not a complete safetensors file ({error}); get it again."
            ) from error
    try:
        with torch.serialization.safe_globals(NUMPY_SCALARS):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        if asked is None:
            raise WeightsError(f"{path} is not a torch file; get it again.") from error
        raise WeightsError(
            f"{path} asks to run code while loading ({asked[1]}), which a weights file never needs; it was "
            "refused. Save its state dict as safetensors where you trust it."
        ) from error
    except (RuntimeError, EOFError, OSError) as error:
        raise WeightsError(f"{path} is not a complete torch file ({error}); get it again.") from error
    return _unpack(content, path)


def _unpack(content: object, path: str | Path) -> tuple[dict[str, Tensor], str]:
    if not isinstance(content, Mapping):
        raise WeightsError(f"{path} holds a {type(content).__name__}; expected a mapping with a state dict.")
    for container in CONTAINERS:
        if isinstance(content.get(container), Mapping):
            return _tensors(content[container], path), container
    return _tensors(content, path), ""


def _tensors(mapping: Mapping[object, object], path: str | Path) -> dict[str, Tensor]:
    tensors = {str(key): value for key, value in mapping.items() if isinstance(value, Tensor)}
    if not tensors:
        raise WeightsError(
            f"{path} holds no tensors at the top level or under {', '.join(CONTAINERS)}; found: "
            f"{', '.join(map(str, list(mapping)[:10]))}."
        )
    return tensors


def native_name(key: str, model: nn.Module) -> str:
    """Translate a key of an official file into a name of our model; unknown ones only lose their wrappers."""
    name = key.replace("module.", "")
    for wrapper in WRAPPERS:
        name = name.removeprefix(wrapper)
    official = getattr(model, "official_keys", None)
    return name if official is None else official.to_ours(name) or name


def load_weights(
    model: nn.Module, source: str | Path | Mapping[str, Tensor], *, allow_partial: bool = False
) -> LoadReport:
    """Fill a model from an official or own file, and report every name.

    Half precision is cast to the model's dtype; a convolution of kernel size 1 fills a linear layer. A head
    for another number of classes is left out as a whole. Missing head and class tokens are normal for
    pre-trained files.

    Args:
        model: a model of `create_model`.
        source: path of a weights file, or a state dict, also inside one of the known containers.
        allow_partial: accept a file that leaves tensors of the backbone unfilled.

    Returns:
        The report; print it.

    Raises:
        WeightsError: if nothing matches, a backbone tensor is missing (unless allow_partial), a shape
            differs, or the file is refused (see `read_state_dict`). The model is then unchanged.
    """
    if isinstance(source, Mapping):
        (state, container), label = _unpack(source, "state dict"), "state dict"
    else:
        (state, container), label = read_state_dict(source), str(source)
    own = model.state_dict()
    task_owned = _names_of_parts(model, own, ("head", "tokens"))
    head = _names_of_parts(model, own, ("head",))
    found, unexpected, wrong_shape = _match(model, state, own)
    other_head = [name for name in wrong_shape if name in head]
    if other_head:
        reason = f"head for other classes: {wrong_shape[other_head[0]]}"
        for name in [name for name in found if name in head]:
            unexpected[found.pop(name)] = reason
        for name in other_head:
            unexpected[name] = reason
    backbone_wrong = {name: text for name, text in wrong_shape.items() if name not in head}
    missing = [name for name in own if name not in found]
    needed = [n for n in missing if n not in task_owned and not n.endswith("num_batches_tracked")]
    _refuse(label, found, needed, backbone_wrong, state, allow_partial)
    with torch.no_grad():
        for name, key in found.items():
            own[name].copy_(state[key].reshape(own[name].shape))
    return LoadReport(label, container, tuple(n for n in own if n in found), tuple(missing), unexpected)


def _match(
    model: nn.Module, state: Mapping[str, Tensor], own: Mapping[str, Tensor]
) -> tuple[dict[str, str], dict[str, str], dict[str, str]]:
    """Sort keys: (name -> key used), (key -> why not used), (name -> shapes that differ)."""
    found: dict[str, str] = {}
    unexpected: dict[str, str] = {}
    wrong_shape: dict[str, str] = {}
    for key, tensor in state.items():
        name = native_name(key, model)
        if name not in own:
            only = re.match(PRETRAINING_ONLY, name)
            unexpected[key] = "used in pre-training only" if only else "not part of this model"
        elif name in found:
            unexpected[key] = f"a second tensor for {name}"
        elif _without_kernel(tensor) != own[name].shape and not tensor.numel() == own[name].numel() == 1:
            wrong_shape[name] = f"{tuple(tensor.shape)} in the file, {tuple(own[name].shape)} in the model"
        else:
            found[name] = key
    return found, unexpected, wrong_shape


def _without_kernel(tensor: Tensor) -> torch.Size:
    """Shape of a tensor, where a 1x1 convolution counts as a linear layer: (O, I, 1) -> (O, I)."""
    is_conv = tensor.dim() == 3 and tensor.shape[2] == 1 and tensor.shape[0] > 1
    return tensor.shape[:2] if is_conv else tensor.shape


def _names_of_parts(model: nn.Module, own: Mapping[str, Tensor], parts: tuple[str, ...]) -> set[str]:
    paths = [path for part in parts for path in get_interface(model).parts.get(part, ())]  # type: ignore[call-overload]
    return {name for name in own for path in paths if name == path or name.startswith(path + ".")}


def _refuse(
    label: str,
    found: Mapping[str, str],
    needed: list[str],
    wrong_shape: Mapping[str, str],
    state: Mapping[str, Tensor],
    allow_partial: bool,
) -> None:
    if wrong_shape:
        name, text = next(iter(wrong_shape.items()))
        raise WeightsError(
            f"{label}: {len(wrong_shape)} tensor(s) have another shape, first {name}: {text}. "
            "Make the model with the sizes of the file (embed_dim, depth, encoder_dim, ...)."
        )
    if not found:
        raise WeightsError(
            f"{label}: none of its {len(state)} keys belongs to this model (first keys: "
            f"{', '.join(list(state)[:5])}); it is a file of another architecture."
        )
    if needed and not allow_partial:
        raise WeightsError(
            f"{label}: {len(needed)} tensors of the backbone are not in the file (first: "
            f"{', '.join(needed[:5])}); {len(found)} match. Choose the right file, or pass "
            "allow_partial=True to keep random values there."
        )
