"""Bring the keys of any file of the family into one naming, the official one, and from there into ours."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from torch import nn

from pcl_clora.models.key_map import KeyMap
from pcl_clora.models.method_files import NO_KEYS
from pcl_clora.models.weights._hub_names import hub_table_of
from pcl_clora.models.weights._left_out import ALIASES, unwrap


@dataclass(frozen=True)
class Naming:
    """What the keys of a file are called officially.

    Attributes:
        kind: "hub" or "official"; keys that belong to neither count as official.
        official: key of the file -> official key, without `module.` but with the other wrappers.
    """

    kind: str
    official: Mapping[str, str]

    @property
    def unwrapped(self) -> dict[str, str]:
        """Key of the file -> official key without wrappers; copies beside the network keep their prefix."""
        return {key: unwrap(name) for key, name in self.official.items()}


def read_naming(keys: Iterable[str]) -> Naming:
    """Translate the keys of a file into official ones.

    `module.` goes only where it stands before a whole key, because the hub has it inside: norms.0.module.
    """
    listed = list(keys)
    table = hub_table_of(listed, naming="hub")
    if table:
        return Naming("hub", {key: table[1].translate(key, to="official") or key for key in listed})
    return Naming("official", {key: re.sub(r"^(module\.)+", "", key) for key in listed})


def places_of_key(key_map: KeyMap, official: str, aliases: KeyMap = NO_KEYS) -> Iterator[tuple[str, str]]:
    """List what a model may call an official key: as it is, unwrapped, and by the names of some files.

    Args:
        key_map: of the model.
        official: the key.
        aliases: names that the files of one method have besides.

    Returns:
        Pairs of (official key as the map knows it, name in the model).
    """
    maps = (aliases, ALIASES)
    for variant in dict.fromkeys((official, unwrap(official))):
        others = (known.translate(variant, to=side) for known in maps for side in ("usual", "other"))
        for alias in (variant, *others):
            name = key_map.translate(alias, to="ours") if alias else None
            if alias and name:
                yield alias, name


def names_of_key(key_map: KeyMap, official: str, aliases: KeyMap = NO_KEYS) -> Iterator[str]:
    """List the names alone of `places_of_key`."""
    return (name for _, name in places_of_key(key_map, official, aliases))


def is_official(key_map: KeyMap, official: str) -> bool:
    """Tell whether a map knows a key as it is, and not by a further name of some files."""
    return any(key_map.translate(key, to="ours") for key in (official, unwrap(official)))


def key_map_of(model: nn.Module | type[nn.Module]) -> KeyMap:
    """Return a model's map to the official keys; an empty one for a model without."""
    key_map = getattr(model, "official_keys", None)
    return key_map if isinstance(key_map, KeyMap) else KeyMap(())


def native_name(key: str, model: nn.Module) -> str:
    """Translate a key of an official file into a name of a model; unknown ones only lose their wrappers."""
    return next(names_of_key(key_map_of(model), re.sub(r"^(module\.)+", "", key)), unwrap(key))
