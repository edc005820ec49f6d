"""How a lower room gets what a higher one registers with it, although it never imports upward.

A lower room keeps a registry, and the higher room registers when it is imported. `pcl_clora/__init__.py`,
above all rooms, says here who registers what, so that nobody has to import the higher room first.
"""

from __future__ import annotations

from collections.abc import Callable

_registrars: dict[str, Callable[[], object]] = {}


def registered_by(what: str, load: Callable[[], object]) -> None:
    """Say how the room is imported that registers `what`; nothing is imported now."""
    _registrars[what] = load


def call_registrar(what: str) -> None:
    """Import the room that registers `what`."""
    _registrars[what]()
