"""yaml files -> frozen settings; see `core` for the rules."""

from pcl_clora.config.core import (
    Config,
    ConfigError,
    build,
    config_hash,
    dump_yaml,
    load,
    merge,
    parse_overrides,
    parse_yaml,
    read_yaml,
    unknown_name,
)
from pcl_clora.config.registry import Registry

__all__ = [
    "Config",
    "ConfigError",
    "Registry",
    "build",
    "config_hash",
    "dump_yaml",
    "load",
    "merge",
    "parse_overrides",
    "parse_yaml",
    "read_yaml",
    "unknown_name",
]
