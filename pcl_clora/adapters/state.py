"""Names in a state_dict: those that earlier versions wrote."""

from __future__ import annotations

from pcl_clora.adapters.base import module_key


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
