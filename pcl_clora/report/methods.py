"""What every method trains, costs and promises, found by attaching it: the table of docs/methods.md."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args

import torch
from rich.console import RenderableType
from torch import nn

from pcl_clora.adapters import (
    AdaptedModel,
    attach_adapter,
    list_adapters,
    list_published,
    published_adapter,
)
from pcl_clora.adapters.config import AdapterConfig
from pcl_clora.adapters.registry import method_class
from pcl_clora.errors import PclCloraError
from pcl_clora.models import create_model, published_form
from pcl_clora.models.config import Task
from pcl_clora.models.registry import entries
from pcl_clora.report.macs import count_executed, count_layers
from pcl_clora.report.show import plain_table
from pcl_clora.report.units import giga

START, END = "<!-- table -->\n", "<!-- end -->"  # marks of the page, around the table
FORMS = ("form", "depth")  # settings whose choices are methods of their own in the literature
NUM_POINTS, NUM_CLASSES = 2048, 15  # of a cloud and of the head: ScanObjectNN's, as most tables have them
TASKS: tuple[Task, ...] = ("classification", "part_segmentation")
ON = "point_mae"  # what is counted
IMAGES = "timm/vit_tiny_patch16_224"  # stands for the transformers over images
HEADER = (
    "adapter", "trained", "GMACs published", "executed", "merged", "file", "mergeable",
    "independent of batch mates", "tasks", "backbones", "source",
)  # fmt: skip


@dataclass(frozen=True)
class MethodRow:
    """A method, or one form of it, with its default settings on full-size Point-MAE.

    Attributes:
        settings: what to write in a config, the method first.
        trained: numbers that it trains besides head and tokens.
        macs_published: multiply-adds of a cloud as papers count them: calls of linear and convolution layers;
            of a method that merges, merged; of one whose code is released, with that code's settings for
            ScanObjectNN in paper mode.
        macs_executed: all matrix products that run, attention included, unmerged.
        macs_merged: the same after merging; None if it does not merge.
        file_bytes: size of the tensors in its file, head and tokens included.
        mergeable: whether it folds into the weights.
        batch_independent: whether a prediction is the same whatever else is in the batch.
        tasks: tasks of Point-MAE that take it.
        backbones: backbones whose classifier takes it.
        source: where it was published first; empty for what has no paper.
    """

    settings: dict[str, Any]
    trained: int
    macs_published: int
    macs_executed: int
    macs_merged: int | None
    file_bytes: int
    mergeable: bool
    batch_independent: bool
    tasks: tuple[str, ...]
    backbones: tuple[str, ...]
    source: str

    @property
    def title(self) -> str:
        """The method, with its form where it has several."""
        name, *forms = self.settings.values()
        return ", ".join([str(name), *map(str, forms)])


def describe_methods(names: Sequence[str] = ()) -> list[MethodRow]:
    """Attach methods to backbones without values, run them, and say what they cost and who takes them.

    Args:
        names: of methods; by default all.

    Returns:
        A row for every method and every form of it, by name.
    """
    bases = dict(_make_bases())
    base = bases[ON, TASKS[0]]
    plain, points = _count(base), _points()
    rows = []
    for name in names or list_adapters():
        method = method_class(name)
        for settings in _forms(name, method.config_type.model_fields):
            published, merged = plain
            if not method.mergeable:
                released = attach_adapter(base, _as_released(settings))
                released.method.provide(**released.method.example_inputs(released.interface))
                with published_form(released):
                    published = sum(count_layers(released, points).values())
                released.unload()
            adapted = attach_adapter(base, settings)
            counts = adapted.parameter_counts()
            row = MethodRow(
                settings=settings,
                trained=counts["trainable"] - counts["head"] - counts["tokens"],
                macs_published=published,
                macs_executed=count_executed(adapted, points).macs,
                macs_merged=merged if method.mergeable else None,
                file_bytes=sum(tensor.nbytes for tensor in adapted.adapter_state().values()),
                mergeable=method.mergeable,
                batch_independent=method.batch_independent,
                tasks=(),
                backbones=(),
                source=first_source(method, [*settings.values(), ""][1]),
            )
            adapted.unload()
            taken = [place for place, other in bases.items() if other is base or _takes(other, settings)]
            tasks = tuple(task for task in TASKS if (ON, task) in taken)
            fits = tuple(backbone for backbone, task in taken if task == "classification")
            rows.append(replace(row, tasks=tasks, backbones=fits))
    return rows


def backbone_names() -> tuple[str, ...]:
    """List the backbones that stand for all: one a network, in the order of the registry."""
    networks = {entry.tasks["classification"]: entry for entry in reversed(entries())}
    own = [entry for entry in entries() if entry in networks.values() and not entry.same_network]
    return tuple(IMAGES if entry.variants else entry.name for entry in own)


def _as_released(settings: dict[str, Any]) -> AdapterConfig | dict[str, Any]:
    """Return the published settings of a method for the network and the data that are counted, if any."""
    name = settings["method"]
    if any(entry["method"] == name and entry["backbone"] == ON for entry in list_published()):
        return published_adapter(backbone=ON, **settings)
    return settings


def _make_bases() -> Iterator[tuple[tuple[str, Task], nn.Module]]:
    """Make a classifier of every backbone, and a segmenter, on the meta device, where they cost nothing."""
    with torch.device("meta"):
        for name in backbone_names():
            yield (name, TASKS[0]), create_model(name, num_classes=NUM_CLASSES).eval()
        yield (ON, TASKS[1]), create_model(ON, task=TASKS[1]).eval()


def _takes(base: nn.Module, settings: dict[str, Any]) -> bool:
    """Tell whether a backbone takes a method; it is left as it was."""
    try:
        adapted: AdaptedModel = attach_adapter(base, settings)
    except PclCloraError:
        return False
    adapted.unload()
    return True


def _count(base: nn.Module) -> tuple[int, int]:
    """Count multiply-adds of a backbone: (as papers do, as executed)."""
    with published_form(base):
        published = sum(count_layers(base, _points()).values())
    return published, count_executed(base, _points()).macs


def _points() -> torch.Tensor:
    return torch.empty(1, NUM_POINTS, 3, device="meta")


def method_cells(row: MethodRow) -> list[str]:
    """Write a row as text, in the order of `HEADER`."""
    places = backbone_names()
    missing = [name for name in places if name not in row.backbones]
    shown = [name.split("/")[0] for name in (row.backbones if len(missing) > 2 else missing)]
    where = ", ".join(shown) if len(missing) > 2 else "all but " + ", ".join(shown) if missing else "all"
    return [
        row.title,
        f"{row.trained:,}",
        giga(row.macs_published),
        giga(row.macs_executed),
        "-" if row.macs_merged is None else giga(row.macs_merged),
        f"{row.file_bytes / 1e6:.1f} MB",
        *("yes" if flag else "no" for flag in (row.mergeable, row.batch_independent)),
        ", ".join(task.replace("_", " ") for task in row.tasks) if len(row.tasks) < len(TASKS) else "both",
        where,
        row.source or "-",
    ]


def format_methods(rows: list[MethodRow]) -> str:
    """Write rows as a markdown table."""
    lines = [f"| {' | '.join(HEADER)} |", "|---|---:|---:|---:|---:|---:|---|---|---|---|---|"]
    for row in rows:
        name, *cells = method_cells(row)
        method, *form = name.split(", ")
        lines.append("| " + " | ".join([", ".join([f"`{method}`", *form]), *cells]) + " |")
    return "\n".join(lines) + "\n"


def methods_view(rows: list[MethodRow]) -> RenderableType:
    """Lay out rows for a terminal; sources are in docs/methods.md and in the json."""
    title = (
        f"{len(rows)} methods on full-size Point-MAE, {NUM_CLASSES} classes, {NUM_POINTS:,} points; trained: "
        "numbers besides head and class token; file: with both"
    )
    cells = [method_cells(row)[:-1] for row in rows]
    order = (0, 6, 7, 8, 9, 1, 2, 3, 4, 5)  # words first, then numbers
    rows_shown = [[line[index] for index in order] for line in cells]
    return plain_table(title, [HEADER[index] for index in order], rows_shown, left=5)


def first_source(method: type, form: str = "") -> str:
    """Return the first reference in a method's docstring, or that of one form; empty if it names none."""
    _, found, text = (inspect.getdoc(method) or "").partition("Source:")
    if not found:
        return ""
    references = [" ".join(part.split()).rstrip(".") for part in text.split("\n\n")[0].split(";")]
    own = [reference for reference in references if form and reference.startswith(f"{form}: ")]
    return (own or references)[0].removeprefix(f"{form}: ")


def _forms(name: str, fields: dict[str, Any]) -> list[dict[str, Any]]:
    for setting in FORMS:
        if setting in fields:
            return [{"method": name, setting: choice} for choice in get_args(fields[setting].annotation)]
    return [{"method": name}]


def methods_page(page: str, rows: list[MethodRow]) -> str:
    """Return a page with the table between its two marks made anew."""
    before, _, rest = page.partition(START)
    return before + START + format_methods(rows) + END + rest.partition(END)[2]
