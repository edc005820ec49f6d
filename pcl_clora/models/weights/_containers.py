"""Read weights files of strangers: nothing is unpickled freely, no tensor is read before it is needed.

A file is a safetensors file, or what torch.save wrote with the weights at the top level or under one of the
entries that the published training loops use. The content decides, not the suffix.
"""

from __future__ import annotations

import json
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pcl_clora.models.errors import WeightsError

# Entries of torch files that hold the weights -> who writes them.
CONTAINERS: dict[str, str] = {
    "base_model": "classification and pre-training loops of the Point-MAE family",
    "model_state_dict": "part segmentation loops of the Point-MAE family",
    "model": "common habit; the published --test options take it first",
    "state_dict": "common habit; ACT's own teacher",
}
NUMPY_SCALARS = [
    np.dtype,
    np.core.multiarray.scalar if not hasattr(np, "_core") else np._core.multiarray.scalar,
    *(type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "int32", "bool")),
]
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
# What a file begins with when it is something else, saved under the name of a weights file.
_OTHER_CONTENT: tuple[tuple[re.Pattern[bytes], str], ...] = (
    (
        re.compile(rb"(\xef\xbb\xbf)?\s*<(!doctype|!--|html|head|\?xml)", re.IGNORECASE),
        "is a web page: the download asked for a login or a confirmation. Get the file itself",
    ),
    (
        re.compile(rb"version https://git-lfs"),
        "is a pointer of git-lfs, not the file it stands for. Run `git lfs pull`, or download the file",
    ),
    (re.compile(rb"\s*\{\s*\""), "is json text, often an error message of a server. Get the file itself"),
)


class SafetensorsFile(Mapping[str, Tensor]):
    """The tensors of a safetensors file, each read when it is asked for.

    A tensor is read into memory of its own, and the file is not mapped, so that filling a model costs the
    memory of the model and of one tensor.

    Args:
        path: the file; its header is checked against its length.

    Raises:
        WeightsError: if it is not a complete safetensors file.
    """

    def __init__(self, path: Path) -> None:
        from safetensors import SafetensorError, safe_open

        self.path = path
        try:
            with safe_open(path, framework="pt") as file:
                self.metadata: dict[str, str] = file.metadata() or {}
        except SafetensorError as error:
            raise WeightsError(
                f"{path} is not a complete safetensors file ({error}); get it again."
            ) from error
        with path.open("rb") as raw:
            length = int.from_bytes(raw.read(8), "little")
            header = json.loads(raw.read(length))
        header.pop("__metadata__", None)
        self._start = 8 + length
        self._entries: dict[str, dict[str, Any]] = header
        unknown = {entry["dtype"] for entry in header.values()} - set(_DTYPES)
        if unknown:
            raise WeightsError(
                f"{path} holds tensors of type {', '.join(sorted(unknown))}; expected one of "
                f"{', '.join(_DTYPES)}. Convert it with the tool that wrote it."
            )

    def __getitem__(self, key: str) -> Tensor:
        entry = self._entries[key]
        tensor = torch.empty(entry["shape"], dtype=_DTYPES[entry["dtype"]])
        if tensor.numel():
            begin, end = entry["data_offsets"]
            with self.path.open("rb") as raw:
                raw.seek(self._start + begin)
                count = raw.readinto(tensor.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
            if count != end - begin:
                raise WeightsError(f"{self.path} became shorter while it was read; get it again.")
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def like(self, key: str) -> Tensor:
        """Return a tensor of the same shape and type without content."""
        entry = self._entries[key]
        return torch.empty(entry["shape"], dtype=_DTYPES[entry["dtype"]], device="meta")


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a weights file, and what stands beside them.

    Attributes:
        source: the file, or "state dict".
        container: the entry that held the tensors, "" for the top level.
        tensors: key -> tensor; of a safetensors file each is read when it is asked for.
        extras: names of what else the file holds -> its value if it is a number or text, otherwise its type.
    """

    source: str
    container: str
    tensors: Mapping[str, Tensor]
    extras: Mapping[str, Any] = field(default_factory=dict)

    def like(self, key: str) -> Tensor:
        """Return the tensor or one of its shape and type without content, whatever costs nothing."""
        return self.tensors.like(key) if isinstance(self.tensors, SafetensorsFile) else self.tensors[key]


def open_checkpoint(source: str | Path | Mapping[str, Any]) -> Checkpoint:
    """Open a weights file without running code from it, or take the content of one.

    Args:
        source: path of a file, or a mapping: a state dict or the content of a torch file.

    Raises:
        WeightsError: if the file is missing, damaged, something else, wants to run code, or holds no tensors.
    """
    if isinstance(source, Mapping):
        return _unpack(source, "state dict")
    path = Path(source)
    if path.is_dir():
        raise WeightsError(f"{path} is a folder; expected a weights file, or the folder of a finished run.")
    if not path.is_file():
        raise WeightsError(f"Weights file {path} does not exist; check the path.")
    with path.open("rb") as file:
        start = file.read(256)
    if start[8:9] == b"{" or path.suffix == ".safetensors":
        _refuse_other_content(path, start)
        tensors = SafetensorsFile(path)
        if not tensors:
            raise WeightsError(f"{path} holds no tensors.")
        return Checkpoint(str(path), "", tensors, dict(tensors.metadata))
    return _unpack(_unpickle(path, start), str(path))


def read_state_dict(path: str | Path) -> tuple[dict[str, Tensor], str]:
    """Read the tensors of a weights file without running code from it.

    Args:
        path: a .safetensors file, or a file of torch.save with one of the known containers or a plain state
            dict.

    Returns:
        (key -> tensor, name of the container or "").

    Raises:
        WeightsError: if the file is missing, damaged, wants to run code, or holds no tensors.
    """
    checkpoint = open_checkpoint(path)
    return {key: checkpoint.tensors[key] for key in checkpoint.tensors}, checkpoint.container


def _refuse_other_content(path: Path, start: bytes) -> None:
    if not start:
        raise WeightsError(f"{path} is empty; get it again.")
    for pattern, what in _OTHER_CONTENT:
        if pattern.match(start):
            raise WeightsError(f"{path} is not a torch file; it {what}.")


def _unpickle(path: Path, start: bytes) -> object:
    _refuse_other_content(path, start)
    try:
        with torch.serialization.safe_globals(NUMPY_SCALARS):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        if asked is None and re.match(rb"\x80[\x02-\x05]", start):
            raise WeightsError(
                f"{path} is a bare pickle, which torch.save did not write; reading it could run code, and it "
                "was refused. Save its state dict as safetensors where you trust it."
            ) from error
        if asked is None:
            raise WeightsError(f"{path} is not a torch file, or not a complete one; get it again.") from error
        raise WeightsError(
            f"{path} asks to run code while loading ({asked[1]}), which a weights file never needs; it was "
            "refused. Save its state dict as safetensors where you trust it."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise WeightsError(
            f"{path} is not a torch file, or not a complete one ({type(error).__name__}: {error}); get it "
            "again."
        ) from error


def _unpack(content: object, source: str) -> Checkpoint:
    if not isinstance(content, Mapping):
        raise WeightsError(
            f"{source} holds a {type(content).__name__}; expected a mapping with a state dict."
        )
    for container in CONTAINERS:
        inner = content.get(container)
        if isinstance(inner, Mapping):
            extras = {str(key): _short(value) for key, value in content.items() if key != container}
            return Checkpoint(source, container, _tensors(inner, source), extras)
    extras = {str(key): _short(value) for key, value in content.items() if not isinstance(value, Tensor)}
    return Checkpoint(source, "", _tensors(content, source), extras)


def _tensors(mapping: Mapping[object, object], source: str) -> dict[str, Tensor]:
    tensors = {str(key): value for key, value in mapping.items() if isinstance(value, Tensor)}
    if not tensors:
        raise WeightsError(
            f"{source} holds no tensors at the top level or under {', '.join(CONTAINERS)}; found: "
            f"{', '.join(map(str, list(mapping)[:10]))}."
        )
    return tensors


def _short(value: object) -> Any:
    """Return numbers, text and small mappings of them as they are, of the rest the name of the type."""
    if isinstance(value, np.generic) or (isinstance(value, Tensor) and value.numel() == 1):
        return value.item()
    if isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping) and 0 < len(value) <= 4:
        return {str(key): _short(item) for key, item in value.items()}
    return type(value).__name__
