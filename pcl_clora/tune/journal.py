"""The journal of a search on disk: what a full disk or a kill left of a line does not stop the search."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from optuna.storages.journal import JournalFileBackend

_BLOCK = 1 << 12
_log = logging.getLogger(__name__)


def open_journal(path: Path) -> JournalFileBackend:
    """Open a journal whose every writer first drops what another left of a line.

    Optuna appends to whatever is there: behind half a line the next one could not be read, nor any after it.
    Who has the lock knows that nobody is about to write the rest.
    """
    from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock

    class MendingLock(JournalFileSymlinkLock):
        def acquire(self) -> bool:
            has_it = super().acquire()
            if has_it:
                drop_torn_line(path)
            return has_it

    return JournalFileBackend(str(path), MendingLock(str(path)))


def drop_torn_line(path: Path) -> None:
    """Shorten a file to the end of its last whole line, and say so where something was left of another."""
    with path.open("r+b") as file:
        size = at = file.seek(0, os.SEEK_END)
        while at > 0:
            start = max(at - _BLOCK, 0)
            file.seek(start)
            found = file.read(at - start).rfind(b"\n")
            if found >= 0:
                at = start + found + 1
                break
            at = start
        if at < size:
            file.truncate(at)
            _log.warning(
                "%s ended within a line, as a full disk leaves it; %d bytes are dropped.", path, size - at
            )
