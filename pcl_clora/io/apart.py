"""Files of strangers, read in processes of their own: none can crash, hang or fill this one."""

from __future__ import annotations

import queue
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pcl_clora.errors import PclCloraError
from pcl_clora.io.child import Child, how_ended, request_of
from pcl_clora.io.errors import explained
from pcl_clora.io.fields import Array, check_triangles

Fault = Literal["file", "type", "large", "package", "slow", "crash"]
"""Whose fault it is that a file is not read, or what of it: its content, another format than its name says,
too many points, a package that is missing here, too much time, a parser that crashed."""

_MEMORY = (2 << 30, 16)  # bytes that a process may ask for: these, and so many times the file's size


class RefusedFileError(PclCloraError):
    """A file that is not read.

    Attributes:
        problem: what is wrong, as the end of a sentence about the file.
        remedy: what to do.
        fault: of which kind it is.
    """

    def __init__(self, problem: str, remedy: str, fault: Fault = "file") -> None:
        """Keep the parts of the message; the name of the file is not among them, since others chose it."""
        self.problem, self.remedy, self.fault = problem, remedy, fault
        super().__init__(f"the file: {problem}; {remedy}.")


@dataclass(frozen=True)
class StrangeFile:
    """What a stranger's file holds.

    Attributes:
        points: (N, 3), float64, finite, N >= 1.
        faces: (F, 3), int64, triangles of a mesh, or None.
        up: axis that points up by its format; "" where that says nothing.
        inside: (N,), bool, points that are not background, or None.
    """

    points: Array
    faces: Array | None
    up: str
    inside: Array | None = None


class Readers:
    """Processes that read files of any format; threads share them.

    Args:
        count: of processes, each of which reads one file at a time.
        max_points: of a file; 4 times as many triangles are taken.
    """

    def __init__(self, count: int, max_points: int) -> None:
        self.max_points = max_points
        self._closed = False
        self._free: queue.LifoQueue[Child | None] = queue.LifoQueue()
        for _ in range(count):
            self._free.put(None)

    def read(self, path: Path, part: str = "", *, seconds: float = 60.0) -> StrangeFile:
        """Read one file.

        Args:
            path: of it.
            part: which of its clouds, as it would stand behind "#"; "" where it holds one.
            seconds: that it may take, waiting for a process included.

        Raises:
            RefusedFileError: whatever happens because of the file.
        """
        until = time.monotonic() + seconds
        with explained(path, "read"):
            size = path.stat().st_size
        if not size:
            raise RefusedFileError("is empty", "send a file with points")
        try:
            child = self._free.get(timeout=max(seconds, 0.0))
        except queue.Empty:
            raise _slow(seconds) from None
        try:
            if child is None or child.process.poll() is not None:
                child = Child()
            request = request_of(path, "any", part, self.max_points, size)
            request["memory"] = min(request["memory"], _MEMORY[0] + _MEMORY[1] * size)
            said, arrays = child.ask(request, max(until - time.monotonic(), 0.01))
        except EOFError:
            assert child is not None
            ended, child = child.close(), None
            if time.monotonic() >= until:
                raise _slow(seconds) from None
            raise RefusedFileError(
                f"is broken or hostile: {how_ended(ended)}", "write it again", "crash"
            ) from None
        except BaseException:  # an interruption would leave half an answer in the pipe
            if child is not None:
                child.process.kill()
                child.close()
            child = None
            raise
        finally:
            self._give_back(child)
        if "problem" in said:
            fault: Fault = said.get("kind") or "file"
            raise RefusedFileError(said["problem"], said["remedy"], fault)
        if "error" in said:
            raise RefusedFileError(f"is not complete ({said['error']})", "write it again")
        points, faces = arrays["points"], arrays.get("faces")
        if faces is not None:
            check_triangles(path, faces, len(points))
        return StrangeFile(points, faces, str(said.get("up", "")), arrays.get("inside"))

    def _give_back(self, child: Child | None) -> None:
        if self._closed and child is not None:
            child.close()
            child = None
        self._free.put(child)

    def stop(self) -> None:
        """End the processes that read nothing now; the next files start others."""
        kept = []
        while True:
            try:
                kept.append(self._free.get_nowait())
            except queue.Empty:
                break
        for child in kept:
            if child is not None:
                child.close()
            self._free.put(None)

    def close(self) -> None:
        """End the processes; one that reads ends when it has finished."""
        self._closed = True
        self.stop()


def _slow(seconds: float) -> RefusedFileError:
    return RefusedFileError(f"was not read within {seconds:.3g} s", "send a smaller one, or later", "slow")
