"""Files that cannot hurt: whole or not there when written, checked by a digest, never unpickled."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import platform
import re
import secrets
import shutil
import stat
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from pcl_clora.errors import UserValueError
from pcl_clora.io.errors import DataError, FileAccessError, check_is_file, explained, file_access_error

if TYPE_CHECKING:  # readers of points, which a process of their own imports, do without torch
    from torch import Tensor

_HEADER_KEY = "header"
AGAIN = "get or write the file again"
_PRIVATE = ".writing-"
_TORCH_WRITER = ("PytorchStreamWriter failed", "iostream error", "inline_container.cc")  # where it says why
_swept: set[tuple[int, str]] = set()


def atomic_write(path: str | Path, write: Callable[[Path], object]) -> None:
    """Write a file so that it is there whole or not at all, whoever else writes it.

    The content goes to a new folder beside the file, of a random name and open to this user only, is forced
    to the disk and then renamed. So writers never meet, the last one wins, and no link is written through: if
    `path` itself is a link, the link is replaced and what it leads to stays as it is. What killed writers of
    this machine left in the folder goes.

    Args:
        path: where to; missing folders are made.
        write: called with the temporary path, which has the same name; must leave a file there.

    Raises:
        FileAccessError: if the system refuses, for example because the disk is full, or if the path is a
            folder or a device.
    """
    path = Path(path)
    with explained(path, "written"):
        _check_replaceable(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path.parent)
        private = path.parent / f"{_PRIVATE}{_writer()}-{secrets.token_hex(6)}"
        private.mkdir(mode=0o700)  # fails on anything that is there, links included
        try:
            aside = private / path.name
            aside.touch()
            rights = aside.stat().st_mode & 0o777  # those of the user's files; safetensors gives fewer
            try:
                write(aside)
            except Exception as error:
                if _is_failed_write(error):
                    raise file_access_error(path, error, "written") from error
                raise
            aside.chmod(rights)
            with aside.open("rb+") as file:
                os.fsync(file.fileno())
            aside.replace(path)
        finally:
            shutil.rmtree(private, ignore_errors=True)
    _sync_folder(path.parent)


def open_log(path: Path) -> IO[bytes]:
    """Open a file to add to it; never through a link, which somebody else may have put there.

    Raises:
        FileAccessError: if it is a link, or the system refuses.
    """
    with explained(path, "written"):
        if path.is_symlink():
            raise FileAccessError(path, "is a link, and a log is not written through one", "remove it")
        flags = getattr(os, "O_NOFOLLOW", 0)
        return open(path, "ab", opener=lambda name, wanted: os.open(name, wanted | flags, 0o666))


def _check_replaceable(path: Path) -> None:
    """Refuse a folder, a device or a pipe, also behind a link."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return  # a folder that is none is found when it is needed
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        raise FileAccessError(path, "is a device or a pipe", "name a file")


def _is_failed_write(error: Exception) -> bool:
    """Tell a library's own words for a write that the system refused."""
    text = str(error)
    return (type(error).__name__ == "SafetensorError" and "(os error " in text) or (
        isinstance(error, RuntimeError) and any(words in text for words in _TORCH_WRITER)
    )


def _writer() -> str:
    """Name this process among all that may share a disk: machine (or container), number."""
    try:
        space = os.stat("/proc/self/ns/pid").st_ino  # containers number their processes anew
    except OSError:
        space = 0
    machine = hashlib.sha256(f"{platform.node()} {space}".encode()).hexdigest()[:8]
    return f"{machine}-{os.getpid()}"


def _remove_leftovers(folder: Path) -> None:
    """Remove what killed writers left, once a folder and process: a folder may hold very many files."""
    key = (os.getpid(), os.path.abspath(folder))
    if os.name != "posix" or key in _swept:
        return
    _swept.add(key)
    machine = _writer().partition("-")[0]
    for left in folder.glob(f"{_PRIVATE}{machine}-*-*"):
        number = left.name.removeprefix(_PRIVATE).split("-")[1]
        if number.isdecimal() and not left.is_symlink() and not _runs(int(number)):
            shutil.rmtree(left, ignore_errors=True)


def _runs(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):
        return True
    return True


def refuse_overwriting_inputs(
    outputs: Iterable[str | os.PathLike[str]], inputs: Iterable[str | os.PathLike[str]]
) -> None:
    """Refuse outputs that are files being read, by whatever name: another path, a link, a hard link, case.

    Call it before anything is written.

    Args:
        outputs: what will be written.
        inputs: what is read; `file.h5#7` is file.h5.

    Raises:
        UserValueError: naming the output and the input.
    """
    read = [(str(name), Path(_without_part(os.fspath(name)))) for name in inputs]
    for output in outputs:
        for name, file in read:
            if _is_same(Path(output), file):
                raise UserValueError(
                    f"{os.fspath(output)} would be written over the input {name}; give the output "
                    "another name or folder."
                )


def _without_part(name: str) -> str:
    """Leave out what follows the name of an hdf5 file, unless there is a file of the whole name."""
    file, mark, _ = name.partition("#")
    return file if mark and not os.path.exists(name) else name


def _is_same(output: Path, file: Path) -> bool:
    try:
        return output.samefile(file)
    except OSError:  # one is not there: the same file only where both are to be made
        return os.path.normcase(output.absolute()) == os.path.normcase(file.absolute())


def _sync_folder(folder: Path) -> None:
    """Make a rename survive a power cut, where the system can."""
    if os.name != "posix":
        return
    with suppress(OSError):  # the file is there; a folder may be closed to readers, or have nothing to sync
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_text(path: str | Path, text: str) -> None:
    """Write a utf-8 text file, whole or not at all."""

    def write(aside: Path) -> None:
        aside.write_text(text, encoding="utf-8")

    atomic_write(path, write)


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
    """Compute the SHA-256 of a file, 64 hex digits.

    Raises:
        FileAccessError: if it cannot be read.
    """
    digest = hashlib.sha256()
    with explained(path, "read"), Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_json(path: str | Path) -> dict[str, Any]:
    """Read a json file that holds an object.

    Raises:
        DataError: if the file is missing, torn, nested too deeply or holds something else.
    """
    with explained(path, "read"):
        return parse_json(path, Path(path).read_bytes())


def parse_json(path: str | Path, text: str | bytes) -> dict[str, Any]:
    """Read a json object that stands in the file `path`, alone or as a part of it.

    Raises:
        DataError: if the text is torn, nested too deeply or something else than an object.
    """
    try:
        content = json.loads(text)
    except RecursionError:
        raise DataError(path, "its json is nested too deeply", AGAIN) from None
    except ValueError as error:  # also of text that is not utf-8, and of whole numbers of thousands of digits
        raise DataError(path, f"is not complete json ({error})", AGAIN) from error
    if not isinstance(content, dict):
        raise DataError(path, f"holds json of a {type(content).__name__}, expected an object", AGAIN)
    return content


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


def load_tensors(path: str | Path, *, header_only: bool = False) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file of `save_tensors`: name -> tensor, and the header (empty if there is none).

    Args:
        path: the file.
        header_only: read no tensors.

    Raises:
        DataError: if the file is missing or is not a complete safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    check_is_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            header = parse_json(path, (file.metadata() or {}).get(_HEADER_KEY, "{}"))
            names = [] if header_only else file.keys()
            return {name: file.get_tensor(name) for name in names}, header
    except OSError as error:
        raise file_access_error(path, error, "read") from error
    except (SafetensorError, ValueError, TypeError, RuntimeError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(path, f"not a complete safetensors file ({error})", AGAIN) from error
