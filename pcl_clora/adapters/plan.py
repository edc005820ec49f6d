"""The trainable plan: the one place that decides what a run changes, and the only one that acts on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from pcl_clora.adapters.config import AdapterConfig
from pcl_clora.adapters.parts import at_or_inside
from pcl_clora.adapters.paths import join, live_path, locate, walk
from pcl_clora.errors import UserValueError
from pcl_clora.models.interface import Part

if TYPE_CHECKING:
    from pcl_clora.adapters.model import AdaptedModel


def trainable_plan(model: AdaptedModel, config: AdapterConfig | None = None) -> dict[str, str]:
    """Say which tensors training changes and why: name in the adapted model's state_dict -> reason.

    These are the tensors of the active adapter, the parts it trains besides, and the statistics of the
    BatchNorms that run in training mode: those of a trained part, and with `freeze.norm_stats="track"` all.
    Everything else stays as it is, bit for bit. Dropout and stochastic depth of frozen layers have no state
    and stay active in training, as in the published recipes.

    Args:
        model: the adapted model.
        config: settings of its active adapter; its own by default.

    Raises:
        ValueError: if config is not the one the active adapter was attached with.
    """
    if model.active is None:
        return {}
    if config is not None and config != model.config:
        raise UserValueError(
            f"The plan was asked for with other settings than adapter {model.active!r} was attached with; "
            f"asked: {config!r}; attached: {model.config!r}."
        )
    name, method = model.active, model.config.method
    plan = {
        f"methods.{name}.{key}": f"{method}, shared by all layers"
        for key, _ in model.methods[name].named_parameters(remove_duplicate=False)
    }
    for live, tuner in model.live_tuners().items():
        if name in tuner.deltas:
            prefix = f"base.{live}.deltas.{name}"
            for key, _ in tuner.deltas[name].named_parameters(remove_duplicate=False):
                plan[f"{prefix}.{key}"] = f"{method}, one layer's own"
    for path, reason in model.owned_paths(name).items():
        owner, leaf = locate(model.base, path)
        prefix, item = f"base.{live_path(model.base, path)}", getattr(owner, leaf)
        if isinstance(item, nn.Module):
            for key, _ in item.named_parameters(remove_duplicate=False):
                plan[join(prefix, key)] = reason
            for key in moving_statistics(item):
                plan[join(prefix, key)] = f"{reason}, normalisation statistics"
        else:
            plan[prefix] = reason
    return plan


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


def apply_gradients(model: nn.Module, plan: Mapping[str, str]) -> None:
    """Let exactly the planned parameters require gradients."""
    for name, parameter in model.named_parameters(remove_duplicate=False):
        parameter.requires_grad_(name in plan)


def freeze_statistics(model: nn.Module, plan: Mapping[str, str]) -> None:
    """Put every module with running statistics that the plan does not name into evaluation mode."""
    for name, module in model.named_modules(remove_duplicate=False):
        if tracks_statistics(module) and join(name, "running_mean") not in plan:
            module.eval()


def count_parameters(model: AdaptedModel) -> dict[str, int]:
    """Count the parameters of the network that runs; a shared tensor counts once.

    Returns:
        "total": backbone with the active head and adapter; "trainable": of these, the planned ones;
        "adapter": what the method added; "head" and "tokens": the trained ones of these parts, 0 if frozen.
    """
    plan, name = trainable_plan(model), model.active
    trained = {key: p.numel() for key, p in model.named_parameters() if key in plan}
    own = (f"methods.{name}.", f".deltas.{name}.")
    adapter = sum(size for key, size in trained.items() if key.startswith(own[0]) or own[1] in key)
    backbone = sum(p.numel() for key, p in model.base.named_parameters() if ".deltas." not in f".{key}")
    counts = {"total": backbone + adapter, "trainable": sum(trained.values()), "adapter": adapter}
    parts: tuple[Part, ...] = ("head", "tokens")
    for part in parts:
        places = [f"base.{live_path(model.base, path)}" for path in model.interface.parts.get(part, ())]
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
