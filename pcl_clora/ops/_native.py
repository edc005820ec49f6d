"""Finding and loading the compiled kernels of the package pcl-clora-ops."""

from __future__ import annotations

import logging
from functools import cache
from importlib import import_module
from typing import Any

import torch

import pcl_clora

REMEDY = "build it in a checkout of this repository with: pip install ./extensions"
logger = logging.getLogger(__name__)


@cache
def problem() -> str | None:
    """Load the compiled kernels, once; say why there are none, or None where there are.

    Their kernels are registered for ops that must exist already. A build for another release is not loaded:
    a kernel that is called with other arguments than it was compiled for does anything.
    """
    try:
        package = import_module("pcl_clora_ops")
    except ImportError as error:
        logger.debug("No compiled ops (%s); %s", error, REMEDY)
        return f"the package pcl-clora-ops is not installed; {REMEDY}"
    built_for = package.BUILD["version"]
    if _release(built_for) != _release(pcl_clora.__version__):
        found = f"pcl-clora-ops {built_for} was built for another release than {pcl_clora.__version__}"
        logger.warning("%s and is not used; %s", found, REMEDY)
        return f"{found}; {REMEDY}"
    try:
        torch.ops.load_library(str(package.LIBRARY))  # type: ignore[no-untyped-call]
    except OSError as error:
        found = f"{package.LIBRARY} cannot be loaded by torch {torch.__version__} ({error})"
        logger.warning("%s; %s", found, REMEDY)
        return f"{found}; {REMEDY}"
    return None


def describe_native() -> dict[str, Any] | None:
    """Describe the compiled kernels in use.

    Returns:
        version; isa, the instruction set that the CPU kernels use here; cuda, the version of the compiler of
        the CUDA kernels or why there are none; cuda_architectures, such as "90". None where the package
        pcl-clora-ops is not installed or does not fit.
    """
    if problem() is not None:
        return None
    package = import_module("pcl_clora_ops")
    isa = getattr(package, "isa", None)
    return {
        "version": package.BUILD["version"],
        "isa": isa() if callable(isa) else package.BUILD.get("isa", "unknown"),
        "cuda": str(package.BUILD.get("cuda", "unknown")),
        "cuda_architectures": list(package.BUILD.get("cuda_architectures", ())),
    }


def _release(version: str) -> tuple[str, ...]:
    return tuple(version.split(".")[:2])
