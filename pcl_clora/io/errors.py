"""The errors that every reader and writer of files raises."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pcl_clora.errors import PclCloraError, UserValueError
from pcl_clora.io.text import visible


class DataError(UserValueError):
    """A file that is missing, torn or not what its place says.

    The message names the file, what was found and expected, and the remedy.
    """

    def __init__(self, file: str | os.PathLike[str], problem: str, remedy: str) -> None:
        """Join the three parts of the message.

        Args:
            file: the file or folder at fault.
            problem: what was found and what was expected, without a full stop.
            remedy: what to do about it, without a full stop.
        """
        self.file, self.problem, self.remedy = str(file), problem, remedy
        super().__init__(f"{visible(self.file)}: {problem}; {remedy}.")

    def __reduce__(self) -> tuple[type[DataError], tuple[str, str, str]]:
        # Errors cross from loader workers by pickle, which would call __init__ with the joined text only.
        return type(self), (self.file, self.problem, self.remedy)


class FileAccessError(DataError, OSError):
    """The system refused to read or write a file: no space, no right to, a folder in its place.

    Attributes:
        errno: the number of the system's error, as any OSError has it; None where it gave none.
        filename: the file at fault, as any OSError has it.
    """

    def __init__(
        self, file: str | os.PathLike[str], problem: str, remedy: str, number: int | None = None
    ) -> None:
        """Join the parts of the message; `number` becomes errno."""
        super().__init__(file, problem, remedy)
        self.errno, self.filename = number, self.file

    def __str__(self) -> str:
        return str(self.args[0])  # OSError would join errno and filename

    def __reduce__(self) -> tuple[type[FileAccessError], tuple[str, str, str, int | None]]:  # type: ignore[override]
        return type(self), (self.file, self.problem, self.remedy, self.errno)


def no_folder(path: str | os.PathLike[str]) -> str:
    """Say why a path is no folder, as the problem of a `DataError`."""
    return "is a file, not a folder" if os.path.isfile(path) else "there is no such folder"


_REMEDIES = {
    errno.ENOSPC: "free some space or choose another disk",
    errno.EDQUOT: "free some space or choose another disk",
    errno.EFBIG: "raise the limit (ulimit -f)",
    errno.EACCES: "change the rights of the file and its folder, or choose another place",
    errno.EPERM: "choose another place",
    errno.EROFS: "choose another place",
    errno.EISDIR: "name a file, not a folder",
    errno.ENOTDIR: "a file stands where a folder is needed, check the path",
    errno.EEXIST: "a file stands where a folder is needed, check the path",
    errno.ENOENT: "check the path",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ELOOP: "mend the links, which lead in a circle",
    errno.EMFILE: "raise the limit (ulimit -n)",
}


def file_access_error(path: str | os.PathLike[str], error: Exception, doing: str) -> FileAccessError:
    """Say what an error of the system, or a library's message that quotes one, means for a file.

    Args:
        path: the file that the user named.
        error: what was raised; libraries that are not Python's write "(os error 28)".
        doing: "read", "written" or "removed".
    """
    number = getattr(error, "errno", None)
    if number is None and (quoted := re.search(r"\(os error (\d+)\)", str(error))):
        number = int(quoted[1])
    reason = os.strerror(number) if number else str(error).partition("\n")[0] or type(error).__name__
    remedy = _REMEDIES.get(number or 0, "check the path, the disk and the network")
    if doing == "removed" and os.path.isdir(path):
        remedy = "a folder stands where a file should be, move it away"
    return FileAccessError(path, f"cannot be {doing} ({reason})", remedy, number)


@contextmanager
def explained(path: str | os.PathLike[str], doing: str) -> Iterator[None]:
    """Turn errors of the system into a `FileAccessError` that names the file and the remedy.

    Args:
        path: the file or folder that the user named; what lies in it is named where the system says so.
        doing: what the block does, "read" or "written", as the message puts it.
    """
    try:
        yield
    except PclCloraError:
        raise
    except OSError as error:
        at_fault = error.filename if isinstance(error.filename, str) else ""
        inside = at_fault.startswith(os.path.join(path, ""))
        raise file_access_error(at_fault if inside else path, error, doing) from error


def check_is_file(path: str | os.PathLike[str]) -> None:
    """Make sure that there is a file to read.

    Raises:
        DataError: if there is none, or a folder in its place.
        FileAccessError: if the system does not let anyone look.
    """
    with explained(path, "read"):
        if Path(path).is_file():
            return
        if Path(path).is_dir():
            raise DataError(path, "is a folder, expected a file", "name a file in it")
    raise DataError(path, "there is no such file", "check the path")


@contextmanager
def as_data_error(
    path: str | os.PathLike[str], problem: str, remedy: str = "get or write the file again"
) -> Iterator[None]:
    """Turn whatever a library says of a torn or hostile file into a `DataError`; one helper for all of them.

    Put as little as possible into the block, only what the library does: any exception in it counts as a
    fault of the file, except those of ours and those of the system (no right to read).

    Args:
        path: the file that the user named.
        problem: what to say, for example "is not a complete npy file"; the library's words follow.
        remedy: what to do.
    """
    try:
        yield
    except PclCloraError:
        raise
    except Exception as error:  # broken input makes parsers raise nearly anything, RecursionError included
        if isinstance(error, OSError) and error.errno in _REMEDIES:
            raise file_access_error(path, error, "read") from error
        words = str(error).strip().partition("\n")[0][:200]
        if "pickle" in words or "max_header_size" in words:  # numpy advises to load it in an unsafe way
            words = "its header is none of plain numbers"
        why = (
            words if isinstance(error, OSError | ValueError) and words else f"{type(error).__name__}: {words}"
        )
        raise DataError(path, f"{problem} ({why})", remedy) from error
