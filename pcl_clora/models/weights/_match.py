"""Find for every tensor of a file its place in a model, and say why for those that have none."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pcl_clora.models.interface import get_interface
from pcl_clora.models.key_map import LeftOut
from pcl_clora.models.method_files import is_own_tensor
from pcl_clora.models.weights._containers import Checkpoint
from pcl_clora.models.weights._identify import Identity, differences, identify, same_network
from pcl_clora.models.weights._left_out import reason_left_out, unwrap, wrappers_of
from pcl_clora.models.weights._naming import is_official, names_of_key, read_naming
from pcl_clora.models.weights._target import Target


@dataclass(frozen=True)
class Match:
    """What of a file goes where.

    Attributes:
        identity: what the file is.
        naming: "native", "official" or "hub", how its keys are called.
        found: name in the model -> key of the file.
        missing: names of the model that the file does not fill.
        needed: those of them without which the backbone would be partly random.
        unexpected: key of the file -> why it is left out.
        wrong_shape: name in the model -> both shapes, in words.
        too_deep: keys of blocks that the model does not have.
    """

    identity: Identity
    naming: str
    found: Mapping[str, str]
    missing: tuple[str, ...]
    needed: tuple[str, ...]
    unexpected: Mapping[str, LeftOut]
    wrong_shape: Mapping[str, str]
    too_deep: tuple[str, ...]


def match(target: Target, checkpoint: Checkpoint) -> Match:
    """Sort the tensors of a file; nothing is read and nothing changed.

    The keys may be official ones, those of the hub, or ours: whichever places more of them. A head for
    another number of classes is left out as a whole. Of two keys for one tensor, the one counts that is its
    official name, or else the first.

    Args:
        target: what is to be filled.
        checkpoint: the file.
    """
    model, own = target.model, target.tensors
    naming, names, official = _place(target, checkpoint)
    unwrapped = {key: unwrap(name) for key, name in official.items()}
    shapes = {unwrapped[key]: checkpoint.like(key).shape for key in checkpoint.tensors}
    identity = identify(shapes, wrappers_of(checkpoint.tensors))
    found: dict[str, str] = {}
    unexpected: dict[str, LeftOut] = {}
    wrong_shape: dict[str, str] = {}
    by_alias = {key for key in names if naming != "native" and not is_official(target.key_map, official[key])}
    for key in sorted(checkpoint.tensors, key=by_alias.__contains__):
        name = names.get(key)
        if name is None or _is_scalar(name, unwrapped[key], shapes):
            unexpected[key] = reason_left_out(unwrapped[key], shapes, identity.method)
        elif name in found:
            text = (
                "another name of a tensor that is read" if key in by_alias else f"a second tensor for {name}"
            )
            unexpected[key] = LeftOut("second", text)
        elif not _fits(checkpoint.like(key), own[name]):
            wrong_shape[name] = (
                f"{tuple(checkpoint.like(key).shape)} in the file, {tuple(own[name].shape)} in the model"
            )
        else:
            found[name] = key
    _leave_other_head(names_of_parts(model, own, ("head",)), names, found, unexpected, wrong_shape)
    missing = tuple(name for name in own if name not in found and name not in wrong_shape)
    return Match(
        identity=identity,
        naming=naming,
        found=found,
        missing=missing,
        needed=_needed(model, own, missing),
        unexpected=unexpected,
        wrong_shape=wrong_shape,
        too_deep=tuple(key for key in unexpected if _is_too_deep(model, unwrapped[key])),
    )


def _is_scalar(name: str, unwrapped: str, shapes: Collection[str]) -> bool:
    """Tell whether a key is the scalar of PointLoRA in place of a backbone's weight."""
    return not is_own_tensor(name) and f"{unwrapped.removesuffix('weight')}linear.weight" in shapes


def _place(target: Target, checkpoint: Checkpoint) -> tuple[str, dict[str, str], dict[str, str]]:
    """Return (naming, key -> name in the model, key -> official key), by the naming that places more."""
    own, key_map, naming = target.tensors, target.key_map, read_naming(checkpoint.tensors)
    translated: dict[str, str] = {}
    for key, official in naming.official.items():
        names = names_of_key(key_map, official, target.aliases)
        name = next((name for name in names if name in own), None)
        if name:
            translated[key] = name
    native = {}
    for key in checkpoint.tensors:
        name = key if key in own else unwrap(key)
        if name in own:
            native[key] = name
    if len(native) > len(translated):
        ours = {
            key: key_map.translate(native.get(key, key), to="official") or key for key in checkpoint.tensors
        }
        return "native", native, ours
    return naming.kind, translated, dict(naming.official)


def _fits(tensor: Tensor, own: Tensor) -> bool:
    """Tell whether a tensor has our shape; (O, I, 1) of a convolution counts as (O, I), and (1,) as ()."""
    if tensor.numel() == own.numel() == 1:
        return True
    kernel = tensor.shape[2:] if own.dim() == 2 else ()
    return tensor.shape == own.shape or (
        tensor.shape[:2] == own.shape and len(kernel) > 0 and all(size == 1 for size in kernel)
    )


def _leave_other_head(
    head: set[str],
    names: Mapping[str, str],
    found: dict[str, str],
    unexpected: dict[str, LeftOut],
    wrong_shape: dict[str, str],
) -> None:
    """Where a part of the head has another shape, take nothing of it, so that it is not half trained."""
    other = [name for name in wrong_shape if name in head]
    if not other:
        return
    reason = LeftOut("head", f"head for other classes: {wrong_shape[other[0]]}")
    for name in [name for name in found if name in head]:
        unexpected[found.pop(name)] = reason
    unexpected.update({key: reason for key, name in names.items() if name in other})
    for name in other:
        del wrong_shape[name]


def names_of_parts(model: nn.Module, own: Mapping[str, Tensor], parts: tuple[str, ...]) -> set[str]:
    """List the tensors of some parts of a model's interface."""
    paths = [path for part in parts for path in get_interface(model).parts.get(part, ())]  # type: ignore[call-overload]
    return {name for name in own for path in paths if name == path or name.startswith(path + ".")}


def _needed(model: nn.Module, own: Mapping[str, Tensor], missing: tuple[str, ...]) -> tuple[str, ...]:
    """List the missing tensors that make a backbone partly random.

    A task owns head and learned tokens, a count of batches changes nothing, and what a model names in
    `may_miss` is not in every file of its own: either all of it is there or nothing.
    """
    owned = names_of_parts(model, own, ("head", "tokens"))
    there = own.keys() - set(missing)
    optional = tuple(
        prefix
        for prefix in getattr(model, "may_miss", ())
        if not any(name.startswith(prefix) for name in there)
    )
    return tuple(
        name
        for name in missing
        if name not in owned
        and not name.endswith("num_batches_tracked")
        and not (optional and name.startswith(optional))
    )


def _is_too_deep(model: nn.Module, official: str) -> bool:
    fits = re.match(r"blocks\.(?:(?:blocks|layers)\.)?(\d+)\.", official)
    return fits is not None and int(fits[1]) >= len(get_interface(model).blocks)


def advice(model: nn.Module, matched: Match) -> str:
    """Say what the file is, in what it differs from the model, and what would take it."""
    identity, config = matched.identity, getattr(model, "config", None)
    here, task = getattr(config, "name", ""), getattr(config, "task", "")
    said = f"The file is {identity}"
    if not identity.model:
        return f"{said}; expected a file of {here or type(model).__name__}."
    # Pre-training needs its own file; any other network starts from every file of its backbone.
    fitting = identity.task if task == "pretraining" and identity.task else task
    different = differences(identity, config, task)
    same = same_network(here, identity.model)
    if same:
        said += f" ({'; '.join(different)})" if different else ""
    elif here:
        said += f", the model is {here}"
    if identity.adapter and same:
        said += f", which attach_adapter(model, {dict(identity.adapter)}) makes place for"
    helps = not same or bool(different) or fitting != task
    return f"{said}; {identity.as_call(fitting)} takes it." if helps else f"{said}."


def count_not_finite(tensor: Tensor) -> int:
    """Count nan and infinity; 0 for integers, and for a tensor without content."""
    if tensor.is_meta or not tensor.is_floating_point():
        return 0
    # A sum of numbers is finite, short of overflow, and needs no second tensor.
    if bool(torch.isfinite(tensor.sum(dtype=torch.promote_types(tensor.dtype, torch.float32)))):
        return 0
    return tensor.numel() - int(torch.isfinite(tensor).sum())
