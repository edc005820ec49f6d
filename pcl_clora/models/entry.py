"""What a backbone is, in one place: its settings, its networks, and how its official files are recognised."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from pcl_clora.models.config import ModelConfig, Task
from pcl_clora.models.key_map import KeyMap, LeftOut

Shapes = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class FileFacts:
    """What is known of a weights file before a tensor of it is read.

    Attributes:
        shapes: official key without wrappers -> shape.
        wrappers: what stood before some of the keys.
        method: published fine-tuning method whose tensors are in it, "" for none.
    """

    shapes: Shapes
    wrappers: Collection[str] = ()
    method: str = ""

    def has(self, *keys: str) -> bool:
        """Tell whether all of the keys are there."""
        return all(key in self.shapes for key in keys)

    def any(self, pattern: str) -> bool:
        """Tell whether a pattern is found in some key."""
        return any(re.search(pattern, key) for key in self.shapes)

    def width(self, *keys: str) -> int:
        """First dimension of the first of the keys that is there; 0 for none."""
        return next((int(self.shapes[key][0]) for key in keys if self.shapes.get(key)), 0)

    def count(self, pattern: str) -> int:
        """Count numbered parts, as 1 + the largest number that the pattern's group finds; 0 for none."""
        found = (re.match(pattern, key) for key in self.shapes)
        return max((int(fits[1]) + 1 for fits in found if fits), default=0)


@dataclass(frozen=True)
class OfficialFiles:
    """How official files of a backbone look.

    Attributes:
        are: tells whether a file is one of this backbone, in any of its tasks.
        task: tells which task the network in such a file has; "" for a backbone without head.
        sizes: reads settings of the config from shapes; what a file does not show is left out.
        rather_than: backbones whose marks these files bear too; where both fit, this one is meant.
        wrappers: prefix that may stand before keys -> where it comes from; the first is that of pre-training
            files.
        beside: pattern of keys of pre-training files that stand outside of that prefix.
        left_out: (pattern of keys, why no other network has a place for them).
        hub_tables: kind of file -> official keys without `module.` and the names of the torch-pointcloud hub.
        trained_with: settings that the published weights were trained with where they differ from the
            defaults here; a model that did not set them adopts them with the weights.
    """

    are: Callable[[FileFacts], bool]
    task: Callable[[FileFacts], Task | None]
    sizes: Callable[[FileFacts], dict[str, Any]]
    rather_than: tuple[str, ...] = ()
    wrappers: Mapping[str, str] = field(default_factory=dict)
    beside: str = "$"
    left_out: tuple[tuple[str, LeftOut], ...] = ()
    hub_tables: Mapping[str, KeyMap] = field(default_factory=dict)
    trained_with: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Variants:
    """Names beyond the entry's own: a prefix before names that another package knows.

    Attributes:
        prefix: "timm/" for timm/vit_base_patch16_224.
        setting: the setting that takes what stands behind the prefix.
        list_names: lists the names behind the prefix that match a shell-style pattern.
    """

    prefix: str
    setting: str
    list_names: Callable[[str], list[str]]


@dataclass(frozen=True, eq=False)
class BackboneEntry:
    """All that the rest of the package has to know of a backbone to make it and to fill it.

    Attributes:
        name: what `create_model` takes.
        title: its name in words.
        config: class of its settings.
        tasks: task -> its network, made from an instance of `config`.
        files: how its official files look; None where it has none of its own.
        same_network: entry whose network this is too, so that each takes the other's files.
        is_size: it is `same_network` with other default sizes, and nothing else.
        also_takes: further entries whose files fill a part of this network.
        variants: names beyond its own.
    """

    name: str
    title: str
    config: type[ModelConfig]
    tasks: Mapping[Task, type[nn.Module]]
    files: OfficialFiles | None = None
    same_network: str = ""
    is_size: bool = False
    also_takes: tuple[str, ...] = ()
    variants: Variants | None = None

    @property
    def network(self) -> str:
        """Name of the entry that stands for all entries of this network."""
        return self.same_network or self.name
