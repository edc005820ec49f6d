"""What every method trains and promises, found by attaching it: the table of docs/methods.md."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import nn

from pcl_clora.adapters import attach_adapter, list_adapters
from pcl_clora.adapters.registry import method_class
from pcl_clora.models import create_model

START, END = "<!-- table -->\n", "<!-- end -->"  # marks of the page, around the table
FORMS = ("form", "depth")  # settings whose choices are methods of their own in the literature


@dataclass(frozen=True)
class MethodRow:
    """A method, or one form of it, with its default settings on one backbone.

    Attributes:
        settings: what to write in a config, the method first.
        trained: numbers that it trains besides head and tokens.
        mergeable: whether it folds into the weights.
        batch_independent: whether a prediction is the same whatever else is in the batch.
        source: where it was published first; empty for what has no paper.
    """

    settings: dict[str, Any]
    trained: int
    mergeable: bool
    batch_independent: bool
    source: str


def describe_methods(make_base: Callable[[], nn.Module]) -> list[MethodRow]:
    """Attach every method to a backbone and say what it trains.

    Args:
        make_base: makes the backbone, a new one at each call; on the meta device it costs nothing.

    Returns:
        A row for every method and every form of it, by name.
    """
    rows = []
    for name in list_adapters():
        method = method_class(name)
        for settings in _forms(name, method.config_type.model_fields):
            counts = attach_adapter(make_base(), settings).parameter_counts()
            trained = counts["trainable"] - counts["head"] - counts["tokens"]
            flags = (method.mergeable, method.batch_independent)
            form = [*settings.values(), ""][1]
            rows.append(MethodRow(settings, trained, *flags, first_source(method, form)))
    return rows


def format_methods(rows: list[MethodRow]) -> str:
    """Write rows as a markdown table."""
    lines = [
        "| adapter | trained parameters | mergeable | independent of batch mates | source |",
        "|---|---:|---|---|---|",
    ]
    for row in rows:
        name, *forms = row.settings.values()
        title = f"`{name}`" + "".join(f", {form}" for form in forms)
        answers = ("yes" if flag else "no" for flag in (row.mergeable, row.batch_independent))
        lines.append(f"| {title} | {row.trained:,} | {' | '.join(answers)} | {row.source or '-'} |")
    return "\n".join(lines) + "\n"


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


def methods_page(page: str) -> str:
    """Return a page with the table between its two marks made anew, for full-size Point-MAE."""

    def make_base() -> nn.Module:
        with torch.device("meta"):
            return create_model("point_mae", num_classes=15)

    before, _, rest = page.partition(START)
    return before + START + format_methods(describe_methods(make_base)) + END + rest.partition(END)[2]
