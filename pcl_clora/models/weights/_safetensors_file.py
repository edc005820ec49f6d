"""Read a safetensors file lazily, after its header was held against the length of the file."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pcl_clora.models.errors import WeightsError

MAX_HEADER = 100_000_000  # bytes, as the library has it
_MAX_SIZE = 1 << 60  # of one dimension, and of all that are not 0
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


class SafetensorsFile(Mapping[str, Tensor]):
    """The tensors of a safetensors file, each read when it is asked for.

    A tensor is read into memory of its own, and the file is not mapped, so that filling a model costs the
    memory of the model and of one tensor. Nothing is reserved that the file does not have.

    Args:
        path: the file.

    Raises:
        WeightsError: if it is not a complete safetensors file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with path.open("rb") as raw:
            state = os.fstat(raw.fileno())
            length = int.from_bytes(raw.read(8), "little")
            if state.st_size < 8 or length > min(state.st_size - 8, MAX_HEADER):
                self._refuse(f"its header claims {length:,} bytes, the file has {state.st_size:,}")
            text = raw.read(length)
        self._written = (state.st_size, state.st_mtime_ns)
        self._start = 8 + length
        header = self._parse(text)
        self.metadata: dict[str, str] = header.pop("__metadata__", {})
        if not isinstance(self.metadata, dict) or not all(isinstance(v, str) for v in self.metadata.values()):
            self._refuse("its metadata are no text")
        unknown = {entry["dtype"] for entry in header.values() if _is_entry(entry)} - set(_DTYPES)
        if unknown:
            raise WeightsError(
                f"{path} holds tensors of type {', '.join(sorted(unknown))}; expected one of "
                f"{', '.join(_DTYPES)}. Convert it with the tool that wrote it."
            )
        self._check(header, state.st_size - self._start)
        self._entries: dict[str, dict[str, Any]] = header

    def _refuse(self, why: str) -> None:
        raise WeightsError(f"{self.path} is not a complete safetensors file ({why}); get it again.")

    def _parse(self, text: bytes) -> dict[str, Any]:
        header: object = None
        try:
            header = json.loads(text, object_pairs_hook=_without_repeats)
        except RecursionError:
            self._refuse("its header is nested too deeply")
        except ValueError as error:  # also of text that is not utf-8, and of numbers of thousands of digits
            self._refuse(f"its header: {str(error)[:200]}")
        if not isinstance(header, dict):
            self._refuse(f"its header is a {type(header).__name__}, expected an object")
        assert isinstance(header, dict)
        return header

    def _check(self, header: Mapping[str, Any], length: int) -> None:
        """Check that the tensors fill the file, one after another."""
        for key, entry in header.items():
            if not _is_entry(entry):
                self._refuse(f"{key[:200]!r} has no dtype, shape and data_offsets")
            begin, end = entry["data_offsets"]
            if math.prod(entry["shape"]) * _DTYPES[entry["dtype"]].itemsize != end - begin:
                self._refuse(f"{key[:200]!r} of shape {entry['shape']} has {end - begin:,} bytes")
        place = 0
        for begin, end in sorted(entry["data_offsets"] for entry in header.values()):
            if begin != place:
                self._refuse(f"a tensor begins at byte {begin:,}, expected {place:,}")
            place = end
        if place != length:
            self._refuse(f"its tensors take {place:,} bytes, the file has {length:,} for them")

    def __getitem__(self, key: str) -> Tensor:
        entry = self._entries[key]
        tensor = torch.empty(entry["shape"], dtype=_DTYPES[entry["dtype"]])
        if tensor.numel():
            begin, end = entry["data_offsets"]
            with self.path.open("rb") as raw:
                state = os.fstat(raw.fileno())
                raw.seek(self._start + begin)
                view = tensor.reshape(-1).view(torch.uint8).numpy().data
                count = raw.readinto(view)
            if count != end - begin or (state.st_size, state.st_mtime_ns) != self._written:
                raise WeightsError(f"{self.path} was changed while it was read; load it again.")
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def like(self, key: str) -> Tensor:
        """Return a tensor of the same shape and type without content."""
        entry = self._entries[key]
        return torch.empty(entry["shape"], dtype=_DTYPES[entry["dtype"]], device="meta")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a name stands there twice")
    return made


def _is_entry(entry: object) -> bool:
    """Tell whether a value of the header describes a tensor that can be."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        return False
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not isinstance(entry["dtype"], str) or not isinstance(shape, list) or not isinstance(offsets, list):
        return False
    numbers = [*shape, *offsets]
    return (
        len(offsets) == 2
        and all(type(number) is int and 0 <= number < _MAX_SIZE for number in numbers)
        and math.prod(size for size in shape if size) < _MAX_SIZE
        and len(shape) <= 64
        and offsets[0] <= offsets[1]
    )
