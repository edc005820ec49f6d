"""Names in a state_dict: those that earlier versions wrote, and whose tensors they are."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from pcl_clora.adapters.base import module_key
from pcl_clora.adapters.paths import at_or_inside
from pcl_clora.adapters.slot import Slot
from pcl_clora.errors import UserValueError


def current_name(name: str) -> str:
    """Translate a name that an earlier version gave a tensor of an adapted model; others stay as they are."""
    steps = name.split(".")
    if steps[0] in ("methods", "shelves") and len(steps) > 2:
        part = "method" if steps[0] == "methods" else "copies"
        inside = [module_key(step) for step in steps[2:]] if part == "method" else steps[2:]
        return ".".join(["slots", module_key(steps[1]), part, *inside])
    if "deltas" in steps:
        start = steps.index("deltas") + 1
        return ".".join(steps[:start] + [module_key(step) for step in steps[start:]])
    return name


def active_when_saved(names: Collection[str], slots: Sequence[Slot], now: str | None) -> str | None:
    """Tell from the names of a state_dict which adapter was active when it was taken.

    The copies of an active adapter are in the backbone, so its slot holds none, and the backbone's own wait
    in `originals`. Of a part of a state_dict, the adapter whose other tensors are in it is the one.

    Args:
        names: of the tensors, current ones.
        slots: the adapters there are.
        now: the active one, which is meant where no name depends on it.

    Raises:
        ValueError: if names stand for the copies of an adapter and do not say which.
    """
    waiting = {slot.name for slot in slots if _any(names, f"slots.{slot.key}.copies.")}
    if waiting and not _any(names, "originals."):
        return None
    possible = [slot for slot in slots if slot.owned and slot.name not in waiting]
    told = [
        slot
        for slot in possible
        if _any(names, f"slots.{slot.key}.method.") or any(f".deltas.{slot.key}." in name for name in names)
    ]
    if len(possible) > 1 and len(told) == 1:
        return told[0].name
    if len(possible) == 1 and (told or _any(names, "originals.")):
        return possible[0].name
    paths = {path for slot in possible for path in slot.owned}
    unclear = [name for name in names if name.startswith("base.") and at_or_inside(name[5:], paths)]
    if len(possible) > 1 and unclear:
        raise UserValueError(
            f"This state_dict has {unclear[0]} and does not say of which adapter: "
            f"{', '.join(slot.name for slot in possible)} each have their own. Load a whole state_dict, or "
            "one adapter's with load_adapter() or load_adapter_state()."
        )
    return now


def _any(names: Collection[str], start: str) -> bool:
    return any(name.startswith(start) for name in names)
