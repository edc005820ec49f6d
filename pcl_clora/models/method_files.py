"""How released files of fine-tuning methods look: told by the methods, read by what reads weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from torch import nn

from pcl_clora.handover import call_registrar
from pcl_clora.models.entry import FileFacts
from pcl_clora.models.key_map import KeyMap

NO_KEYS = KeyMap((), sides=("other", "usual"))
OWN_TENSORS = ("layers.", "method.")  # how names of what a method adds begin, in adapter and in weights files
ADAPTER = "adapter"  # entry of a weights file beside its tensors: settings of the method in it, as json
TASK = "task"  # entry beside it: the task of the network that the method is on

Settings = Mapping[str, Any]
PART = "model."  # before the backbone's name of a tensor, in adapter files


def network_keys(own: KeyMap, base: KeyMap) -> KeyMap:
    """Say what official files call the tensors of a network with a method.

    Args:
        own: of the method, to the names of adapter files: it may have names of its own for some of the base.
        base: of the backbone.
    """
    rules = (replace(rule, second=rule.second.removeprefix(PART)) for rule in own.rules)
    return KeyMap((*rules, *base.rules))


KeysOf = Callable[[Settings, nn.Module], KeyMap]


@dataclass(frozen=True)
class MethodFiles:
    """How the released files of one fine-tuning method look.

    Attributes:
        title: what its authors call it.
        marks: pattern of a key that only they have.
        settings: reads settings of the method from shapes; what leaves no trace in a file is left out.
        twins: (name, name whose values count), of tensors that they hold under two names.
    """

    title: str
    marks: str
    settings: Callable[[FileFacts], dict[str, Any]] = lambda file: {}
    twins: KeyMap = NO_KEYS

    def official_names(self, official: str) -> list[str]:
        """List the names under which a tensor stands in these files.

        Args:
            official: its name as the key map of the network has it.
        """
        twin = self.twins.translate(official, to="other")
        return [official, twin] if twin else [official]


_known: dict[str, MethodFiles] = {}
_keys_of: list[KeysOf] = []


def register_method_files(files: Mapping[str, MethodFiles], keys_of: KeysOf) -> None:
    """Make known how files of methods look.

    Args:
        files: name of a method -> its files.
        keys_of: says what released files call the tensors of a method with these settings on this backbone,
            and what adapter files call them.
    """
    _known.update(files)
    _keys_of[:] = [keys_of]


def method_files() -> Mapping[str, MethodFiles]:
    """List the released files of all methods: name of the method -> how they look."""
    if not _keys_of:
        call_registrar("the fine-tuning methods")
    return _known


def method_keys(settings: Settings, base: nn.Module) -> KeyMap:
    """Say what released files call the tensors of a method, and what adapter files call them.

    Args:
        settings: of the method, with its name as `method`.
        base: a plain backbone; it may be on the meta device, and is left as it is.
    """
    method_files()
    return _keys_of[0](settings, base)


def find_method(title: str) -> tuple[str, MethodFiles] | None:
    """Find a method by what its authors call it: (its name here, its files)."""
    return next(((name, files) for name, files in method_files().items() if files.title == title), None)


def title_of(keys: Iterable[str]) -> str:
    """Say whose files unwrapped keys are of; "" for no method that is offered here."""
    listed: Sequence[str] = list(keys)
    for files in method_files().values():
        marks = _compiled(files.marks)
        if any(marks.search(key) for key in listed):
            return files.title
    return ""


@cache
def _compiled(marks: str) -> re.Pattern[str]:
    return re.compile(marks)


def is_own_tensor(name: str) -> bool:
    """Tell whether a name is that of a tensor that a method adds, as adapter files call it."""
    return name.startswith(OWN_TENSORS)
