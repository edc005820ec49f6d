"""Files that cannot hurt: whole or not there when written, checked by a digest, never unpickled."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pcl_clora.io.errors import DataError

_HEADER_KEY = "header"


def atomic_write(path: str | Path, write: Callable[[Path], None]) -> None:
    """Write a file so that it is there whole or not at all.

    The content goes to a temporary name in the same folder, is forced to the disk and then renamed.

    Args:
        path: where to; missing folders are made.
        write: called with the temporary path; must leave a file there.

    Raises:
        OSError: if the folder cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.stem}.{secrets.token_hex(6)}.tmp{path.suffix}")
    try:
        write(aside)
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut, where the system can."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_file(path: str | Path) -> str:
    """Compute the SHA-256 of a file, 64 hex digits."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def save_tensors(
    path: str | Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any] | None = None
) -> None:
    """Write tensors as a safetensors file with a json header, whole or not at all.

    Args:
        path: where to.
        tensors: name -> tensor; copied to the CPU, made contiguous.
        header: anything json can hold, read back by `load_tensors`.
    """
    from safetensors.torch import save_file

    content = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = {_HEADER_KEY: json.dumps(dict(header or {}), sort_keys=True)}
    atomic_write(path, lambda aside: save_file(content, aside, metadata=metadata))


def load_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file of `save_tensors`: name -> tensor, and the header (empty if there is none).

    Raises:
        DataError: if the file is missing or is not a complete safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    if not Path(path).is_file():
        raise DataError(path, "there is no such file", "check the path")
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {}).get(_HEADER_KEY, "{}"))
            return {name: file.get_tensor(name) for name in file.keys()}, header  # noqa: SIM118 (not a dict)
    except (SafetensorError, json.JSONDecodeError) as error:
        raise DataError(
            path, f"not a complete safetensors file ({error})", "get or write it again"
        ) from error
