"""The ops of `pcl_clora.ops` by the emulated CUDA kernels: one function per op, with the schema's signature.

The functions take and return CPU tensors. They go through the launchers that run on a device, from the
choice of the kernel on. Bad values are refused as every backend refuses them on the CPU.
"""

from __future__ import annotations

import ctypes
import os
import struct
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from pcl_clora.ops import _values
from tests.support.emulation import build


@dataclass(frozen=True)
class Settings:
    """The emulated device; the last four are the `Limits` of launch.cuh."""

    seed: int = 0  # 0: threads in their order; odd: a warp runs until it waits; even: all mixed
    resident_blocks: int = 6  # of a cooperative launch; 0: the device has none
    register_points: int = 1 << 60
    thread_queries: int = 4096
    max_blocks: int = (1 << 31) - 1
    max_cloud_rows: int = 65535


class EmulationError(RuntimeError):
    """A kernel did what a device would hang on or leave undefined, or a sanitizer found a fault."""


Buffers = Sequence[Tensor | None]
Runner = Callable[[str, Settings, bool, Sequence[int], float, Buffers, Buffers], None]


class _Call(ctypes.Structure):
    _fields_ = (
        ("options", ctypes.c_void_p),
        ("ints", ctypes.c_void_p),
        ("real", ctypes.c_double),
        ("buffers", ctypes.c_void_p),
    )


@cache
def in_process(mutant: build.Mutant | None = None) -> Runner:
    """Build and load the library; the result runs a call in this process."""
    library = ctypes.CDLL(str(build.shared_library(mutant)))
    library.emulated_error.restype = ctypes.c_char_p

    def run(
        op: str,
        settings: Settings,
        is_double: bool,
        ints: Sequence[int],
        real: float,
        inputs: Buffers,
        results: Buffers,
    ) -> None:
        addresses = [None if tensor is None else tensor.data_ptr() for tensor in (*inputs, *results)]
        options = (ctypes.c_int64 * 6)(*astuple(settings))
        numbers = (ctypes.c_int64 * len(ints))(*ints)
        buffers = (ctypes.c_void_p * len(addresses))(*addresses)
        pointers = (ctypes.cast(part, ctypes.c_void_p) for part in (options, numbers, buffers))
        call = _Call(next(pointers), next(pointers), real, next(pointers))
        if getattr(library, f"emulated_{op}")(ctypes.byref(call), int(is_double)) != 0:
            raise EmulationError(library.emulated_error().decode())

    return run


@cache
def in_sanitizers(mutant: build.Mutant | None = None) -> Runner:
    """Build the program; the result runs a call in a process of its own, under ASan and UBSan."""
    program = build.sanitized_program(mutant)

    def run(
        op: str,
        settings: Settings,
        is_double: bool,
        ints: Sequence[int],
        real: float,
        inputs: Buffers,
        results: Buffers,
    ) -> None:
        numbers = struct.pack(
            f"<32s7q{len(ints)}qd3q",
            op.encode(),
            *astuple(settings),
            len(ints),
            *ints,
            real,
            int(is_double),
            len(inputs),
            len(results),
        )
        with tempfile.TemporaryDirectory() as folder:
            case, answer = Path(folder, "case"), Path(folder, "answer")
            case.write_bytes(numbers + b"".join(_packed(tensor) for tensor in (*inputs, *results)))
            environment = os.environ | {"ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1"}
            environment.pop("LD_PRELOAD", None)  # the sanitizers must come first
            done = subprocess.run(
                [str(program), str(case), str(answer)], capture_output=True, text=True, env=environment
            )
            if done.returncode != 0:
                raise EmulationError(done.stderr[:2000])
            content = answer.read_bytes()
        for tensor in results:
            size = tensor.numel() * tensor.element_size()
            ctypes.memmove(tensor.data_ptr(), content[:size], size)
            content = content[size:]

    return run


def _packed(tensor: Tensor | None) -> bytes:
    if tensor is None:
        return struct.pack("<q", -1)
    content = (
        ctypes.string_at(tensor.data_ptr(), tensor.numel() * tensor.element_size()) if tensor.numel() else b""
    )
    return struct.pack("<q", len(content)) + content


class Emulator:
    """The ops on one emulated device; `checked=False` leaves out the checks of values, as a device does."""

    def __init__(
        self, settings: Settings | None = None, runner: Runner | None = None, checked: bool = True
    ) -> None:
        self.settings = settings or Settings()
        self.runner = runner
        self.checked = checked

    def _check(self, op: str, *arguments: object) -> None:
        if self.checked:
            _values.CHECKS[op](*arguments)

    def _run(
        self,
        op: str,
        ints: Sequence[int],
        inputs: Buffers,
        *results: Tensor,
        real: float = 0.0,
    ) -> None:
        """Call an op; the first input says the dtype."""
        inputs = [None if tensor is None else tensor.detach().contiguous() for tensor in inputs]
        is_double = inputs[0].dtype == torch.float64
        (self.runner or in_process())(op, self.settings, is_double, ints, real, inputs, results)

    def farthest_point_sample(
        self,
        points: Tensor,
        num_samples: int,
        start_index: int = 0,
        skip_origin: bool = False,
        lengths: Tensor | None = None,
    ) -> Tensor:
        self._check("farthest_point_sample", points, num_samples, start_index, skip_origin, lengths)
        batch, num_points, _ = points.shape
        chosen = _garbage(points, (batch, num_samples), torch.int64)
        ints = (batch, num_points, num_samples, start_index, skip_origin)
        self._run("farthest_point_sample", ints, (points, lengths), chosen)
        return chosen

    def knn(
        self, points: Tensor, queries: Tensor, k: int, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        self._check("knn", points, queries, k, lengths)
        shape = (points.shape[0], queries.shape[1], k)
        dist2, idx = _garbage(points, shape), _garbage(points, shape, torch.int64)
        ints = (points.shape[0], points.shape[1], queries.shape[1], k)
        self._run("knn", ints, (points, queries, lengths), dist2, idx)
        return dist2, idx

    def ball_query(self, points: Tensor, queries: Tensor, radius: float, num_samples: int) -> Tensor:
        self._check("ball_query", points, queries, radius, num_samples)
        batch, num_points, _ = points.shape
        idx = _garbage(points, (batch, queries.shape[1], num_samples), torch.int64)
        ints = (batch, num_points, queries.shape[1], num_samples)
        self._run("ball_query", ints, (points, queries), idx, real=radius)
        return idx

    def group_points(
        self,
        points: Tensor,
        num_groups: int,
        group_size: int,
        start_index: int = 0,
        skip_origin: bool = False,
        lengths: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        self._check("group_points", points, num_groups, group_size, start_index, skip_origin, lengths)
        batch, num_points, _ = points.shape
        center = _garbage(points, (batch, num_groups, 3))
        neighborhood = _garbage(points, (batch, num_groups, group_size, 3))
        idx = _garbage(points, (batch, num_groups, group_size), torch.int64)
        center_idx = _garbage(points, (batch, num_groups), torch.int64)
        ints = (batch, num_points, num_groups, group_size, start_index, skip_origin)
        self._run("group_points", ints, (points, lengths), center, neighborhood, idx, center_idx)
        return center, neighborhood, idx, center_idx

    def gather_points(self, points: Tensor, idx: Tensor) -> Tensor:
        self._check("gather_points", points, idx)
        out = _garbage(points, (*idx.shape, points.shape[2]))
        ints = (*points.shape[:2], _picks(idx), points.shape[2])
        self._run("gather_points", ints, (points, idx), out)
        return out

    def gather_points_backward(self, grad: Tensor, idx: Tensor, num_points: int) -> Tensor:
        self._check("gather_points_backward", grad, idx, num_points)
        out = _garbage(grad, (grad.shape[0], num_points, grad.shape[-1]))
        ints = (grad.shape[0], num_points, _picks(idx), grad.shape[-1])
        self._run("gather_points_backward", ints, (grad, idx), out)
        return out

    def three_interpolate(self, features: Tensor, idx: Tensor, weight: Tensor) -> Tensor:
        self._check("three_interpolate", features, idx, weight)
        out = _garbage(features, (*idx.shape[:2], features.shape[2]))
        ints = (*features.shape[:2], idx.shape[1], features.shape[2])
        self._run("three_interpolate", ints, (features, idx, weight), out)
        return out

    def three_interpolate_backward(
        self, grad: Tensor, idx: Tensor, weight: Tensor, num_points: int
    ) -> Tensor:
        self._check("three_interpolate_backward", grad, idx, weight, num_points)
        out = _garbage(grad, (grad.shape[0], num_points, grad.shape[2]))
        ints = (grad.shape[0], num_points, idx.shape[1], grad.shape[2])
        self._run("three_interpolate_backward", ints, (grad, idx, weight), out)
        return out

    def chamfer_distance(self, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        self._check("chamfer_distance", a, b)
        dist_a, dist_b = _garbage(a, a.shape[:2]), _garbage(b, b.shape[:2])
        idx_a, idx_b = _garbage(a, a.shape[:2], torch.int64), _garbage(b, b.shape[:2], torch.int64)
        ints = (a.shape[0], a.shape[1], b.shape[1])
        self._run("chamfer_distance", ints, (a, b), dist_a, dist_b, idx_a, idx_b)
        return dist_a, dist_b, idx_a, idx_b


def _garbage(like: Tensor, shape: Sequence[int], dtype: torch.dtype | None = None) -> Tensor:
    """Make a result in which whatever a kernel leaves out is seen: NaN, or a large negative index."""
    out = like.new_empty(tuple(shape), dtype=dtype)
    return out.fill_(torch.nan if out.is_floating_point() else -(1 << 40))


def _picks(idx: Tensor) -> int:
    return idx[0].numel() if idx.shape[0] else 0


_default = Emulator()
farthest_point_sample = _default.farthest_point_sample
knn = _default.knn
ball_query = _default.ball_query
group_points = _default.group_points
gather_points = _default.gather_points
gather_points_backward = _default.gather_points_backward
three_interpolate = _default.three_interpolate
three_interpolate_backward = _default.three_interpolate_backward
chamfer_distance = _default.chamfer_distance
