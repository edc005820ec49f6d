"""Files that cannot hurt: whole or not there when written, checked by a digest, never unpickled."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pcl_clora.io.errors import DataError

_HEADER_KEY = "header"


def atomic_write(path: str | Path, write: Callable[[Path], None], *, only_writer: bool = False) -> None:
    """Write a file so that it is there whole or not at all.

    The content goes to a temporary name in the same folder, is forced to the disk and then renamed.

    Args:
        path: where to; missing folders are made.
        write: called with the temporary path, which has the same suffix; must leave a file there.
        only_writer: promises that no other process writes this file. The temporary name is then a fixed one,
            so that what a killed writer left behind is replaced; otherwise it is a new one every time.

    Raises:
        OSError: if the folder cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.stem}.{'partial' if only_writer else secrets.token_hex(6)}{path.suffix}")
    try:
        aside.touch()
        rights = aside.stat().st_mode & 0o777  # those of the user's files; safetensors gives fewer
        write(aside)
        aside.chmod(rights)
        with aside.open("rb+") as file:
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


def write_text(path: str | Path, text: str) -> None:
    """Write a utf-8 text file, whole or not at all."""

    def write(aside: Path) -> None:
        aside.write_text(text, encoding="utf-8")

    atomic_write(path, write, only_writer=True)


def write_json(path: str | Path, content: Any) -> None:
    """Write indented json, whole or not at all; rows of numbers on one line, nan and infinity as null."""
    text = json.dumps(finite(content), indent=2, allow_nan=False)
    text = re.sub(r"\[[-+.\deE,\s]*\]", lambda row: re.sub(r"\s+", " ", row[0]), text)
    write_text(path, text + "\n")


def finite(value: Any) -> Any:
    """Replace nan and infinity by None, which every json reader takes."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


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
