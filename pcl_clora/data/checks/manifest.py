"""Compare a folder with a manifest: a yaml file that lists what should be there.

Format: a mapping with `files`, a list of mappings with `path` and, where known, `bytes` and `sha256`; other
keys (name, source, licence, splits) are for people.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pcl_clora.config import read_yaml
from pcl_clora.data.checks.finding import Finding
from pcl_clora.errors import UserValueError
from pcl_clora.io import explained, sha256_file

_KEYS = {"path", "bytes", "sha256", "shapes", "optional"}


def check_manifest(root: str | Path, manifest: str | Path) -> Iterator[Finding]:
    """Check that every file of a manifest is there with the size and digest it says.

    Args:
        root: the data folder.
        manifest: a yaml file, see above.

    Yields:
        A finding for every file that is missing or differs.

    Raises:
        ConfigError: if the manifest is missing or is no mapping.
        ValueError: if an entry of its `files` is wrong.
    """
    entries = read_yaml(manifest).get("files", [])
    if not isinstance(entries, list):
        raise UserValueError(f"{manifest}: files is {entries!r}, expected a list of mappings with a path.")
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("path"), str) or not entry.keys() <= _KEYS:
            raise UserValueError(
                f"{manifest}: {entry!r} must be a mapping of {', '.join(sorted(_KEYS))}, with a path."
            )
        yield from _check_entry(Path(root) / entry["path"], entry)


def _check_entry(file: Path, entry: dict[str, Any]) -> Iterator[Finding]:
    with explained(file, "read"):
        there = file.is_file()
    if not there:
        if not entry.get("optional", False):
            yield Finding("error", str(file), "the file is missing, the manifest names it; get it again.")
        return
    size = file.stat().st_size
    if "bytes" in entry and size != entry["bytes"]:
        yield Finding("error", str(file), f"has {size} bytes, expected {entry['bytes']}; get it again.")
    elif "sha256" in entry and (digest := sha256_file(file)) != entry["sha256"]:
        message = f"has SHA-256 {digest}, expected {entry['sha256']}; it is damaged or another version."
        yield Finding("error", str(file), message)
