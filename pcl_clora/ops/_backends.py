"""Which kernels serve the ops: chosen openly, by name, for the whole process.

PyTorch looks for a kernel by device: a compiled kernel for CPU or CUDA where one is registered, else the
plain-torch kernel that is registered for all devices. A backend is a set of kernels that are put in front of
these while it is active; so compiled and exported graphs follow the choice too.
"""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import wraps
from types import TracebackType
from typing import Any

import torch
from torch.library import Library

from pcl_clora.errors import MissingPackageError, UserValueError
from pcl_clora.ops import _native, _pointnet2, _values, reference
from pcl_clora.ops._library import NAMESPACE, SCHEMAS

ENVIRONMENT = "PCL_CLORA_OPS"
KEYS = {"cpu": "CPU", "cuda": "CUDA"}  # kind of device -> dispatch key a kernel may be registered for
Kernel = Callable[..., Any]
Kernels = Mapping[str, Kernel]


@dataclass
class _Active:
    """The backend in use: its name, and what it put in front of the kernels that are always there."""

    name: str
    library: Library | None = None
    serves: dict[tuple[str, str], str] = field(default_factory=dict)  # (op, dispatch key) -> backend


def use_backend(name: str) -> AbstractContextManager[None]:
    """Choose the kernels of all ops, at once and for the whole process.

    As a function, `use_backend("reference")` holds until the next call; as a context manager,
    `with use_backend("reference"):`, what was in use before returns at its end. The environment variable
    PCL_CLORA_OPS gives the choice at the start. Indices, distances and patches do not depend on it, bit for
    bit, except for "pointnet2"; sums of features and gradients may differ in the last place.

    Args:
        name: "auto" (the default) takes "native" where it is installed and has a kernel for the device, else
            "reference". "reference" is plain torch, for every device. "native" is the compiled package
            pcl-clora-ops. "pointnet2" are the CUDA packages pointnet2_ops and knn_cuda for the ops they have,
            under their limits: float32 on CUDA, farthest points only with compat="pointnet2" and in their
            order of ties, no lengths; the other ops stay as under "auto".

    Returns:
        A context manager that restores the former choice.

    Raises:
        ValueError: if there is no backend of that name.
        ImportError: if it is not installed; the message says how to install it.
    """
    before = _active.name
    _activate(name)
    return _Restore(before)


def report(device: str | torch.device = "cpu") -> dict[str, str]:
    """Say which implementation serves each op on a device.

    Args:
        device: the kind of device asked about, such as "cpu" or "cuda". It need not be present.

    Returns:
        Op name -> "native" (a compiled kernel registered for that device), "reference" (plain torch), the
        name of another backend in use, or "missing" where "native" was asked for and has no kernels for that
        device.
    """
    key = KEYS.get(torch.device(device).type, "")
    return {
        op: _active.serves.get((op, key)) or ("native" if _has_kernel(op, key) else "reference")
        for op in SCHEMAS
    }


class _Restore(AbstractContextManager[None]):
    def __init__(self, before: str) -> None:
        self._before = before

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _activate(self._before)


def _activate(name: str) -> None:
    global _active
    if name not in _BACKENDS:
        raise UserValueError(f"backend {name!r} is not known; pass one of {', '.join(map(repr, _BACKENDS))}.")
    kernels = _BACKENDS[name]()  # fails before anything has changed
    placed = [(op, key, kernel) for key in kernels for op, kernel in kernels[key].items()]
    with _switching:
        if _active.library is not None:
            _active.library._destroy()  # type: ignore[no-untyped-call]
        active = _Active(name)
        if placed:
            active.library = Library(NAMESPACE, "IMPL")  # type: ignore[no-untyped-call]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="(?s).*[Oo]verriding a previously registered kernel")
            for op, key, kernel in placed:
                active.library.impl(op, kernel, key, allow_override=True)  # type: ignore[union-attr]
                active.serves[op, key] = "missing" if name == "native" else name  # that places refusals only
        _active = active


def _of_native() -> dict[str, Kernels]:
    """Put nothing in front of compiled kernels, and a refusal where a whole device has none."""
    problem = _native.problem()
    if problem is not None:
        raise MissingPackageError(f"backend 'native' is not available: {problem}.")
    bare = [key for key in KEYS.values() if not any((op, key) in _compiled for op in SCHEMAS)]
    return {key: {op: _refusal(key) for op in SCHEMAS} for key in bare}


def _of_reference() -> dict[str, Kernels]:
    """Put the plain kernels in front of compiled ones; for other devices they serve already."""
    return {key: {op: getattr(reference, op) for op in SCHEMAS} for key in KEYS.values()}


def _of_pointnet2() -> dict[str, Kernels]:
    kernels = {op: _with_checks(op, kernel) for op, kernel in _pointnet2.kernels().items()}
    return {key: kernels for key in KEYS.values()}  # on the CPU they refuse, naming the remedy


def _refusal(key: str) -> Kernel:
    def refuse(*_: Any, **__: Any) -> None:
        raise UserValueError(
            f"backend 'native' was built without kernels for {key}; rebuild it where the compiler for that "
            "device is found (pip install ./extensions), or choose use_backend('auto')."
        )

    return refuse


def _with_checks(op: str, kernel: Kernel) -> Kernel:
    """Give a kernel the checks of values that every kernel makes on the CPU."""

    @wraps(kernel)
    def checked(*arguments: Any, **named: Any) -> Any:
        if op in _values.CHECKS and arguments[0].device.type == "cpu":
            _values.CHECKS[op](*arguments, **named)
        return kernel(*arguments, **named)

    return checked


def _register_for_tests(name: str, kernels: Kernels) -> None:
    """Make a backend of CPU kernels known under a name; the tests run emulated CUDA kernels through it."""
    _BACKENDS[name] = lambda: {"CPU": kernels}


def _has_kernel(op: str, key: str) -> bool:
    return bool(key) and torch._C._dispatch_has_kernel_for_dispatch_key(f"{NAMESPACE}::{op}", key)


_BACKENDS: dict[str, Callable[[], dict[str, Kernels]]] = {
    "auto": dict,
    "reference": _of_reference,
    "native": _of_native,
    "pointnet2": _of_pointnet2,
}
_active = _Active("none")
_switching = threading.Lock()  # a library that two threads take away is taken away twice
_compiled: set[tuple[str, str]] = set()  # (op, dispatch key) that pcl-clora-ops has a kernel for


def _start() -> None:
    _native.problem()
    _compiled.update((op, key) for op in SCHEMAS for key in KEYS.values() if _has_kernel(op, key))
    wanted = os.environ.get(ENVIRONMENT) or "auto"
    try:
        _activate(wanted)
    except (ValueError, ImportError) as error:
        raise type(error)(f"{ENVIRONMENT}={wanted}: {error}") from error


_start()
