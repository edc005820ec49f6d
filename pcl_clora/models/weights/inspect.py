"""Say what a weights file is, and which models would take how much of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from pcl_clora.models.builtin import BUILTIN
from pcl_clora.models.errors import WeightsError
from pcl_clora.models.method_files import ADAPTER, TASK
from pcl_clora.models.registry import entries, find_entry
from pcl_clora.models.weights._containers import Checkpoint
from pcl_clora.models.weights._identify import Identity
from pcl_clora.models.weights._left_out import all_wrappers, wrappers_of
from pcl_clora.models.weights._match import count_not_finite
from pcl_clora.models.weights._official_view import make_empty, view_officially
from pcl_clora.models.weights._safetensors_file import SafetensorsFile
from pcl_clora.models.weights._sources import open_source
from pcl_clora.models.weights.load import preview


@dataclass(frozen=True)
class WouldLoad:
    """What a model would take of a file.

    Attributes:
        model: id of `create_model`.
        task: of the model.
        matched: how many names of the model would be filled.
        missing: how many would keep their values.
        unexpected: reason -> how many keys of the file would be left out for it.
        refused: why `load_weights` would refuse the file; "" if it would not.
    """

    model: str
    task: str
    matched: int = 0
    missing: int = 0
    unexpected: Mapping[str, int] = field(default_factory=dict)
    refused: str = ""


@dataclass(frozen=True)
class FileInfo:
    """What a weights file is.

    Attributes:
        path: the file.
        kind: "safetensors" or "torch".
        container: entry that holds the weights, "" for the top level.
        holds: network, task and fine-tuning method, in words.
        naming: "official", "hub" or "native".
        wrappers: prefix before its keys -> where it comes from.
        num_tensors: tensors in the file.
        num_values: numbers in all of them.
        dtypes: type -> number of tensors.
        not_finite: key -> how many of its values are nan or infinite.
        sizes: settings that the shapes show.
        create: the call that makes a model of these sizes; num_heads leaves no trace in a file.
        adapter: settings of the fine-tuning method in it that the shapes show or the file says, with its name
            as `method`; empty for none that is offered here.
        attach: the call that makes place for them, on that model.
        extras: what stands beside the weights, such as the epoch.
        loads: what each model of the architecture would take of it.
    """

    path: str
    kind: str
    container: str
    holds: str
    naming: str
    wrappers: Mapping[str, str]
    num_tensors: int
    num_values: int
    dtypes: Mapping[str, int]
    not_finite: Mapping[str, int]
    sizes: Mapping[str, Any]
    create: str
    adapter: Mapping[str, Any]
    attach: str
    extras: Mapping[str, Any]
    loads: tuple[WouldLoad, ...]

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain values."""
        return asdict(self)


def inspect_weights(source: str | Path) -> FileInfo:
    """Read a file safely and say what it is; no model is filled.

    Args:
        source: a weights file, folder of a finished run, "hub:<id>", or "builtin", those in the package.

    Raises:
        WeightsError: if the file is refused, see `open_checkpoint`.
    """
    opened = open_source(source)
    checkpoint = opened.checkpoint
    view = view_officially(checkpoint)
    likes = {key: checkpoint.like(key) for key in checkpoint.tensors}
    bad = {key: count for key in likes if (count := count_not_finite(checkpoint.tensors[key]))}
    return FileInfo(
        path=str(source),
        kind="safetensors" if isinstance(checkpoint.tensors, SafetensorsFile) else "torch",
        container=checkpoint.container,
        holds=_title(checkpoint) or str(view.identity),
        naming=view.naming,
        wrappers={wrapper: all_wrappers()[wrapper] for wrapper in wrappers_of(likes)},
        num_tensors=len(likes),
        num_values=sum(tensor.numel() for tensor in likes.values()),
        dtypes=dict(Counter(str(tensor.dtype).removeprefix("torch.") for tensor in likes.values())),
        not_finite=bad,
        sizes=dict(view.identity.sizes),
        create=_builtin_call(opened.label) if str(source) == BUILTIN else view.identity.as_call(),
        adapter=dict(view.adapter),
        attach=f"attach_adapter(model, {dict(view.adapter)})" if view.adapter else "",
        extras={
            key: value for key, value in checkpoint.extras.items() if key not in ("header", ADAPTER, TASK)
        },
        loads=tuple(would_load(checkpoint, view.identity)),
    )


def _builtin_call(label: str) -> str:
    """Say how to make the model of weights in the package, whose label is "builtin <model>"."""
    return f'create_model("{label.rpartition(" ")[2]}", weights="{BUILTIN}")'


def _title(checkpoint: Checkpoint) -> str:
    """Say what a file is that holds something else than the weights of a network; "" for weights."""
    return f"{checkpoint.other.title}; {checkpoint.other.remedy}" if checkpoint.other else ""


def would_load(checkpoint: Checkpoint, identity: Identity) -> list[WouldLoad]:
    """Try every model of the file's architecture, and every task, on shapes alone."""
    found = find_entry(identity.model)
    if found is None:
        return []
    return [
        _try(checkpoint, identity, entry.name, task)
        for entry in entries()
        if (entry.network == found.network or found.name in entry.also_takes) and not entry.is_size
        for task in entry.tasks
    ]


def _try(checkpoint: Checkpoint, identity: Identity, model: str, task: str) -> WouldLoad:
    try:
        report = preview(make_empty(identity, model, task), dict(_likes(checkpoint)))
    except WeightsError as error:
        return WouldLoad(model, task, refused=str(error).removeprefix("state dict: "))
    return WouldLoad(
        model,
        task,
        len(report.matched),
        len(report.missing),
        dict(Counter(report.unexpected.values())),
    )


def _likes(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    return {key: checkpoint.like(key) for key in checkpoint.tensors}
