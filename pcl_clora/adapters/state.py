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


def active_when_saved(
    names: Collection[str], own: Collection[str], slots: Sequence[Slot], now: str | None
) -> str | None:
    """Tell from the names of a state_dict which adapter was active when it was taken.

    The copies of an active adapter are in the backbone, so its slot holds none, and the backbone's own wait
    in `originals`. Of a part of a state_dict, the adapter whose other tensors are in it is the one.

    Args:
        names: of the tensors, current ones.
        own: names of the tensors of the model that they are loaded into.
        slots: the adapters there are.
        now: the active one, which is meant where no name depends on it.

    Raises:
        ValueError: if names stand for the copies of an adapter and do not say which, or for those of one that
            is not attached.
    """
    waiting = {slot.name for slot in slots if _any(names, f"slots.{slot.key}.copies.")}
    whole = _any(names, "originals.")
    if waiting and not whole:
        return None
    possible = [slot for slot in slots if slot.owned and slot.name not in waiting]
    told = [slot for slot in possible if slot.key in _adapters_in(names)]
    if len(told) == 1:
        return told[0].name
    without_names = [slot for slot in possible if slot.key not in _adapters_in(own)]  # nothing but copies
    strangers = sorted(_adapters_in(names) - {slot.key for slot in slots})
    absent = [repr(key.rstrip("/")) for key in strangers if not _any(names, f"slots.{key}.copies.")]
    if absent or (whole and not told and not without_names):
        raise UserValueError(
            f"This state_dict was taken while {'adapter ' + ' or '.join(absent) if absent else 'an adapter'} "
            f"was active that is not attached here ({', '.join(slot.name for slot in slots) or 'none is'}), "
            "so that its head and tokens would land in others'. Attach it under its name first, or load one "
            "adapter's tensors with load_adapter() or load_adapter_state()."
        )
    if whole and not told and len(without_names) == 1:
        return without_names[0].name
    paths = {path for slot in possible for path in slot.owned}
    unclear = [name for name in names if name.startswith("base.") and at_or_inside(name[5:], paths)]
    if len(possible) > 1 and unclear:
        raise UserValueError(
            f"This state_dict has {unclear[0]} and does not say of which adapter: "
            f"{', '.join(slot.name for slot in possible)} each have their own. Load a whole state_dict, or "
            "one adapter's with load_adapter() or load_adapter_state()."
        )
    return now


def _adapters_in(names: Collection[str]) -> set[str]:
    """List the keys of the adapters whose own tensors, their copies aside, are among the names."""
    steps = [name.split(".") for name in names]
    methods = {each[1] for each in steps if each[0] == "slots" and each[2] == "method"}
    return methods | {each[each.index("deltas") + 1] for each in steps if "deltas" in each[:-1]}


def _any(names: Collection[str], start: str) -> bool:
    return any(name.startswith(start) for name in names)
