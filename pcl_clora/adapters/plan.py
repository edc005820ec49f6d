"""The trainable plan: the one place that decides what a run changes, and the only one that acts on it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from pcl_clora.adapters.base import TunerLayer
from pcl_clora.adapters.paths import at_or_inside, join, live_path, locate, walk
from pcl_clora.adapters.slot import Slot
from pcl_clora.models.interface import Part, get_interface

_FROZEN = "_frozen_by_adapter"  # on a module that is in evaluation mode because a plan left it out


def make_plan(base: nn.Module, slot: Slot) -> dict[str, str]:
    """Say which tensors training changes and why: name in the adapted model's state_dict -> reason.

    These are the tensors of the adapter, the parts it trains besides, and the statistics of the BatchNorms
    that run in training mode: those of a trained part, and with `freeze.norm_stats="track"` all. Everything
    else stays as it is, bit for bit. Dropout and stochastic depth of frozen layers have no state and stay
    active in training, as in the published recipes.

    Args:
        base: the backbone, with the adapter in place.
        slot: the adapter.
    """
    method = slot.method.config.method
    plan = {
        f"slots.{slot.key}.method.{key}": f"{method}, shared by all layers"
        for key, _ in slot.method.named_parameters(remove_duplicate=False)
    }
    for key in moving_statistics(slot.method):
        plan[f"slots.{slot.key}.method.{key}"] = f"{method}, normalisation statistics"
    for node in walk(base):
        if isinstance(node.module, TunerLayer) and slot.key in node.module.deltas:
            delta, start = node.module.deltas[slot.key], f"base.{node.live}.deltas.{slot.key}."
            for key, _ in delta.named_parameters(remove_duplicate=False):
                plan[start + key] = f"{method}, one layer's own"
            for key in moving_statistics(delta):
                plan[start + key] = f"{method}, normalisation statistics"
    for path, reason in slot.owned.items():
        owner, leaf = locate(base, path)
        prefix, item = f"base.{live_path(base, path)}", getattr(owner, leaf)
        if isinstance(item, nn.Module):
            for key, _ in item.named_parameters(remove_duplicate=False):
                plan[join(prefix, key)] = reason
            for key in moving_statistics(item):
                plan[join(prefix, key)] = f"{reason}, normalisation statistics"
        else:
            plan[prefix] = reason
    return plan


def file_keys(base: nn.Module, slot: Slot) -> dict[str, str]:
    """Map names of the state_dict to names in the file, for what an adapter saves; one to one.

    Names in the file carry neither the adapter's name nor `base_layer`: "method.*" is shared by layers,
    "layers.<path>.*" is one layer's own, "model.<path>" is the backbone's name of a trained part.

    Args:
        base: the backbone, with the adapter in place.
        slot: the adapter.
    """
    prefixes = {f"slots.{slot.key}.method.": "method."}
    for node in walk(base):
        if isinstance(node.module, TunerLayer):
            prefixes[f"base.{node.live}.deltas.{slot.key}."] = f"layers.{node.path}."
    for path in slot.owned:
        prefixes[f"base.{live_path(base, path)}"] = f"model.{path}"
    keys: dict[str, str] = {}
    for live in (*make_plan(base, slot), *fixed_tensors(base, slot)):
        prefix = max((p for p in prefixes if live.startswith(p)), key=len)
        keys[live] = prefixes[prefix] + live.removeprefix(prefix).replace("/", "")
    assert len(set(keys.values())) == len(keys), "two tensors of an adapter have one name in its file"
    return keys


def fixed_tensors(base: nn.Module, slot: Slot) -> list[str]:
    """Name the buffers of an adapter that no training moves and that its file holds all the same."""
    owners: list[tuple[str, nn.Module]] = [(f"slots.{slot.key}.method.", slot.method)]
    for node in walk(base):
        if isinstance(node.module, TunerLayer) and slot.key in node.module.deltas:
            owners.append((f"base.{node.live}.deltas.{slot.key}.", node.module.deltas[slot.key]))
    return [
        start + key
        for start, owner in owners
        for key in owner.state_dict().keys()
        - {name for name, _ in owner.named_parameters(remove_duplicate=False)}
        - set(moving_statistics(owner))
    ]


def moving_statistics(module: nn.Module) -> Iterator[str]:
    """Name the buffers that a module changes when it runs in training mode: those of its BatchNorms."""
    for name, part in module.named_modules(remove_duplicate=False):
        if tracks_statistics(part):
            for key, value in part.named_buffers(recurse=False):
                if isinstance(value, Tensor):
                    yield join(name, key)


def tracks_statistics(module: nn.Module) -> bool:
    """Tell whether a module keeps running statistics."""
    return isinstance(module, _NormBase) and module.running_mean is not None


def statistics_paths(model: nn.Module) -> list[str]:
    """List the running statistics of a backbone by the names it has without adapters."""
    paths: list[str] = []
    for node in walk(model):
        if tracks_statistics(node.module):
            paths += [join(node.path, key) for key, _ in node.module.named_buffers(recurse=False)]
    return paths


def apply_gradients(model: nn.Module, plan: Collection[str]) -> None:
    """Let exactly the planned parameters require gradients."""
    for name, parameter in model.named_parameters(remove_duplicate=False):
        parameter.requires_grad_(name in plan)


def freeze_statistics(model: nn.Module, plan: Mapping[str, str]) -> None:
    """Put every module with running statistics that the plan does not name into evaluation mode.

    Those that an earlier plan left out and this one names are put into training mode again.
    """
    for name, module in model.named_modules(remove_duplicate=False):
        if not tracks_statistics(module):
            continue
        if join(name, "running_mean") in plan:
            if vars(module).pop(_FROZEN, False):
                module.train()
        elif module.training:
            module.eval()
            vars(module)[_FROZEN] = True


def count_parameters(base: nn.Module, slot: Slot | None) -> dict[str, int]:
    """Count the parameters of the network that runs; a shared tensor counts once.

    Args:
        base: the backbone, with the adapter in place.
        slot: the adapter; None counts the bare backbone.

    Returns:
        "total": backbone with the active head and adapter; "trainable": of these, the planned ones;
        "adapter": what the method added; "head" and "tokens": the trained ones of these parts, 0 if frozen.
    """
    plan = {} if slot is None else make_plan(base, slot)
    sizes = {f"base.{key}": p.numel() for key, p in base.named_parameters()}
    trained = {key: size for key, size in sizes.items() if key in plan}
    own = 0 if slot is None else sum(p.numel() for p in slot.method.parameters())
    in_layers = 0 if slot is None else sum(n for key, n in trained.items() if f".deltas.{slot.key}." in key)
    backbone = sum(size for key, size in sizes.items() if ".deltas." not in key)
    counts = {
        "total": backbone + own + in_layers,
        "trainable": sum(trained.values()) + own,
        "adapter": own + in_layers,
    }
    parts: tuple[Part, ...] = ("head", "tokens")
    for part in parts:
        places = [f"base.{live_path(base, path)}" for path in get_interface(base).parts.get(part, ())]
        counts[part] = sum(size for key, size in trained.items() if at_or_inside(key, places))
    return counts


def format_plan(plan: Mapping[str, str], model: nn.Module | None = None) -> str:
    """Write a plan as one line a reason, with how many tensors and values it stands for.

    Args:
        plan: what `trainable_plan` returned.
        model: the adapted model, for the number of values; without it only tensors are counted.
    """
    sizes = {} if model is None else {name: value.numel() for name, value in model.state_dict().items()}
    groups: dict[str, list[str]] = {}
    for name, reason in plan.items():
        groups.setdefault(reason, []).append(name)
    rows = []
    for reason, names in groups.items():
        values = f"{sum(sizes[name] for name in names):>12,} values" if sizes else ""
        rows.append(
            f"{reason:<44}{len(names):>6} tensors{values}   {names[0]}" + (" ..." if len(names) > 1 else "")
        )
    if not rows:
        return "nothing is trained"
    if model is not None:
        frozen = [name for name in sizes if name not in plan]
        values = f"{sum(sizes[name] for name in frozen):>12,} values"
        rows.append(f"{'everything else: frozen':<44}{len(frozen):>6} tensors{values}")
    return "\n".join(rows)
