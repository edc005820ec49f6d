"""Where the compiled kernels of `pcl_clora.ops` are, and what they were built with.

Importing this loads nothing. `pcl_clora.ops` loads the library, which registers kernels for the ops that
`pcl_clora` defines.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

from pcl_clora_ops._build import BUILD as _BUILD

LIBRARY: Path = Path(__file__).with_name("_C.abi3.so")
BUILD: dict[str, Any] = _BUILD
"""version, torch (that of the headers), compiler, isa (instruction sets), cuda (the version of nvcc, or why
there are no CUDA kernels) and cuda_architectures."""


def isa() -> str:
    """Name the instruction set the CPU kernels use here, or what is wrong with PCL_CLORA_ISA.

    torch must be imported first: the library needs its libraries.
    """
    name = ctypes.CDLL(str(LIBRARY)).pcl_clora_ops_isa
    name.restype = ctypes.c_char_p
    return str(name().decode())
