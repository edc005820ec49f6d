"""What the system says of its processor."""

from __future__ import annotations

import platform
from pathlib import Path


def processor_name() -> str:
    """Name the processor, and the widest vectors it has."""
    named = _cpuinfo()
    widest = next((flag for flag in ("avx512f", "avx2", "sse2") if flag in vector_flags()), "")
    return f"{named.get('model name', platform.processor() or platform.machine())} {widest}".strip()


def vector_flags() -> list[str]:
    """List what the processor can do with vectors and matrices, by the system's names."""
    prefixes = ("sse2", "avx", "fma", "amx")
    return sorted(flag for flag in _cpuinfo().get("flags", "").split() if flag.startswith(prefixes))


def _cpuinfo() -> dict[str, str]:
    """Read what a Linux system says of its processors; nothing elsewhere."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return {key.strip(): value.strip() for key, value in fields.items()}
