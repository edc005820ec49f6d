"""Time models against each other fairly: turn by turn in one process, the machine's load on all alike."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pcl_clora.engine.modes import evaluation_mode
from pcl_clora.report.macs import OWN_OPS


class _OwnOpsClock(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the time spent in operators of our own: sampling and neighbour search."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seconds = 0.0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.namespace != OWN_OPS:
            return func(*args, **(kwargs or {}))
        began = time.perf_counter()
        result = func(*args, **(kwargs or {}))
        self.seconds += time.perf_counter() - began
        return result


def interleaved_times(
    runs: Mapping[str, Callable[[], object]],
    repeats: int,
    warmup: int = 1,
    budget_s: float = math.inf,
    clock: Callable[[], float] | None = None,
) -> dict[str, list[float]]:
    """Time several functions turn by turn.

    Args:
        runs: name -> what to time; must wait for its own result.
        repeats: rounds that count.
        warmup: rounds before that do not.
        budget_s: a function whose counted rounds took this long together sits out the others.
        clock: seconds from an arbitrary moment on; by default those of the wall.

    Returns:
        Name -> seconds of every counted round; at least one.
    """
    clock = clock or time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(warmup + repeats):
        for name, run in runs.items():
            if sum(times[name]) >= budget_s:
                continue
            began = clock()
            run()
            if turn >= warmup:
                times[name].append(clock() - began)
    return times


def interleaved_seconds(
    runs: Mapping[str, Callable[[], object]],
    repeats: int,
    warmup: int = 1,
    clock: Callable[[], float] | None = None,
) -> dict[str, float]:
    """Time several functions turn by turn and return the median of each, name -> seconds."""
    times = interleaved_times(runs, repeats, warmup, clock=clock)
    return {name: statistics.median(values) for name, values in times.items()}


def model_latency_ms(
    models: Mapping[str, nn.Module],
    points: Tensor,
    *more: Tensor,
    repeats: int,
    warmup: int = 1,
    clock: Callable[[], float] | None = None,
) -> dict[str, float]:
    """Time the forward pass of several models turn by turn, in evaluation mode and without gradients.

    Args:
        models: name -> model.
        points: (B, N, 3), on the models' device.
        more: further inputs of the models, such as categories.
        repeats: rounds that count.
        warmup: rounds before that do not.
        clock: as in `interleaved_times`.

    Returns:
        Name -> milliseconds per cloud: median time of a batch / B.
    """

    def forward(model: nn.Module) -> float:
        with evaluation_mode(model), torch.inference_mode():
            return float(model(points, *more).sum())  # reading the value waits for the device

    runs = {name: (lambda model=model: forward(model)) for name, model in models.items()}
    seconds = interleaved_seconds(runs, repeats, warmup, clock)
    return {name: 1000 * value / points.shape[0] for name, value in seconds.items()}


def grouping_latency_ms(model: nn.Module, points: Tensor, *more: Tensor, repeats: int) -> float | None:
    """Time the share of a forward pass that sampling and neighbour search take, which no MAC count shows.

    Returns:
        Milliseconds per cloud, median; None on a device that does not wait for its operators.
    """
    if points.device.type != "cpu":
        return None
    times: list[float] = []
    for _ in range(repeats):
        clock = _OwnOpsClock()
        with clock, evaluation_mode(model), torch.no_grad():
            model(points, *more)
        times.append(clock.seconds)
    return 1000 * statistics.median(times) / points.shape[0]
