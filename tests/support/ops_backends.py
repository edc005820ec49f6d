"""The backends that the matrix runs over: what each needs, where it runs, what it cannot do."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch.utils._pytree import tree_map

from pcl_clora import ops
from pcl_clora.ops import _backends, _native
from pcl_clora.ops._library import SCHEMAS
from tests.support import fake_pointnet2


@dataclass(frozen=True)
class Backend:
    """A choice of `use_backend`, on a device."""

    name: str
    device: str = "cpu"
    takes_double: bool = True
    takes_lengths: bool = True
    own_ties: bool = False  # farthest points by the rule and ties of pointnet2_ops only
    large: bool = True  # fast enough for large clouds

    def run(self, function: Callable[..., Any], *arguments: Any, **named: Any) -> tuple[torch.Tensor, ...]:
        """Call a function with tensors on the device of the backend; return its tensors on the CPU."""
        arguments, named = tree_map(self._there, (arguments, named))
        found = function(*arguments, **named)
        return tuple(part.cpu() for part in ((found,) if isinstance(found, torch.Tensor) else found))

    def _there(self, value: Any) -> Any:
        return value.to(self.device) if isinstance(value, torch.Tensor) else value

    @contextmanager
    def in_use(self) -> Iterator[Backend]:
        """Make the ops run on this backend, or skip with the reason why they cannot."""
        if self.name == "native" and _native.problem():
            pytest.skip(str(_native.problem()))
        if self.name == "emulated":
            _register_emulation()
        with pytest.MonkeyPatch.context() as patch:
            if self.name == "pointnet2":
                with fake_pointnet2.installed(patch), ops.use_backend(self.name):
                    yield self
                return
            if self.device != "cpu":
                ops.check_values(True)
            try:
                with ops.use_backend(self.name):
                    yield self
            finally:
                ops.check_values(False)


REFERENCE = Backend("reference")
NATIVE = Backend("native")
EMULATED = Backend("emulated", large=False)
POINTNET2 = Backend("pointnet2", takes_double=False, takes_lengths=False, own_ties=True, large=False)
CUDA_REFERENCE, CUDA_NATIVE = Backend("reference", "cuda"), Backend("native", "cuda")
BACKENDS = [
    pytest.param(REFERENCE, id="reference"),
    pytest.param(NATIVE, id="native"),
    pytest.param(EMULATED, id="emulated"),
    pytest.param(POINTNET2, id="pointnet2"),
]
if torch.cuda.is_available():  # else test_cuda_kernels.py says once that they were left out
    BACKENDS += [
        pytest.param(CUDA_REFERENCE, id="cuda_reference", marks=pytest.mark.cuda),
        pytest.param(CUDA_NATIVE, id="cuda_native", marks=pytest.mark.cuda),
    ]


def _register_emulation() -> None:
    """Make the CUDA kernels, run thread by thread on the CPU, a backend of the ops."""
    if shutil.which("g++") is None:
        pytest.skip("needs g++ to compile the emulated CUDA kernels")
    from tests.support.emulation import emulated  # builds nothing before the first call

    _backends._register_for_tests("emulated", {op: getattr(emulated, op) for op in SCHEMAS})
