"""Turn yaml files and `key=value` overrides into frozen, validated settings.

A component owns a frozen `Config` next to its code; a yaml file only fills it. Three rules make files
composable:

* `_base_` names one file or a list of files, relative to the file that names them; later ones win.
* Mappings merge key by key. A section `model`, `data` or `adapter` that names another thing than the one
  below it (another `name` or `method`) starts afresh, because the keys of one mean nothing to another.
* An override `a.b=value` is read as yaml and comes last.
"""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from pcl_clora.errors import UserValueError

BASE_KEY = "_base_"
# section -> what says its kind
KIND_KEYS = {"model": ("name",), "data": ("name",), "adapter": ("method", "published")}


class ConfigError(UserValueError):
    """A setting that a user got wrong; the message names the value and the remedy.

    Attributes:
        problems: (dotted key, what is wrong) of every problem, where `build` found them; else empty.
    """

    def __init__(self, message: str, problems: Sequence[tuple[str, str]] = ()) -> None:
        super().__init__(message)
        self.problems = tuple(problems)


class Config(BaseModel):
    """Base of all settings: immutable, and an unknown key is an error that names the nearest valid one."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    def left_out(self) -> frozenset[str]:
        """Name the settings that are not written, because they say nothing here.

        A subclass names those that do not apply, and those that came later and still have the default that
        means what was done before: files and hashes that were written without them stay valid.
        """
        return frozenset()

    def at_default(self, *names: str) -> frozenset[str]:
        """Say which of these settings have their default value."""
        fields = type(self).model_fields
        return frozenset(name for name in names if getattr(self, name) == fields[name].default)

    @model_serializer(mode="wrap")
    def _write(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        left_out, values = self.left_out(), handler(self)
        return {name: value for name, value in values.items() if name not in left_out}

    @model_validator(mode="before")
    @classmethod
    def _name_unknown_keys(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        for key in values:
            if key not in cls.model_fields:
                raise UserValueError(
                    unknown_name(str(key), cls.model_fields, what="setting", owner=cls.__name__)
                )
        return values


# What a config of settings never reaches; beyond it, a file is broken or means harm.
_MAX_DEPTH, _MAX_ALIASES, _MAX_KEYS, _MAX_VALUES = 64, 1000, 10_000, 100_000

ConfigT = TypeVar("ConfigT", bound=Config)


def unknown_name(given: str, valid: Mapping[str, Any] | Sequence[str], *, what: str, owner: str = "") -> str:
    """Say that a name is not known, which one was probably meant, and which ones exist."""
    names = sorted(valid)
    close = difflib.get_close_matches(given, names, n=1, cutoff=0.0)
    where = f" of {_on_one_line(owner)}" if owner else ""
    hint = f"; did you mean {close[0]!r}?" if close else "."
    article = "an" if what[:1] in "aeiou" else "a"
    return f"{given!r} is not {article} {what}{where}{hint} Valid: {', '.join(map(_on_one_line, names))}."


def _on_one_line(name: str) -> str:
    """Return a name as it is, or in quotes with escapes if it holds what cannot be seen."""
    return name if name.isprintable() else repr(name)


class _UniqueKeys(yaml.SafeLoader):
    """The safe loader, except that a key given twice is an error instead of the last one winning."""

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._depth = self._aliases = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._depth += 1
        self._aliases += self.check_event(yaml.AliasEvent)
        if self._depth > _MAX_DEPTH or self._aliases > _MAX_ALIASES:
            what = f"nested deeper than {_MAX_DEPTH}" if self._depth > _MAX_DEPTH else "full of references"
            raise yaml.composer.ComposerError(
                None, None, f"settings {what}; write them flat", parent.start_mark if parent else None
            )
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > _MAX_KEYS:
            raise yaml.constructor.ConstructorError(None, None, "too many merged keys", node.start_mark)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                continue  # refused below, with its place
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"key {key!r} is given twice; remove one", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str) -> Any:
    """Read yaml whose size stays that of its text.

    Raises:
        ValueError: if it is no yaml, too deep, or its references make it much larger than it looks.
    """
    try:
        content = yaml.load(text, Loader=_UniqueKeys)  # a safe loader
        left = _MAX_VALUES
        todo = [content]
        while todo:
            value, left = todo.pop(), left - 1
            if left < 0:
                raise UserValueError("its references make it too large; write it out")
            if isinstance(value, dict | list | set | tuple):
                todo += value.values() if isinstance(value, dict) else value
    except (yaml.YAMLError, ArithmeticError, AttributeError, LookupError, RecursionError, TypeError) as error:
        raise UserValueError(str(error) or type(error).__name__) from error
    return content


def read_yaml(path: str | Path) -> dict[str, Any]:
    """Read one yaml file with all its `_base_` files merged below it.

    Args:
        path: the yaml file.

    Returns:
        The merged mapping, without `_base_` keys.

    Raises:
        ConfigError: if a file is missing, is not a mapping, is not valid yaml, or the `_base_` files form a
            cycle.
    """
    return _read_with_bases(Path(path), chain=())


def _read_with_bases(path: Path, chain: tuple[Path, ...]) -> dict[str, Any]:
    try:
        resolved = path.resolve()
        there = resolved.is_file()
    except (OSError, RuntimeError) as error:  # a name too long, links that lead in a circle, no right to
        raise ConfigError(
            f"Config file {path} cannot be read ({error}); check the path and its rights."
        ) from error
    if resolved in chain:
        cycle = " -> ".join(str(step) for step in (*chain[chain.index(resolved) :], resolved))
        raise ConfigError(f"The {BASE_KEY} files form a cycle: {cycle}. Remove one of these references.")
    if not there:
        named_by = f" (named by {chain[-1]})" if chain else ""
        raise ConfigError(f"Config file {path} does not exist{named_by}; check the path.")
    try:
        content = parse_yaml(resolved.read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise ConfigError(f"{path} is not valid yaml: {error}") from error
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); check its rights.") from error
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds a {type(content).__name__}; expected a mapping of settings.")
    bases = content.pop(BASE_KEY, [])
    bases = [bases] if isinstance(bases, str) else bases
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise ConfigError(f"{path}: {BASE_KEY} is {bases!r}; expected a file name or a list of file names.")
    merged: dict[str, Any] = {}
    for base in bases:
        merged = merge(merged, _read_with_bases(resolved.parent / base, (*chain, resolved)))
    return merge(merged, content)


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Lay one mapping over another, key by key; a section of another kind (`KIND_KEYS`) replaces the other.

    Any other `name`, such as that of the run or of the protocol, is a setting like all others.
    """
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping) and not _another_kind(key, old, value):
            value = merge(old, value)
        result[key] = value
    return result


def _another_kind(section: str, below: Mapping[str, Any], above: Mapping[str, Any]) -> bool:
    old, new = (
        {key: given[key] for key in KIND_KEYS.get(section, ()) if key in given} for given in (below, above)
    )
    return bool(old and new) and old != new


def parse_overrides(overrides: Sequence[str]) -> dict[str, Any]:
    """Turn `["data.root=/d", "optim.lr=1e-3"]` into a nested mapping; values are read as yaml.

    Raises:
        ConfigError: if an item is not of the form key=value, or one key is both a value and a section.
    """
    nested: dict[str, Any] = {}
    for item in overrides:
        key, separator, text = item.partition("=")
        parts = key.strip().split(".")
        if not separator or not all(parts):
            raise ConfigError(f"Override {item!r} is not of the form key=value, for example optim.lr=1e-3.")
        section = nested
        for part in parts[:-1]:
            section = section.setdefault(part, {})
            if not isinstance(section, dict):
                raise ConfigError(f"Override {item!r}: {part!r} was given a plain value by another override.")
        section[parts[-1]] = _parse_value(text, item)
    return nested


def _parse_value(text: str, item: str) -> Any:
    if not text.strip():
        return ""  # weights.path= clears a path; yaml would read nothing as null, which no setting takes
    try:
        value = parse_yaml(text)
    except ValueError as error:
        raise ConfigError(f"Override {item!r}: the value is not valid yaml: {error}") from error
    if isinstance(value, str) and text.strip()[0] not in "'\"":  # yaml 1.1 reads a bare 1e-3 as text
        try:
            return float(value) if any(c.isdigit() for c in value) else value
        except ValueError:
            return value
    return value


def build(cls: type[ConfigT], values: Mapping[str, Any], *, source: str = "the given settings") -> ConfigT:
    """Validate a mapping into a frozen config.

    Raises:
        ConfigError: one line a problem, each with the dotted key, the value given and what is expected.
    """
    try:
        return cls.model_validate(values)
    except ValidationError as error:
        problems = [line for problem in error.errors() for line in _describe(problem)]
        lines = [f"{source}: {len(problems)} problem(s)"]
        lines += [f"  {where or '(top level)'}: {what}" for where, what in problems]
        raise ConfigError("\n".join(lines), problems) from error


def _describe(problem: Any) -> list[tuple[str, str]]:
    """Say where a problem is and what it is; those of a section with settings of its own one by one."""
    where = ".".join(str(part) for part in problem["loc"])
    cause = problem.get("ctx", {}).get("error")
    if isinstance(cause, ConfigError) and cause.problems:
        return [
            (f"{where}.{inner}" if where and inner else where or inner, what)
            for inner, what in cause.problems
        ]
    if problem["type"] == "missing":
        return [(where, "is not set, and has no default; set it in the file or a _base_ of it")]
    given = "" if isinstance(problem["input"], Mapping) else f" (given: {problem['input']!r})"
    return [(where, problem["msg"].removeprefix("Value error, ") + given)]


def load(cls: type[ConfigT], path: str | Path, overrides: Sequence[str] = ()) -> ConfigT:
    """Read a yaml file and its bases, apply overrides and validate: file -> frozen config."""
    return build(cls, merge(read_yaml(path), parse_overrides(overrides)), source=str(path))


def dump_yaml(config: Config) -> str:
    """Write a config as yaml that loads back to an equal config."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=False)


def config_hash(config: Config) -> str:
    """Name a config by the first 12 hex digits of the SHA-256 of its content, independent of key order."""
    text = json.dumps(config.model_dump(mode="json"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
