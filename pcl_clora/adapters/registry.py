"""Which adapter methods exist, and how settings find theirs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, get_args

from torch import nn

from pcl_clora.adapters.base import AdapterMethod
from pcl_clora.adapters.config import AdapterConfig, Task
from pcl_clora.adapters.methods.adapter import Adapter
from pcl_clora.adapters.methods.arc import ARC
from pcl_clora.adapters.methods.bitfit import BitFit
from pcl_clora.adapters.methods.clora import CLoRA
from pcl_clora.adapters.methods.clora_geo import CLoRAGeo
from pcl_clora.adapters.methods.dapt import DAPT
from pcl_clora.adapters.methods.dora import DoRA
from pcl_clora.adapters.methods.fact import FacT
from pcl_clora.adapters.methods.full import Full
from pcl_clora.adapters.methods.gft import GFT
from pcl_clora.adapters.methods.idpt import IDPT
from pcl_clora.adapters.methods.linear_probe import LinearProbe
from pcl_clora.adapters.methods.lora import LoRA
from pcl_clora.adapters.methods.point_peft import PointPEFT
from pcl_clora.adapters.methods.pointgst import PointGST
from pcl_clora.adapters.methods.pointlora import PointLoRA
from pcl_clora.adapters.methods.ppt import PPT
from pcl_clora.adapters.methods.ssf import SSF
from pcl_clora.adapters.methods.stag import STAG
from pcl_clora.adapters.methods.vera import VeRA
from pcl_clora.adapters.methods.vpt import VPT
from pcl_clora.config import ConfigError, Registry, unknown_name
from pcl_clora.models.interface import get_interface
from pcl_clora.models.key_map import KeyMap
from pcl_clora.models.method_files import register_method_files

_methods: Registry[AdapterConfig, type[AdapterMethod]] = Registry(
    "fine-tuning method", "method", AdapterConfig
)


def register_adapter(method: type[AdapterMethod]) -> None:
    """Make a method known by the name that its config has as default for `method`.

    Raises:
        ValueError: if the name is taken.
    """
    name = str(method.config_type.model_fields["method"].default)
    _methods.register(name, method.config_type, method)
    files = method.released_files
    register_method_files({} if files is None else {name: files}, released_keys)


def released_keys(settings: Mapping[str, Any], base: nn.Module) -> KeyMap:
    """Say what released files call the tensors of a method on a backbone, which is left as it is.

    Raises:
        ConfigError: if the method or a setting is not known.
        ValueError: if the backbone cannot have the method.
    """
    method = build_method(parse_adapter_config(settings))
    method.make_deltas(base, get_interface(base))
    return method.official_keys


for _method in (
    CLoRA, LoRA, LinearProbe, Full,
    BitFit, SSF, Adapter, DoRA, VeRA, FacT, ARC,
    VPT, DAPT, CLoRAGeo, GFT, IDPT, PointGST, PointLoRA, PointPEFT, PPT, STAG,
):  # fmt: skip
    register_adapter(_method)


def list_adapters(
    *, mergeable: bool | None = None, batch_independent: bool | None = None, task: Task | None = None
) -> list[str]:
    """List the names of adapter methods, sorted.

    Args:
        mergeable: only those whose change folds into the weights, or only those whose does not.
        batch_independent: only those whose predictions do not depend on what else is in the batch, or only
            the others.
        task: only those that are offered for it: "classification" or "part_segmentation".

    Raises:
        ConfigError: if there is no such task.
    """
    if task is not None and task not in get_args(Task):
        raise ConfigError(unknown_name(str(task), get_args(Task), what="task"))
    wanted = {"mergeable": mergeable, "batch_independent": batch_independent}
    return sorted(
        name
        for name, method in _methods.makers().items()
        if all(value is None or getattr(method, key) == value for key, value in wanted.items())
        and (task is None or task in method.tasks)
    )


def method_class(name: str) -> type[AdapterMethod]:
    """Return the class of a method.

    Raises:
        KeyError: if there is none of this name.
    """
    return _methods.makers()[name]


def parse_adapter_config(values: Mapping[str, Any] | AdapterConfig) -> AdapterConfig:
    """Turn a mapping with a `method`, or with what a reader is registered for, into a method's settings.

    Raises:
        ConfigError: if the method is not known or a setting is wrong; the message names the nearest valid
            one.
    """
    for key, read in _readers.items():
        if isinstance(values, Mapping) and key in values:
            return read(values)
    return parse_settings(values)


def parse_settings(values: Mapping[str, Any] | AdapterConfig) -> AdapterConfig:
    """Turn a mapping with a `method` into that method's settings."""
    return _methods.parse(values)


def register_reader(key: str, read: Callable[[Mapping[str, Any]], AdapterConfig]) -> None:
    """Let sections that have a key be read by a function; "published" is one."""
    _readers[key] = read


_readers: dict[str, Callable[[Mapping[str, Any]], AdapterConfig]] = {}


def build_method(config: AdapterConfig) -> AdapterMethod:
    """Make the method that a config describes; its tensors appear when it is attached."""
    return _methods.maker(config)(config)
