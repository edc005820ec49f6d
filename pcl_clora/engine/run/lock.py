"""One training at a time in a run folder: a lock beside it that ends with its owner, however that ends."""

from __future__ import annotations

import errno
import json
import os
import platform
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from pcl_clora.errors import PclCloraError
from pcl_clora.io import DataError, explained, read_json
from pcl_clora.io.text import visible

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

_WITHOUT_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)  # file systems that have none
_held: set[str] = set()  # by this process: the system lets a process take its own locks again


class RunLockedError(PclCloraError, RuntimeError):
    """A run folder in which another training is at work; the message names it."""


class RunLock:
    """Context in which no other process trains in a run folder.

    The lock is a record lock of the system on the file `.<name>.lock` beside the folder. The system takes it
    away when the process ends, also a killed one, and workers of its loader do not inherit it; on network
    drives the server does so. The file says who holds it and is removed at the end; one that was left behind
    locks nothing. Where a file system has no locks, the file itself is the lock, made exclusively, and one
    whose owner is gone from this machine is taken over.

    Args:
        folder: of the run; need not be there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        whole = folder.absolute()
        self.path = whole.parent / f".{whole.name[:200]}.lock"
        self._key = os.path.realpath(self.path)
        self._file: int | None = None

    def __enter__(self) -> RunLock:
        """Take the lock.

        Raises:
            RunLockedError: if another training holds it.
            FileAccessError: if the file cannot be written.
        """
        if self._key in _held:
            raise self._refusal()
        with explained(self.path, "written"):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._take()
            os.ftruncate(self._file, 0)
            os.pwrite(self._file, json.dumps(this_process()).encode(), 0)
        _held.add(self._key)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._file is not None
        _held.discard(self._key)
        if os.name == "posix":
            self.path.unlink(missing_ok=True)  # before it is let go, so that nobody else's file is removed
            os.close(self._file)
        else:
            os.close(self._file)
            self.path.unlink(missing_ok=True)

    def _take(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)
        while fcntl is not None:
            file = os.open(self.path, flags, 0o644)
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_still_there(file, self.path):
                    return file
                os.close(file)  # its owner ended and removed it in between
            except OSError as error:
                os.close(file)
                if error.errno in (errno.EACCES, errno.EAGAIN):
                    raise self._refusal() from None
                if error.errno not in _WITHOUT_LOCKS:
                    raise
                break
        try:
            return os.open(self.path, flags | os.O_EXCL, 0o644)
        except FileExistsError:
            if may_run(self._owner()):
                raise self._refusal() from None
            self.path.unlink(missing_ok=True)
            return os.open(self.path, flags | os.O_EXCL, 0o644)

    def _owner(self) -> dict[str, Any]:
        try:
            return read_json(self.path)
        except DataError:
            return {}

    def _refusal(self) -> RunLockedError:
        owner = this_process() if self._key in _held else self._owner()
        who = f"pid {owner.get('pid', '?')}"
        if owner.get("host", platform.node()) != platform.node():
            who += f" on {visible(str(owner['host']))}"
        return RunLockedError(
            f"another process trains in {self.folder} ({who}), and two would tear one another's files. Wait "
            f"for it or stop it, or choose another run folder (name=...). If there is no such process, "
            f"remove {self.path}."
        )


def _is_still_there(file: int, path: Path) -> bool:
    try:
        there, mine = path.stat(), os.fstat(file)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)


def this_process() -> dict[str, Any]:
    """Say which process this is, so that `may_run` knows it."""
    return {"pid": os.getpid(), "host": platform.node(), "started": _started(os.getpid()), "at": time.time()}


def _started(pid: int) -> str:
    """When a process began, in the system's ticks: a number that is used again gets another one."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return ""


def may_run(owner: dict[str, Any]) -> bool:
    """Tell whether a process may be at work; that it is gone can be said of this machine only."""
    pid = owner.get("pid")
    if not isinstance(pid, int) or owner.get("host") != platform.node() or os.name != "posix":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return str(owner.get("started", "")) == _started(pid)
