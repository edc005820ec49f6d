"""Arrays kept on disk so that slow files are parsed once: npy, mapped into memory, never changed."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

from pcl_clora.io import atomic_write
from pcl_clora.io.folders import user_cache_folder

__all__ = ["cached_array", "fingerprint", "user_cache_folder"]

logger = logging.getLogger(__name__)

_FORMAT = 1  # part of every fingerprint; a change of what is stored makes old files stale


def fingerprint(files: Iterable[Path], *settings: object) -> str:
    """Name a state of some files by 16 hex digits over their paths, sizes, times of change, and settings.

    Raises:
        FileNotFoundError: if a file is missing.
    """
    digest = hashlib.sha256(repr((_FORMAT, settings)).encode())
    for file in files:
        state = file.stat()
        digest.update(f"{file.resolve()}\0{state.st_size}\0{state.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]


def cached_array(
    folder: Path, name: str, state: str, shape: tuple[int, ...], fill: Callable[[np.ndarray], None]
) -> np.ndarray:
    """Map a cached float32 array into memory, after making it where it is missing or stale.

    The file is `folder/name-state.npy`. It is written aside and renamed, so it is whole or absent; files of
    other states of the same name are removed.

    Args:
        folder: where the file is kept.
        name: which array.
        state: fingerprint of what it is made from.
        shape: of the array.
        fill: called with an array of zeros to fill, when the file has to be made.

    Returns:
        A read-only float32 array of the shape.
    """
    path = folder / f"{name}-{state}.npy"
    if path.is_file():
        kept = _map(path, shape)
        if kept is not None:
            return kept
        logger.warning("%s is not the array it should be; it is made again.", path)

    def write(aside: Path) -> None:
        array = np.lib.format.open_memmap(aside, mode="w+", dtype=np.float32, shape=shape)
        fill(array)
        array.flush()

    atomic_write(path, write)
    for stale in folder.glob(f"{name}-*.npy"):
        if stale != path:
            stale.unlink(missing_ok=True)
    made = _map(path, shape)
    assert made is not None  # it has just been written
    return made


def _map(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, OSError, EOFError):
        return None
    return array if array.shape == shape and array.dtype == np.float32 else None
