"""Folders that belong to the user, not to a data set or a run."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def user_cache_folder() -> Path:
    """Find the user's cache folder: $PCL_CLORA_CACHE, else the place that the system has for caches."""
    if chosen := os.environ.get("PCL_CLORA_CACHE"):
        return Path(chosen).expanduser()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or "~/AppData/Local"
    elif sys.platform == "darwin":
        base = "~/Library/Caches"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "pcl_clora"
