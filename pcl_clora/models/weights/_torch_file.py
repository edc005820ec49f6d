"""Read what torch.save wrote, after a rehearsal that believes nothing the file declares.

`torch.load(weights_only=True)` runs no code, but reserves memory by sizes that a file only claims, lets
tensors grow beyond their storage, and does not look at checksums. So the pickle is first followed with
stand-ins for everything it names, and each claim is held against what is in the file.
"""

from __future__ import annotations

import io
import math
import pickle
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

MAX_INFLATION = 1000  # content may take this many times the bytes of a compressed file
_MAGIC = 0x1950A86A20F9469CFC6C  # what files of torch before 1.6 begin with
_NUMPY_SCALARS: list[Any] = [
    np.dtype,
    np.float64(0).__reduce__()[0],
    *(type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "int32", "bool")),
]
_SCALAR_KINDS = ("f8", "f4", "i8", "i4", "b1")
# Storage class of torch -> bytes of a value. What is missing has no place in a network.
_STORAGES = {
    "DoubleStorage": 8,
    "FloatStorage": 4,
    "HalfStorage": 2,
    "BFloat16Storage": 2,
    "LongStorage": 8,
    "IntStorage": 4,
    "ShortStorage": 2,
    "CharStorage": 1,
    "ByteStorage": 1,
    "BoolStorage": 1,
    "ComplexFloatStorage": 8,
    "ComplexDoubleStorage": 16,
}


class Refused(Exception):
    """A file is not what torch.save writes of a state dict.

    The message continues "<file> ..." and says what to do.
    """


AGAIN = "get it again"
TRUSTED = "save its state dict as safetensors where you trust it"


class _Inert:
    """Stands for an object of which only that it exists matters; nothing in a pickle can change it."""

    __slots__ = ()

    def __setstate__(self, state: object) -> None:
        pass


class _Mapping(dict[Any, Any]):
    """Stands for an OrderedDict or a Counter."""

    def __setstate__(self, state: object) -> None:
        pass


class _StorageType(_Inert):
    __slots__ = ("size",)

    def __init__(self, size: int) -> None:
        self.size = size


class _Storage(_Inert):
    __slots__ = ("numel",)

    def __init__(self, numel: int) -> None:
        self.numel = numel


class _Name(_Inert):
    """What an admitted name leads to."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., object]) -> None:
        self._call = call

    def __call__(self, *arguments: object) -> object:
        return self._call(*arguments)


def _inert(*_: object) -> object:
    return _Inert()


def _tensor(storage: object, offset: object, size: object, stride: object, *_: object) -> object:
    """Check that a tensor lies inside its storage, and has no more values."""
    numbers = (offset, *(size if isinstance(size, tuple) else (None,)))
    numbers += stride if isinstance(stride, tuple) else (None,)
    if not isinstance(storage, _Storage) or not all(isinstance(n, int) and n >= 0 for n in numbers):
        raise Refused(f"declares a tensor of shape {size!r} that cannot be; {AGAIN}")
    assert isinstance(offset, int)
    assert isinstance(size, tuple)
    assert isinstance(stride, tuple)
    numel = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=False)) if numel else 0
    if len(size) != len(stride) or last >= max(storage.numel, 1) or numel > storage.numel:
        raise Refused(
            f"declares a tensor of shape {size} over {storage.numel:,} values, which is more than there "
            f"are; {AGAIN}"
        )
    return _Inert()


def _dtype(code: object, *_: object) -> object:
    if code not in _SCALAR_KINDS:
        raise Refused(
            f"holds a numpy number of type {code!r}, expected one of {', '.join(_SCALAR_KINDS)}; {TRUSTED}"
        )
    return _Inert()


def _encode(text: object, encoding: object = "latin1") -> object:
    return text.encode("latin1") if isinstance(text, str) and encoding == "latin1" else b""


def _admitted() -> dict[str, Callable[..., object]]:
    names: dict[str, Callable[..., object]] = {
        "collections.OrderedDict": _Mapping,
        "collections.Counter": _Mapping,
        "builtins.set": _inert,
        "builtins.complex": _inert,
        "_codecs.encode": _encode,
        "numpy.dtype": _dtype,
        "torch.Size": _inert,
        "torch.device": _inert,
        "torch._utils._rebuild_tensor": _tensor,
        "torch._utils._rebuild_tensor_v2": _tensor,
        "torch._utils._rebuild_parameter": _inert,
        "torch._utils._rebuild_parameter_with_state": _inert,
        "torch.nn.parameter.Parameter": _inert,
    }
    names |= {f"numpy.{core}.multiarray.scalar": _inert for core in ("core", "_core")}
    return names


class _Rehearsal(pickle._Unpickler):
    """Follow a pickle with stand-ins.

    It is the unpickler written in Python: the other one reserves memory for any number that a memo index
    claims.

    Args:
        file: the bytes.
        bytes_of: key of a storage -> how many bytes the file has for it.
    """

    _names = _admitted()

    def __init__(self, file: io.BytesIO, bytes_of: Callable[[str], int]) -> None:
        super().__init__(file, encoding="utf-8")
        self._bytes_of = bytes_of
        self.storages: dict[str, tuple[int, int]] = {}

    def find_class(self, module: str, name: str) -> object:
        full = f"{'builtins' if module == '__builtin__' else module}.{name}"
        if module == "torch" and name in _STORAGES:
            return _StorageType(_STORAGES[name])
        if module == "torch" and isinstance(vars(torch).get(name), torch.dtype):
            return _Inert()
        if full.startswith(("torch._utils._rebuild", "torch._tensor.")) and full not in self._names:
            raise Refused(f"asks for {full}; expected dense, unquantised tensors, so save their to_dense()")
        if full not in self._names:
            raise Refused(
                f"asks to run code while loading ({full}), which a weights file never needs; it was "
                f"refused. {TRUSTED.capitalize()}"
            )
        return _Name(self._names[full])

    def persistent_load(self, pid: object) -> object:
        """Check that the file has the bytes that a storage claims."""
        if not isinstance(pid, tuple) or len(pid) < 5 or not isinstance(pid[1], _StorageType):
            raise Refused(f"refers to something that is no storage of a tensor; {AGAIN}")
        kind, key, numel = pid[1], str(pid[2]), pid[4]
        there = self._bytes_of(key)
        if not isinstance(numel, int) or numel < 0 or numel * kind.size > there:
            raise Refused(f"declares {numel} values where it has {there:,} bytes; {AGAIN}")
        self.storages[key] = (numel, kind.size)
        return _Storage(numel)


def read_torch_file(path: Path) -> object:
    """Read a file of torch.save with tensors on the CPU.

    Raises:
        Refused: if it is none, is torn, wants to run code, or declares more than it holds.
    """
    source: Path | io.BytesIO = path
    try:
        mapped = zipfile.is_zipfile(path)
        if mapped:
            mapped = not _rehearse_zip(path)
        else:
            source = _rehearse_legacy(path)
        with torch.serialization.safe_globals(_NUMPY_SCALARS):
            return torch.load(source, map_location="cpu", weights_only=True, mmap=mapped)
    except Refused:
        raise
    except Exception as error:  # a torn stream can make pickle, zipfile and torch raise nearly anything
        # Torch says what it found behind the advice to load unsafely, which nobody should follow.
        said = str(error).rpartition("WeightsUnpickler error:")[2].strip().partition("\n")[0][:200]
        raise Refused(
            f"is not a torch file, or not a complete one ({type(error).__name__}: {said}); {AGAIN}"
        ) from error


def _rehearse_zip(path: Path) -> bool:
    """Check the archive and its pickle; tell whether parts of it are compressed."""
    length = path.stat().st_size
    with zipfile.ZipFile(path) as archive:
        entries = {info.filename: info for info in archive.infolist()}
        pickles = [name for name in entries if name.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise Refused(_what_archive(list(entries)))
        if len(entries) != len(archive.infolist()):
            raise Refused(f"is not a torch file, or a damaged one: it has two parts of one name; {AGAIN}")
        total = sum(info.file_size for info in entries.values())
        if total > MAX_INFLATION * length:
            raise Refused(f"has {length:,} bytes and declares a content of {total:,}; {AGAIN}")
        for info in entries.values():
            with archive.open(info) as part:  # to the end, where zipfile compares the checksum
                while part.read(1 << 20):
                    pass
        root = pickles[0].removesuffix("data.pkl")
        if f"{root}constants.pkl" in entries:
            raise Refused(_what_archive(list(entries)))

        def bytes_of(key: str) -> int:
            info = entries.get(f"{root}data/{key}")
            return info.file_size if info else 0

        _Rehearsal(io.BytesIO(archive.read(pickles[0])), bytes_of).load()
    return any(info.compress_type != zipfile.ZIP_STORED for info in entries.values())


def _what_archive(names: list[str]) -> str:
    """Say what a zip archive without a state dict is."""
    if any(name.endswith("constants.pkl") for name in names):
        return (
            "is a TorchScript program; load it with torch.jit.load() where you trust it, and save its "
            "state_dict()"
        )
    if names and all(name.endswith(".npy") for name in names):
        return f"is a numpy archive (.npz) of {len(names)} arrays; save them as tensors with safetensors"
    inside = [name for name in names if name.endswith((".pth", ".pt", ".safetensors"))][:3]
    if inside:
        return f"is an archive that holds {', '.join(inside)}; unpack it and give one of them"
    shown = ", ".join(names[:5]) or "nothing"
    return f"is a zip archive, and not one of torch.save (it holds {shown}); get the weights file itself"


def _rehearse_legacy(path: Path) -> io.BytesIO:
    """Check a file as torch wrote them before 1.6: five pickles, and the storages behind them."""
    with path.open("rb") as raw:
        if raw.read(1) != b"\x80":
            raise Refused(f"is not a torch file, or not a complete one; {AGAIN}")
        raw.seek(0)
        file = io.BytesIO(raw.read())
    length = len(file.getbuffer())

    def load() -> tuple[Any, _Rehearsal]:
        reader = _Rehearsal(file, lambda key: length)
        return reader.load(), reader

    try:
        first = load()[0]
    except Exception:  # whatever it holds, it is not what torch.save begins a file with
        first = None
    if first != _MAGIC:
        raise Refused(
            "is a bare pickle, which torch.save did not write; reading it could run code, and it was "
            f"refused. {TRUSTED.capitalize()}"
        )
    load(), load()  # version of the protocol, machine
    _, reader = load()
    keys, _ = load()
    for key in keys:
        numel, size = reader.storages[str(key)]
        if int.from_bytes(file.read(8), "little") != numel or len(file.read(numel * size)) != numel * size:
            raise Refused(f"is not complete: the values of storage {key} are missing; {AGAIN}")
    file.seek(0)
    return file


def plain(value: object, depth: int = 2) -> Any:
    """Return numbers, text and small mappings of them as they are, of the rest the name of the type.

    Mappings are followed `depth` deep only: a file can refer to one of them from very many places.
    """
    if isinstance(value, np.generic) or (
        isinstance(value, torch.Tensor) and value.numel() == 1 and not value.is_meta
    ):
        value = value.item()
    if isinstance(value, str):
        return value if len(value) <= 1000 else f"{value[:1000]}..."
    if isinstance(value, bool | float) or (isinstance(value, int) and abs(value) < 1 << 64):
        return value
    if isinstance(value, Mapping) and 0 < len(value) <= 4 and depth:
        return {str(key)[:200]: plain(item, depth - 1) for key, item in value.items()}
    return type(value).__name__
