"""Calls that reach every kernel, and the faults that they must find.

A trial is an op, its arguments and the emulated devices it runs on. The real kernels pass every trial; each
mutant, a real kernel with one text replaced, must fail its own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pcl_clora.ops import reference
from tests.support.emulation.build import Mutant
from tests.support.emulation.emulated import EmulationError, Emulator, Runner, Settings
from tests.support.ops_oracles import make_cloud

REGISTERS = (Settings(seed=1), Settings(seed=2))
STREAMING = tuple(Settings(seed=seed, register_points=0, resident_blocks=0) for seed in (1, 2))
SPREAD = tuple(Settings(seed=seed, register_points=0, resident_blocks=4) for seed in (1, 2))
BY_THREADS = tuple(Settings(seed=seed, thread_queries=0) for seed in (1, 2))
ONE_BLOCK = tuple(Settings(seed=seed, max_blocks=1) for seed in (1, 2))
ONE_BLOCK_BY_THREADS = tuple(Settings(seed=seed, max_blocks=1, thread_queries=0) for seed in (1, 2))


@dataclass(frozen=True)
class Trial:
    """A call of an op by its schema; float tensors are converted to the dtype that is asked for."""

    op: str
    arguments: Callable[[], tuple[Any, ...]]
    devices: tuple[Settings, ...]
    is_rounded: bool = False  # the reference adds in another order
    expected: Callable[..., Any] | None = None  # None: the plain-torch reference

    def passes(self, runner: Runner, dtype: torch.dtype = torch.float32) -> bool:
        """Tell whether every device finds what the reference finds; an error of the emulation says no."""
        arguments = tuple(
            value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value
            for value in self.arguments()
        )
        expected = _parts((self.expected or getattr(reference, self.op))(*arguments))
        for device in self.devices:
            try:
                found = _parts(getattr(Emulator(device, runner, checked=False), self.op)(*arguments))
            except EmulationError:
                return False
            if not all(map(self._agree, found, expected)):
                return False
        return True

    def _agree(self, found: Tensor, expected: Tensor) -> bool:
        if self.is_rounded and found.is_floating_point():
            # Sums of up to 30 numbers near 1 in either order: 30 roundings of 6e-8 relative, twice over.
            return torch.allclose(found, expected, rtol=4e-6, atol=4e-6)
        return torch.equal(found.nan_to_num(nan=-7.0), expected.nan_to_num(nan=-7.0))


def _parts(results: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return results if isinstance(results, tuple) else (results,)


def _cloud(num_points: int, kind: str = "random", batch: int = 2) -> Tensor:
    return make_cloud(kind, batch, num_points)


def _indices(num_points: int, *shape: int) -> Tensor:
    return torch.randint(num_points, shape, generator=torch.Generator().manual_seed(3))


def _uniform(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(4))


def _outside(num_points: int, *shape: int) -> Tensor:
    """Indices of which a third lies just outside of the cloud."""
    idx = _indices(num_points, *shape)
    idx.view(-1)[::6], idx.view(-1)[3::6] = num_points, -1
    return idx


def _gather_or_nan(points: Tensor, idx: Tensor) -> Tensor:
    picked = reference.gather_points(points, idx.clamp(0, points.shape[1] - 1))
    return picked.masked_fill(((idx < 0) | (idx >= points.shape[1])).unsqueeze(-1), torch.nan)


TRIALS = {
    "sample": Trial("farthest_point_sample", lambda: (_cloud(1100), 10, 5), REGISTERS),
    "sample_ties": Trial("farthest_point_sample", lambda: (_cloud(130, "lattice"), 100), REGISTERS),
    "sample_clouds_in_turn": Trial("farthest_point_sample", lambda: (_cloud(300, batch=4), 4), ONE_BLOCK),
    "sample_near_origin": Trial(
        "farthest_point_sample", lambda: (_cloud(300, "near_origin"), 9, 2, True), REGISTERS
    ),
    "sample_streaming": Trial("farthest_point_sample", lambda: (_cloud(700), 12), STREAMING),
    "sample_spread": Trial("farthest_point_sample", lambda: (_cloud(2500), 8), SPREAD),
    "sample_ragged": Trial(
        "farthest_point_sample", lambda: (_cloud(600), 20, 1, False, torch.tensor([600, 32])), REGISTERS
    ),
    "search": Trial("knn", lambda: (_cloud(600), _cloud(9, "symmetric"), 20), REGISTERS),
    "search_ties": Trial("knn", lambda: (_cloud(300, "lattice"), _cloud(6, "lattice"), 40), REGISTERS),
    "search_rounds": Trial("knn", lambda: (_cloud(290, "duplicates"), _cloud(3), 290), REGISTERS),
    "search_in_turn": Trial("knn", lambda: (_cloud(70), _cloud(20), 5), ONE_BLOCK),
    "search_ragged": Trial("knn", lambda: (_cloud(600), _cloud(9), 20, torch.tensor([599, 20])), REGISTERS),
    "nearest": Trial("knn", lambda: (_cloud(300, "lattice"), _cloud(130), 3), BY_THREADS),
    "nearest_in_turn": Trial("knn", lambda: (_cloud(70), _cloud(300), 1), ONE_BLOCK_BY_THREADS),
    "nearest_two_ways": Trial("chamfer_distance", lambda: (_cloud(150), _cloud(140)), BY_THREADS),
    "patches": Trial("group_points", lambda: (_cloud(200), 12, 9, 3), REGISTERS),
    "patches_of_all": Trial(
        "group_points", lambda: (_cloud(64), 20, 9, 3, False, torch.tensor([20, 64])), REGISTERS
    ),
    "patches_of_all_streaming": Trial("group_points", lambda: (_cloud(90), 90, 5), STREAMING),
    "patches_of_all_spread": Trial(
        "group_points", lambda: (_cloud(2500), 12, 3, 3, False, torch.tensor([12, 2500])), SPREAD
    ),
    "ball": Trial("ball_query", lambda: (_cloud(97), _cloud(9), 0.8, 7), REGISTERS),
    "gather": Trial("gather_points", lambda: (_uniform(2, 9, 5), _indices(9, 2, 7, 3)), REGISTERS),
    "gather_outside": Trial(
        "gather_points",
        lambda: (_uniform(2, 9, 5), _outside(9, 2, 7, 3)),
        REGISTERS,
        expected=_gather_or_nan,
    ),
    "gather_backward": Trial(
        "gather_points_backward", lambda: (_uniform(2, 30, 5), _indices(9, 2, 30), 9), REGISTERS
    ),
    "blend": Trial(
        "three_interpolate",
        lambda: (_uniform(2, 9, 150), _indices(9, 2, 7, 3), _uniform(2, 7, 3)),
        REGISTERS,
        is_rounded=True,
    ),
    "blend_backward": Trial(
        "three_interpolate_backward",
        lambda: (_uniform(2, 7, 5), _indices(9, 2, 7, 3), _uniform(2, 7, 3), 9),
        REGISTERS,
        is_rounded=True,
    ),
}


@dataclass(frozen=True)
class Fault:
    """A mutant and the trial that must fail on it."""

    trial: str
    mutant: Mutant


def _fault(trial: str, file: str, old: str, new: str, *, place: int = 0) -> Fault:
    return Fault(trial, Mutant(f"{file}.cuh", old, new, place))


_IN_STEP = "            __syncthreads();\n            best = {"
_IN_STREAM = "        __syncthreads();\n        best = {"
_BEFORE_TILE = "__syncthreads();  // nobody reads the tile before"
_WARP_TILE = "tile[i] = points[3 * begin + i];\n                __syncthreads();"
_THREAD_TILE = "(begin + thread) + axis];\n            }\n            __syncthreads();"

FAULTS = {
    "sampling: no barrier in a step": _fault("sample", "fps", _IN_STEP, _IN_STEP.split("\n")[1]),
    "sampling: one buffer for all steps": _fault("sample", "fps", "step % 2", "0"),
    "sampling: no barrier between clouds": _fault(
        "sample_clouds_in_turn", "fps", "__syncthreads();  // the buffers of", "// the buffers of"
    ),
    "sampling: one point too many": _fault("sample", "fps", "if (index < length)", "if (index <= length)"),
    "sampling: the neighbour's coordinates": _fault("sample", "fps", "% THREADS / 32", "% THREADS / 33"),
    "sampling: ties go to the highest": _fault(
        "sample_ties", "common", "b.value && a.index < b.index", "b.value && a.index > b.index"
    ),
    "streaming: no barrier in a step": _fault(
        "sample_streaming", "fps", _IN_STREAM, _IN_STREAM.split("\n")[1]
    ),
    "streaming: one point too many": _fault(
        "sample_streaming", "fps", "i < searched; i += stride", "i <= searched; i += stride"
    ),
    "spread: no barrier of the grid": _fault(
        "sample_spread", "fps", "cooperative_groups::this_grid().sync();", ""
    ),
    "spread: one buffer for all steps": _fault(
        "sample_spread", "fps", "(half * task.num_clouds + cloud)", "cloud"
    ),
    "search: tiles overwritten while read": _fault("search", "knn", _BEFORE_TILE, ""),
    "search: tiles read before they are there": _fault(
        "search", "knn", _WARP_TILE, "tile[i] = points[3 * begin + i];"
    ),
    "search: one number too many in a tile": _fault("search", "knn", "i < 3 * count", "i <= 3 * count"),
    "search: one point too many in a tile": _fault(
        "search_rounds", "knn", "if (i < count) {", "if (i <= count) {"
    ),
    "search: a round forgets the one before": _fault("search_rounds", "knn", " && closer(last, mine)", ""),
    "search: the first place is never taken": _fault("search_rounds", "knn", "is_first || ", ""),
    "nearest: tiles overwritten while read": _fault("nearest", "knn", _BEFORE_TILE, "", place=1),
    "nearest: tiles read before they are there": _fault(
        "nearest", "knn", _THREAD_TILE, _THREAD_TILE.removesuffix("__syncthreads();")
    ),
    "nearest: one point too many": _fault("nearest", "knn", "i < count; ++i", "i <= count; ++i"),
    "ball: one point too many": _fault("ball", "knn", "i < task.num_points &&", "i <= task.num_points &&"),
    "ball: one hit too many": _fault(
        "ball", "knn", "place < task.num_samples)", "place <= task.num_samples)"
    ),
    "gather: an index one too high": _fault(
        "gather_outside", "gather", "index < task.num_rows", "index <= task.num_rows"
    ),
    "gather: a negative index": _fault("gather_outside", "gather", "index >= 0 && ", ""),
    "transpose: one position too many": _fault("gather_backward", "gather", "i < task.num_positions && ", ""),
    "transpose: the first of a run is left out": _fault(
        "gather_backward", "gather", "list[low + half] < value", "list[low + half] <= value"
    ),
}
