"""Tests as a user whom the system refuses files, also where they run as root."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_VERSION = 0x20080522  # of the system's call, with 64 bits
_OVERRIDE = 0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Data(ctypes.Structure):
    _fields_ = (
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    )


@contextmanager
def rights(path: Path, mode: int) -> Iterator[None]:
    """Give a file or folder other rights, which bind this thread although it may be root's."""
    before = path.stat().st_mode & 0o7777
    path.chmod(mode)
    try:
        with _as_others():
            yield
    finally:
        path.chmod(before)


@contextmanager
def no_room(size: int) -> Iterator[None]:
    """Let no file of this process grow above a size in bytes, as on a disk that is full."""
    resource = pytest.importorskip("resource", reason="limits of a process, which Windows does not have")
    before, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (before, most))


@contextmanager
def _as_others() -> Iterator[None]:
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        yield
        return
    libc, header, data = ctypes.CDLL(None), _Header(_VERSION, 0), (_Data * 2)()
    libc.capget(ctypes.byref(header), data)
    before = data[0].effective
    data[0].effective = before & ~_OVERRIDE
    libc.capset(ctypes.byref(header), data)
    try:
        yield
    finally:
        data[0].effective = before
        libc.capset(ctypes.byref(header), data)
