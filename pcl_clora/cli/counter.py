"""How far a command is with many files, and how long it still takes; on standard error."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TextIO

from pcl_clora.engine.progress import Clock

EVERY_SECONDS = 10.0  # how often a line is written where there is no terminal


class FileCounter:
    """Counts files: a bar on a terminal, a line now and then elsewhere, nothing for a few files.

    Args:
        total: files.
        done: of them before this process.
        stream: standard error by default.
    """

    def __init__(self, total: int, done: int = 0, stream: TextIO | None = None) -> None:
        self._stream = stream or sys.stderr
        self.total, self.done, self.failed = total, done, 0
        self._first, self._began = done, time.monotonic()
        self._clock, self._told = Clock(total, done), self._began
        self._bar = self._make_bar() if self._stream.isatty() and total > 1 else None

    def _make_bar(self) -> object:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        bar = Progress(BarColumn(), TextColumn("{task.description}"), console=Console(file=self._stream))
        self._task = bar.add_task(self.text(), total=self.total, completed=self.done)
        bar.start()
        return bar

    def text(self) -> str:
        """Say how far it is: files, files a second, errors, time left."""
        rate = (self.done - self._first) / max(time.monotonic() - self._began, 1e-9)
        errors = f", {self.failed} with errors" if self.failed else ""
        left = self._clock.left(self.done)
        return f"{self.done} of {self.total} files, {rate:.1f} a second{errors}, left {left}"

    def add(self, count: int = 1, failed: int = 0) -> None:
        """Count files that are done."""
        self.done, self.failed = self.done + count, self.failed + failed
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, description=self.text())  # type: ignore[attr-defined]
        elif time.monotonic() - self._told >= EVERY_SECONDS:
            self._told = time.monotonic()
            print(self.text(), file=self._stream, flush=True)

    def __enter__(self) -> FileCounter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.stop()  # type: ignore[attr-defined]
