"""Registries: which backbones, adapter methods and data sets exist, by the name that their settings carry."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from pcl_clora.config.core import Config, ConfigError, build, unknown_name
from pcl_clora.errors import UserValueError

SettingsT = TypeVar("SettingsT", bound=Config)
MakerT = TypeVar("MakerT")


class Registry(Generic[SettingsT, MakerT]):
    """Things of one kind by name: for each, the class of its settings and what makes it.

    Filled by explicit calls only; nothing is searched for in folders.

    Args:
        what: what is registered, for messages, such as "model".
        key: the setting that holds the name.
        base: the class that the settings of all of them share.
    """

    def __init__(self, what: str, key: str, base: type[SettingsT]) -> None:
        self._what, self._key, self._base = what, key, base
        self._entries: dict[str, tuple[type[SettingsT], MakerT]] = {}

    def register(self, name: str, settings: type[SettingsT], maker: MakerT) -> None:
        """Make a thing known by name.

        Raises:
            ValueError: if the name is taken.
        """
        if name in self._entries:
            raise UserValueError(f"A {self._what} named {name!r} is registered already; choose another name.")
        self._entries[name] = (settings, maker)

    def names(self, pattern: str = "*") -> list[str]:
        """List the names that match a shell-style pattern, sorted."""
        return sorted(fnmatch.filter(self._entries, pattern))

    def makers(self) -> dict[str, MakerT]:
        """Return what makes each thing, by name."""
        return {name: maker for name, (_, maker) in self._entries.items()}

    def parse(self, values: Mapping[str, Any] | SettingsT) -> SettingsT:
        """Turn a mapping that carries a name into the settings of the thing it names.

        Raises:
            ConfigError: if the name is missing or not known, or a setting is wrong; the message names the
                nearest one.
        """
        if isinstance(values, self._base):
            return values
        assert isinstance(values, Mapping)
        name = str(values.get(self._key, ""))
        if not name:
            raise ConfigError(
                f"no {self._what} is named; set {self._key} to one of: {', '.join(self.names())}."
            )
        if name not in self._entries:
            raise ConfigError(unknown_name(name, self._entries, what=self._what))
        return build(self._entries[name][0], values, source=f"{self._what} {name}")

    def maker(self, settings: SettingsT) -> MakerT:
        """Return what makes the thing that the settings describe."""
        return self._entries[getattr(settings, self._key)][1]
