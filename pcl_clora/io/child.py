"""Other libraries' parsers in a process of their own, so that no file can end, hang or fill this one."""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from pcl_clora.errors import MissingPackageError
from pcl_clora.io.errors import DataError, explained
from pcl_clora.io.fields import AGAIN, Array, Read, check_triangles

_PROGRAM = Path(__file__).with_name("child_parsers.py")
_START = (
    "import json, runpy, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "runpy.run_path(sys.argv[2], run_name='__main__')"
)
_MEMORY = (4 << 30, 64)  # bytes that a parser may ask for: these, and so many times the file's size
SECONDS = (60.0, 5e-6)  # of processor time that a parser may take: these, and so many for every byte
WAIT = 10.0  # times as long it may take where others use the processor
MOST_ARRAYS = 1 << 12


class Child:
    """A running process of parsers, for one caller at a time."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.process = subprocess.Popen(
            [sys.executable, "-c", _START, json.dumps(sys.path), str(_PROGRAM)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def ask(self, request: Mapping[str, Any], seconds: float) -> tuple[dict[str, Any], dict[str, Array]]:
        """Send one request and take the answer.

        Raises:
            EOFError: if the process ended instead, or was ended because it took too long.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        late = threading.Timer(seconds, self.process.kill)
        late.daemon = True
        late.start()
        try:
            self.process.stdin.write(json.dumps(request).encode() + b"\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
            if not line.endswith(b"\n"):
                raise EOFError
            said: dict[str, Any] = json.loads(line)
            arrays: dict[str, Array] = {}
            for name, kind, shape in said.get("arrays", [])[:MOST_ARRAYS]:
                arrays[name] = np.empty(shape, np.dtype(kind))
                if arrays[name].size:
                    room = arrays[name].reshape(-1).view(np.uint8).data
                    at = 0
                    while at < len(room):
                        got = self.process.stdout.readinto(room[at:])  # type: ignore[attr-defined]
                        if not got:
                            raise EOFError
                        at += got
            return said, arrays
        except BrokenPipeError:
            raise EOFError from None
        finally:
            late.cancel()

    def close(self) -> int:
        """End the process; how it ended."""
        if self.owner != os.getpid():  # that of the process this one was forked from
            return 0
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:  # what was not sent to a process that ended
                    continue
        try:
            return self.process.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


inside: Callable[[dict[str, Any]], tuple[dict[str, Any], list[Array]]] | None = None
"""What parses a file right here; set in a process of parsers, which needs no other one."""

_lock = threading.Lock()
_running: Child | None = None


def stop() -> None:
    """End the process of parsers, if one runs; the next file starts another."""
    global _running
    with _lock:
        if _running is not None:
            _running.close()
            _running = None


atexit.register(stop)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: _forget())


def _forget() -> None:
    """Start afresh in a forked process: the child of its parent is not its own."""
    global _running, _lock
    _running, _lock = None, threading.Lock()


def need(path: Path, module: str, package: str) -> None:
    """Check that a package can be imported.

    Raises:
        MissingPackageError: with the command that installs it.
    """
    try:
        found = find_spec(module) is not None
    except ValueError:  # None stands in its place in sys.modules
        found = False
    if not found:
        raise MissingPackageError(
            f'{path}: {path.suffix} files need {package}: pip install "pcl-clora[files]".'
        )


def parse(path: Path, parser: str, part: str, max_points: int | None) -> Read:
    """Read one file by a parser of `child_parsers`.

    Args:
        path: the file.
        parser: which one.
        part: what the parser makes of it: number of a scan, kind of a mesh.
        max_points: read at most so many; None for all.

    Returns:
        Points, fields and triangles.

    Raises:
        DataError: if the parser refuses the file, or crashes, or does not come to an end.
    """
    with (
        explained(path, "read"),
        path.open("rb") as file,
    ):  # what the system refuses is not the parser's fault
        size = os.fstat(file.fileno()).st_size
    request = request_of(path, parser, part, max_points, size)
    if inside is not None:
        said, values = inside(request)
        arrays = {named[0]: each for named, each in zip(said.get("arrays", ()), values, strict=True)}
    else:
        said, arrays = _ask_running(path, request)
    kind = path.suffix.lstrip(".").lower()
    if "problem" in said:
        raise DataError(path, said["problem"], said["remedy"])
    if "error" in said:
        raise DataError(path, f"is not a complete {kind} file ({said['error']})", AGAIN)
    points, faces = arrays.pop("points"), arrays.pop("faces", None)
    if faces is not None:
        check_triangles(path, faces, len(points))
    return points, {name.removeprefix("field "): values for name, values in arrays.items()}, faces


def request_of(path: Path, parser: str, part: str, max_points: int | None, size: int) -> dict[str, Any]:
    """Put together what a parser is asked, with limits that go with the bytes of the file."""
    return {
        "parser": parser, "path": str(path.absolute()), "part": part, "most": max_points,
        "memory": _MEMORY[0] + _MEMORY[1] * size, "seconds": SECONDS[0] + SECONDS[1] * size,
    }  # fmt: skip


def _ask_running(path: Path, request: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Array]]:
    """Ask the process that all readers of this one share."""
    global _running
    with _lock:
        if _running is None or _running.process.poll() is not None:
            _running = Child()
        try:
            return _running.ask(request, WAIT * (1.0 + float(request["seconds"])))
        except EOFError:
            ended = _running.close()
            _running = None
            raise DataError(path, f"{how_ended(ended)}; the file is broken or hostile", AGAIN) from None
        except BaseException:  # an interruption would leave half an answer in the pipe
            _running.process.kill()
            _running.close()
            _running = None
            raise


def how_ended(ended: int) -> str:
    """Say how a process came to its end."""
    if ended >= 0:
        return f"its parser crashed (exit code {ended})"
    name = signal.Signals(-ended).name
    if name in ("SIGKILL", "SIGXCPU"):
        return f"its parser was stopped ({name}), it took too long or too much memory"
    return f"its parser crashed ({name})"
