"""What a model costs: parameters, multiply-adds in both conventions, memory and latency, in one dict."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcl_clora.adapters import AdaptedModel
from pcl_clora.adapters.base import AdapterStateError
from pcl_clora.engine import OptimConfig, build_optimizer
from pcl_clora.engine.modes import evaluation_mode
from pcl_clora.errors import UserValueError
from pcl_clora.models import get_interface, published_form
from pcl_clora.report.latency import grouping_latency_ms, model_latency_ms
from pcl_clora.report.macs import ExecutedCount, count_executed, count_layers
from pcl_clora.report.memory import METHOD as MEMORY_METHOD
from pcl_clora.report.memory import mib, peak_bytes, storage_bytes

CONVENTIONS = {
    "published": "linear and convolution layers of the published architecture, one cloud, adapter merged, "
    "head included: what the papers print as GFLOPs",
    "published_inference": "the same without the layers whose result never reaches the prediction: the "
    "generator of PointGPT",
    "layers": "the same layers as they really run here, after our exact rewrites, adapter merged",
    "executed": "every matrix product that really runs, attention and the unmerged adapter included",
    "executed_merged": "the same after merging the adapter",
}


def cost_report(
    model: nn.Module,
    num_points: int,
    *,
    repeats: int = 5,
    batch_size: int = 8,
    with_memory: bool = True,
    with_latency: bool = True,
    seed: int = 0,
    clock: Callable[[], float] | None = None,
) -> dict[str, Any]:
    """Measure what a model costs. The model is left as it was; it must not be merged.

    Args:
        model: a backbone, or a backbone with an adapter.
        num_points: N, points a cloud.
        repeats: timed rounds; the medians count.
        batch_size: clouds at once for memory and latency. MACs and FLOPs are of one cloud, as in the papers.
        with_memory: measure peak memory of a forward pass and of a training step.
        with_latency: measure time.
        seed: of the random clouds; no count depends on it.
        clock: seconds from any moment on, by which latencies are measured; by default those of the wall.

    Returns:
        A dict of json values:

        * "num_points"; "image" [C, H, W] where the backbone takes images.
        * "params": total, trainable, adapter, head, tokens.
        * "macs": published, published_inference, layers, executed, executed_merged, attention (see
          "conventions" in it).
        * "flops": executed, executed_merged (2 x macs), grouping (sampling and neighbour search, by their
          formulas; not in the others) and grouping_by_op.
        * "memory_mib": weights (of the merged model), inference and training_step (peak of what is
          made besides), batch_size, method; None where not measured (a training step needs two clouds).
        * "latency_ms": per cloud: unmerged, merged, grouping, batch_size, repeats, threads, device, method.
        * "modules": module -> params, macs_published, macs_executed; children of the model and
          their children.

    Raises:
        ValueError: if num_points, repeats or batch_size is not positive, or the adapter is merged.
    """
    for name, value in (("num_points", num_points), ("repeats", repeats), ("batch_size", batch_size)):
        if value < 1:
            raise UserValueError(f"{name}={value} must be at least 1.")
    merged = merged_copy(model)
    inputs = random_inputs(model, batch_size, num_points, seed)
    counts = _count(model, merged, [value[:1] for value in inputs])
    report = {"num_points": num_points, "params": parameter_counts(model), **counts}
    if image := get_interface(model).input_shape:
        report["image"] = list(image)
    report["memory_mib"] = _memory(model, merged, inputs) if with_memory else None
    report["latency_ms"] = _latency(model, merged, inputs, repeats, clock) if with_latency else None
    return report


def count_cost(model: nn.Module, num_points: int) -> dict[str, Any]:
    """Count parameters, MACs and FLOPs only: `cost_report` without the parts that need time."""
    return cost_report(model, num_points, batch_size=1, with_memory=False, with_latency=False)


def merged_copy(model: nn.Module) -> nn.Module:
    """Return what is deployed: a plain copy with the adapter merged; the model itself if it has none.

    An adapter of a method that does not merge is deployed as it is: a copy with the adapter.

    Raises:
        ValueError: if the model is merged at the moment.
    """
    if not isinstance(model, AdaptedModel):
        return model
    if model.is_merged:
        raise UserValueError(
            "The adapter is merged; call unmerge() first, so that both forms can be measured."
        )
    deployed = copy.deepcopy(model)
    try:
        return deployed.merge_and_unload()
    except AdapterStateError:
        return deployed


def parameter_counts(model: nn.Module) -> dict[str, int]:
    """Count parameters: in total, and of the trained ones all, adapter, head and tokens."""
    if isinstance(model, AdaptedModel):
        return {key: int(value) for key, value in model.parameter_counts().items()}
    parts = get_interface(model).parts
    trained = {name: value.numel() for name, value in model.named_parameters() if value.requires_grad}

    def of_part(paths: tuple[str, ...]) -> int:
        inside = tuple(f"{path}." for path in paths)
        return sum(size for name, size in trained.items() if f"{name}.".startswith(inside))

    return {
        "total": sum(parameter.numel() for parameter in model.parameters()),
        "trainable": sum(trained.values()),
        "adapter": 0,
        "head": of_part(parts["head"]),
        "tokens": of_part(parts["tokens"]),
    }


def random_inputs(model: nn.Module, batch_size: int, num_points: int, seed: int = 0) -> list[Tensor]:
    """Make what the model takes, on its device: (B, N, 3) in the unit ball, or images; a category besides."""
    generator = torch.Generator().manual_seed(seed)
    interface = get_interface(model)
    device = next(model.parameters()).device
    if interface.input_shape is not None:
        return [torch.randn(batch_size, *interface.input_shape, generator=generator).to(device)]
    points = torch.randn(batch_size, num_points, 3, generator=generator)
    points = points / points.norm(dim=-1).amax(dim=1)[:, None, None]
    category = torch.zeros(batch_size, dtype=torch.int64)
    return [points.to(device), category.to(device)] if interface.takes_category else [points.to(device)]


def _count(model: nn.Module, merged: nn.Module, cloud: Sequence[Tensor]) -> dict[str, Any]:
    with published_form(merged):
        published = count_layers(merged, *cloud)
    skipped = get_interface(merged).training_only
    unmerged, deployed = count_executed(model, *cloud), count_executed(merged, *cloud)
    return {
        "macs": {
            "published": sum(published.values()),
            "published_inference": sum(n for path, n in published.items() if not _inside(path, skipped)),
            "layers": deployed.layer_macs,
            "executed": unmerged.macs,
            "executed_merged": deployed.macs,
            "attention": deployed.attention_macs,
            "conventions": CONVENTIONS,
        },
        "flops": {
            "executed": 2 * unmerged.macs,
            "executed_merged": 2 * deployed.macs,
            "grouping": sum(unmerged.grouping_flops.values()),
            "grouping_by_op": dict(unmerged.grouping_flops),
        },
        "modules": _by_module(merged, published, deployed),
    }


def _inside(path: str, modules: tuple[str, ...]) -> bool:
    return f"{path}.".startswith(tuple(f"{module}." for module in modules))


def _by_module(
    model: nn.Module, published: Mapping[str, int], executed: ExecutedCount
) -> dict[str, dict[str, int]]:
    """Break the counts of a plain model down to its children and grandchildren that hold parameters."""
    rows = {}
    for name, module in model.named_modules():
        params = sum(parameter.numel() for parameter in module.parameters())
        if not name or name.count(".") > 1 or not params:
            continue
        rows[name] = {
            "params": params,
            "macs_published": sum(n for path, n in published.items() if f"{path}.".startswith(f"{name}.")),
            "macs_executed": _executed_in(name, executed.modules),
        }
    return rows


def _executed_in(name: str, modules: Mapping[str, int]) -> int:
    """Products inside a module; a container that is never called itself has those of its children."""
    if name in modules:
        return modules[name]
    children = {path for path in modules if path.startswith(f"{name}.") and "." not in path[len(name) + 1 :]}
    return sum(modules[path] for path in children)


def _memory(model: nn.Module, merged: nn.Module, inputs: Sequence[Tensor]) -> dict[str, Any]:
    tensors = [*model.parameters(), *model.buffers()]
    with evaluation_mode(model), torch.no_grad():
        model(*inputs)  # what is folded once and kept is no part of a pass
        inference = peak_bytes(lambda: model(*inputs), [*tensors, *inputs])
    step = _training_peak(model, inputs)
    return {
        "weights": mib(storage_bytes([*merged.parameters(), *merged.buffers()])),
        "inference": mib(inference),
        "training_step": None if step is None else mib(step),
        "batch_size": len(inputs[0]),
        "method": f"{MEMORY_METHOD}. A training step is forward, backward and the first step of AdamW, whose "
        "state it therefore makes.",
    }


def _training_peak(model: nn.Module, inputs: Sequence[Tensor]) -> int | None:
    """Peak of one training step on a copy; None if nothing is trained, or for one cloud (BatchNorm)."""
    if len(inputs[0]) < 2 or not any(parameter.requires_grad for parameter in model.parameters()):
        return None
    scratch = copy.deepcopy(model).train()
    optimizer = build_optimizer(scratch, OptimConfig())
    device = inputs[0].device

    def step() -> None:
        logits = scratch(*inputs).flatten(0, -2)  # a row for a cloud, or for every point
        loss = F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64, device=device))
        if isinstance(scratch, AdaptedModel):
            loss = loss + sum(scratch.extra_losses().values())
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    with _generators_kept(device), torch.enable_grad():
        return peak_bytes(step, [*scratch.parameters(), *scratch.buffers(), *inputs])


def _generators_kept(device: torch.device) -> AbstractContextManager[None]:
    """Give the global generators their state back afterwards: dropout draws from them."""
    if device.type == "cpu":
        return torch.random.fork_rng(devices=[])
    return torch.random.fork_rng(devices=[device], device_type=device.type)


def _latency(
    model: nn.Module,
    merged: nn.Module,
    inputs: Sequence[Tensor],
    repeats: int,
    clock: Callable[[], float] | None,
) -> dict[str, Any]:
    measured = model_latency_ms({"unmerged": model, "merged": merged}, *inputs, repeats=repeats, clock=clock)
    return {
        **measured,
        "grouping": grouping_latency_ms(merged, *inputs, repeats=min(repeats, 3)),
        "batch_size": len(inputs[0]),
        "repeats": repeats,
        "threads": torch.get_num_threads(),
        "device": str(inputs[0].device),
        "method": "per cloud: median over rounds of the time of a batch / its clouds, forms in turn",
    }
