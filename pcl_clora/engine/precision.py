"""Which precision a run computes in: chosen once, where it begins, and kept from then on."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from pcl_clora.engine.config import RunConfig
from pcl_clora.engine.run.folder import RunFolder

logger = logging.getLogger("pcl_clora")

Precision = Literal["float32", "bfloat16"]

_CPUINFO = Path("/proc/cpuinfo")
_NATIVE_FLAGS = ("avx512_bf16", "amx_bf16")
_CAPPED = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")  # what keeps torch's matrix products from newer parts
_UNCAPPED = ("ALL", "DEFAULT", "AVX512_CORE_BF16", "AVX512_CORE_FP16", "AVX10", "AVX512_CORE_AMX")


def has_native_bfloat16(device: torch.device) -> bool:
    """Tell whether a device multiplies matrices of bfloat16 itself, which is what makes it quick.

    A CPU does with AVX512_BF16 or AMX, unless the environment keeps torch from using them; a GPU of compute
    capability 8.0 or more does. Others count as emulating it.
    """
    if device.type == "cuda":
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu" or not torch._C._has_mkldnn:
        return False
    caps = [os.environ[name].upper() for name in _CAPPED if os.environ.get(name)]
    if any(not cap.startswith(_UNCAPPED) for cap in caps):
        return False
    asked = [
        getattr(torch.cpu, name, None) for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    ]
    known = [bool(ask()) for ask in asked if ask is not None]
    return any(known) if len(known) == len(asked) else any(flag in _cpu_flags() for flag in _NATIVE_FLAGS)


def choose_precision(amp: bool | Literal["auto"], device: torch.device) -> Precision:
    """Turn train.amp into the precision of a run that begins: "auto" takes bfloat16 where it is native."""
    return "bfloat16" if amp is True or (amp == "auto" and has_native_bfloat16(device)) else "float32"


def kept_precision(cfg: RunConfig, identity: Mapping[str, Any], device: torch.device) -> Precision:
    """Choose the precision of a run that goes on: with train.amp=auto that in which it began.

    Args:
        cfg: the settings now.
        identity: of the checkpoint.
        device: the run goes on on.
    """
    began = identity.get("train.amp")
    if cfg.train.amp != "auto" or not isinstance(began, bool):
        return choose_precision(cfg.train.amp, device)
    return "bfloat16" if began else "float32"


def precision_of(cfg: RunConfig, result: Mapping[str, Any]) -> Precision:
    """Say in which precision a finished run was trained.

    Args:
        cfg: its settings; with train.amp=true or false they say it, as those of an evaluation may.
        result: the content of its result.json, which says what train.amp=auto came to.
    """
    told = cfg.train.amp is True if cfg.train.amp != "auto" else result.get("precision") == "bfloat16"
    return "bfloat16" if told else "float32"


def precision_of_run(folder: str | Path, cfg: RunConfig) -> Precision:
    """Say in which precision the finished run in a folder was trained; predictions are made in the same.

    Args:
        folder: of the run.
        cfg: see `precision_of`.
    """
    files = RunFolder(Path(folder))
    return precision_of(cfg, files.read_result() if files.result.is_file() else {})


def say_precision(precision: Precision, device: torch.device, amp: bool | Literal["auto"]) -> str:
    """Say which precision was chosen where train.amp=auto left it open, and warn where it is slow here."""
    if precision == "bfloat16":
        warn_if_emulated(device, "start over with --resume never" if amp == "auto" else "set train.amp=auto")
    if amp != "auto":
        return ""
    native = "is" if has_native_bfloat16(device) else "is not"
    return f"train.amp=auto: {precision}; bfloat16 {native} native on {describe_device(device)}"


def warn_if_emulated(device: torch.device, remedy: str) -> None:
    """Warn where a device computes in bfloat16 more slowly than in float32; `remedy` leads to the latter."""
    if not has_native_bfloat16(device):
        logger.warning(
            "bfloat16 is emulated on %s and slower than float32: for a CLoRA step of 32 clouds 13 times on "
            "one core of a server with AVX2 only (6.8 instead of 0.51 s), 3.3 times on one with AVX-512 and "
            "no bfloat16 (0.80 instead of 0.24 s), as measured. To compute in float32, %s.",
            describe_device(device),
            remedy,
        )


def describe_device(device: torch.device) -> str:
    """Name a device in the messages here."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"this {device.type.upper()}"


def _cpu_flags() -> frozenset[str]:
    """Read what a Linux system says its processor can do; nothing where it does not say."""
    try:
        lines = _CPUINFO.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    return frozenset(word for line in lines if line.startswith("flags") for word in line.split())
