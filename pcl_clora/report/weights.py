"""Weights files on a terminal: what they are, in what they differ, what was written."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.text import Text

from pcl_clora.io.text import visible
from pcl_clora.models.builtin import BUILTIN
from pcl_clora.report import units
from pcl_clora.report.show import plain_table

if TYPE_CHECKING:
    from pcl_clora.models.weights.compare import Comparison, TensorChange
    from pcl_clora.models.weights.convert import Conversion
    from pcl_clora.models.weights.hub_catalogue import PretrainedSpec
    from pcl_clora.models.weights.inspect import FileInfo, WouldLoad

SHOWN_OF_A_GROUP = 5


def pretrained_view(specs: Sequence[PretrainedSpec]) -> RenderableType:
    """Lay out known weights; published results are the authors' claims."""
    rows = []
    for spec in specs:
        claims = [f"{100 * p.value:.2f} {p.metric}, {p.dataset} ({p.protocol})" for p in spec.published]
        rows.append([f"hub:{spec.id}", spec.model or "-", spec.task, spec.licence, "; ".join(claims) or "-"])
    header = ["id", "model", "task", "licence of the code", "stated by the authors, in percent"]
    return plain_table(f"{len(rows)} known weights", header, rows, left=len(header))


def builtin_line(card: Mapping[str, Any]) -> str:
    """Say in a line what weights in the package are, by their card."""
    return (
        f'In the package: {card["model"]}, weights="{BUILTIN}", {units.count(card["parameters"])} '
        f"parameters, {units.file_size(card['bytes'])}; {card['method']}."
    )


def file_view(info: FileInfo) -> RenderableType:
    """Lay out what a weights file is."""
    types = ", ".join(f"{count} {kind}" for kind, count in info.dtypes.items())
    rows = [
        ["holds", info.holds],
        ["format", info.kind + (f", weights under {info.container!r}" if info.container else "")],
        ["names", info.naming + "".join(f"; {key} = {why}" for key, why in info.wrappers.items())],
        ["tensors", f"{info.num_tensors:,} with {info.num_values:,} values ({types})"],
        ["make it", info.create or "-"],
        *([["and", info.attach]] if info.attach else []),
    ]
    rows += [[f"beside: {key}", str(value)] for key, value in info.extras.items()]
    if info.not_finite:
        rows.append(["nan or infinite", ", ".join(f"{k} ({n})" for k, n in info.not_finite.items())])
    parts = [plain_table(info.path, ["", ""], rows, left=2)]
    if info.loads:
        parts.append(
            plain_table(
                "What would load (num_heads leaves no trace in a file)",
                [
                    "model",
                    "task",
                    "what is left out, or why it is refused",
                    "matched",
                    "missing",
                    "unexpected",
                ],
                [_load_row(load) for load in info.loads],
                left=3,
            )
        )
    return Group(*parts)


def _load_row(load: WouldLoad) -> list[str]:
    if load.refused:
        return [load.model, load.task, f"refused: {load.refused.split('. The file is')[0]}", "-", "-", "-"]
    reasons = "; ".join(f"{reason} ({count})" for reason, count in load.unexpected.items())
    numbers = (load.matched, load.missing, sum(load.unexpected.values()))
    return [load.model, load.task, reasons, *map(str, numbers)]


def comparison_view(found: Comparison, *, every: bool = False) -> RenderableType:
    """Lay out in which tensors two files differ."""
    from pcl_clora.models.weights.compare import GROUPS

    counts = [[group, *map(str, found.count(group))] for group in GROUPS]
    shown: list[TensorChange] = []
    seen: Counter[str] = Counter()
    for change in found.changes:
        seen[change.group] += 1
        if every or seen[change.group] <= SHOWN_OF_A_GROUP:
            shown.append(change)
    parts: list[RenderableType] = [
        Text(f"first:  {visible(found.first)}\nsecond: {visible(found.second)}"),
        plain_table("Tensors that both files have", ["group", "differ", "of"], counts),
    ]
    if shown:
        parts.append(
            plain_table(
                "Largest relative differences first" + ("" if every else f", {SHOWN_OF_A_GROUP} of a group"),
                ["group", "tensor", "max abs", "relative (L2)", "values that differ"],
                [_change_row(change) for change in shown],
                left=2,
            )
        )
    for title, names in (("only in the first", found.only_first), ("only in the second", found.only_second)):
        if names:
            tops = Counter(name.split(".")[0] for name in names)
            parts.append(Text(f"{title}: " + ", ".join(f"{visible(top)} ({n})" for top, n in tops.items())))
    return Group(*parts, Text(found.verdict(), style="bold"))


def _change_row(change: TensorChange) -> list[str]:
    if change.shapes:
        return [change.group, f"{change.name}: {change.shapes[0]} and {change.shapes[1]}", "-", "-", "-"]
    return [
        change.group,
        change.name,
        f"{change.max_abs:.3g}",
        f"{change.relative:.3g}",
        f"{100 * change.share:.1f} %",
    ]


def conversion_view(made: Conversion) -> RenderableType:
    """Lay out what was written."""
    reasons = Counter(made.left_out.values())
    lines = [
        f"{made.source} ({made.holds}; {made.naming[0]} names)",
        f"-> {made.target}: {made.num_tensors} tensors, {made.naming[1]} names",
        *(f"   left out, {reason}: {count}" for reason, count in reasons.items()),
    ]
    return Text("\n".join(map(visible, lines)))
