"""Which table of the backbones' entries says how the torch-pointcloud hub calls the tensors of a file."""

from __future__ import annotations

from collections.abc import Iterable

from pcl_clora.models.key_map import KeyMap
from pcl_clora.models.registry import entries


def hub_tables() -> dict[str, KeyMap]:
    """List the tables by kind of file; a kind is recognised by how many keys its table translates."""
    return {
        kind: table for entry in entries() if entry.files for kind, table in entry.files.hub_tables.items()
    }


def hub_table_of(keys: Iterable[str], *, naming: str) -> tuple[str, KeyMap] | None:
    """Find the table that fits a file.

    Args:
        keys: the keys of the file, official ones without `module.`.
        naming: "hub" or "official", what the keys are.

    Returns:
        (kind of file, its table), or None where none translates nine keys in ten.
    """
    listed = list(keys)
    if naming == "hub" and not any(".lins." in key for key in listed):
        return None
    other = "official" if naming == "hub" else "hub"
    best: tuple[int, str] = (0, "")
    tables = hub_tables()
    for kind, table in tables.items():
        known = sum(table.translate(key, to=other) is not None for key in listed)
        best = max(best, (known, kind), key=lambda pair: pair[0])
    count, kind = best
    return (kind, tables[kind]) if listed and count >= 0.9 * len(listed) else None
