"""Read numpy arrays out of a pickle without running anything that the pickle names.

A pickle is a program; the ones that data sets come as are from strangers. The reader here knows plain
containers, numbers and text, and the few names that numpy writes for an array. Even those are not numpy's
own: they lead to stand-ins that only note what they are given, so that no code of numpy sees unchecked input
either.
"""

from __future__ import annotations

import pickle
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np

from pcl_clora.io.errors import DataError, check_is_file, explained

REMEDY = "get the file from its official source, or save its arrays as npz where you trust it"


class _Refused(Exception):
    """The pickle asked for something that is not a numpy array."""


class _DType:
    """Stands for a numpy dtype."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.code, self.order = _text(code), "<"

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) < 5 or any(part is not None for part in state[2:5]):
            raise _Refused("a dtype with fields, or of an unknown version")
        self.order = _text(state[1])

    def build(self) -> np.dtype[Any]:
        try:
            dtype = np.dtype(self.code)
        except TypeError:
            raise _Refused(f"dtype {self.code!r}") from None
        if dtype.kind not in "biufSU":
            raise _Refused(f"dtype {self.code!r}, which does not hold plain numbers or text")
        if self.order in ("<", ">"):
            dtype = np.dtype(f"{self.order}{dtype.str[1:]}")
        return dtype


class _Array:
    """Stands for a numpy array."""

    def __init__(self, shape: Any = (), dtype: Any = None, data: Any = b"", fortran: Any = False) -> None:
        self.state = (shape, dtype, fortran, data)

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5:
            raise _Refused("an array of an unknown version")
        self.state = state[1:]

    def build(self) -> np.ndarray:
        shape, dtype, fortran, data = self.state
        if isinstance(data, str):  # pickles of Python 2 keep bytes as text
            data = data.encode("latin1")
        if not isinstance(dtype, _DType) or not isinstance(data, bytes | bytearray | pickle.PickleBuffer):
            raise _Refused("an array of objects")
        if not isinstance(shape, tuple) or not all(isinstance(size, int) and size >= 0 for size in shape):
            raise _Refused(f"an array of shape {shape!r}")
        built = dtype.build()
        view = memoryview(data)
        flat = np.frombuffer(view, dtype=built) if len(view) else np.empty(0, dtype=built)
        array = flat.reshape(shape, order="F" if fortran in (True, "F") else "C")
        return array.astype(built.newbyteorder("="))  # a copy of our own, in the byte order of this machine


class _Scalar(_Array):
    """Stands for a numpy number."""


class _Name:
    """What an admitted name leads to: it can be called, and nothing that a pickle says can change it."""

    __slots__ = ("_call",)

    def __init__(self, call: Callable[..., Any]) -> None:
        self._call = call

    def __call__(self, *arguments: Any) -> Any:
        return self._call(*arguments)

    def __setstate__(self, state: Any) -> None:
        raise _Refused("a change of what a name means")


def _ndarray(*_: Any) -> Any:
    """Stand for the type numpy.ndarray, only an argument of the function that rebuilds arrays."""
    raise _Refused("a call of numpy.ndarray")


def _new_array(*_: Any) -> _Array:
    return _Array()


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    return _Array(shape, dtype, data, order)


def _scalar(dtype: Any, data: Any = b"") -> _Scalar:
    return _Scalar((), dtype, data)


def _encode(text: Any, encoding: Any = "latin1") -> bytes:
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise _Refused(f"an encoding {encoding!r}")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """Give b"", which old protocols write as a call of the type bytes."""
    return b""


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        value = value.decode("latin1")
    if not isinstance(value, str):
        raise _Refused(f"a dtype named {type(value).__name__}")
    return value


def _admitted() -> dict[tuple[str, str], Callable[..., Any]]:
    names: dict[tuple[str, str], Callable[..., Any]] = {
        ("numpy", "ndarray"): _ndarray,
        ("numpy", "dtype"): _DType,
        ("_codecs", "encode"): _encode,
        ("__builtin__", "bytes"): _no_bytes,
    }
    for core in ("numpy.core", "numpy._core"):
        names[f"{core}.multiarray", "_reconstruct"] = _new_array
        names[f"{core}.multiarray", "scalar"] = _scalar
        names[f"{core}.numeric", "_frombuffer"] = _from_buffer
    return names


class _Reader(pickle.Unpickler):
    _names = _admitted()

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._names:
            raise _Refused(f"{module}.{name}")
        return _Name(self._names[module, name])

    def persistent_load(self, pid: Any) -> Any:
        raise _Refused(f"an object kept elsewhere ({pid!r})")


def load_pickled_arrays(path: str | Path) -> Any:
    """Read a pickle that holds numpy arrays in lists, tuples and dicts, with plain numbers and text.

    Args:
        path: file of pickle.dump, of any protocol, of Python 2 or 3.

    Returns:
        The same nesting, with arrays of native byte order that own their memory.

    Raises:
        DataError: if the file is missing or truncated, or asks for anything else; the message names what it
            asked for. Nothing the file names is ever imported or called.
    """
    path = Path(path)
    check_is_file(path)
    try:
        with explained(path, "read"), path.open("rb") as file:
            _check_sizes(_Clamped(file, path.stat().st_size))
            file.seek(0)
            content = _Reader(_Clamped(file, path.stat().st_size), encoding="latin1").load()
        return _rebuild(content, set(), {})
    except DataError:
        raise
    except _Refused as refusal:
        problem = f"the pickle asks for {refusal}, but only numpy arrays in plain containers are admitted"
        raise DataError(path, problem, REMEDY) from None
    except RecursionError:
        raise DataError(path, "the pickle is nested too deeply", REMEDY) from None
    except Exception as error:  # a torn or hostile stream can make the pickle machine raise nearly anything
        problem = f"not a complete pickle of arrays ({type(error).__name__}: {error})"
        raise DataError(path, problem, REMEDY) from error


class _Clamped:
    """A file that gives what is left where more is asked for, so that nobody makes room for more."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self._size, self.readline = file, size, file.readline

    def read(self, count: int = -1) -> bytes:
        left = self._size - self._file.tell()
        return self._file.read(left if count < 0 else min(count, left))

    def tell(self) -> int:
        return self._file.tell()


def _check_sizes(file: _Clamped) -> None:
    """Go through the pickle without building anything: sizes beyond the file, places beyond all that is kept.

    The machine of pickle makes room for both before it looks further.
    """
    for number, (opcode, argument, _) in enumerate(pickletools.genops(file)):  # type: ignore[arg-type]
        if opcode.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > number + 1:
            raise _Refused(f"a place {argument} in a memory of at most {number}")


def _rebuild(value: Any, above: set[int], built: dict[int, Any]) -> Any:
    """Replace the stand-ins by arrays, all through the containers; what stands twice is built once."""
    if id(value) in built:
        return built[id(value)]
    if isinstance(value, _Array):
        array = value.build()
        built[id(value)] = array.reshape(())[()] if isinstance(value, _Scalar) else array
        return built[id(value)]
    if value is None or isinstance(value, bool | int | float | complex | str | bytes | bytearray):
        return value
    if not isinstance(value, list | tuple | dict):
        raise _Refused(f"an object of type {type(value).__name__.strip('_')}")
    if id(value) in above:
        raise _Refused("a container that holds itself")
    above.add(id(value))
    rebuilt: Any
    if isinstance(value, dict):
        rebuilt = {_rebuild(key, above, built): _rebuild(item, above, built) for key, item in value.items()}
    else:
        rebuilt = type(value)(_rebuild(item, above, built) for item in value)
    above.discard(id(value))
    built[id(value)] = rebuilt
    return rebuilt
