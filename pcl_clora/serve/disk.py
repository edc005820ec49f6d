"""Files of the page for people: they stay a while, and never fill a disk."""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

KEPT_S = 600.0  # that a file is kept


def sweep(folder: Path, most_bytes: int, kept_s: float = KEPT_S) -> None:
    """Remove old files, and the oldest ones of those that are too much together.

    Args:
        folder: everything below it.
        most_bytes: of all that stays.
        kept_s: age in seconds that a file may have.
    """
    found = []
    for path in folder.rglob("*"):
        with suppress(OSError):  # another thread may remove it
            if path.is_file():
                about = path.stat()
                found.append((about.st_mtime, about.st_size, path))
    total, now = sum(size for _, size, _ in found), time.time()
    for changed, size, path in sorted(found):
        if now - changed <= kept_s and total <= most_bytes:
            break
        with suppress(OSError):
            path.unlink()
            path.parent.rmdir()  # where that was the last one in it
        total -= size
