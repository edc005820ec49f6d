"""Reports on a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pcl_clora.engine import headlines
from pcl_clora.io.text import visible
from pcl_clora.report.records import task_of
from pcl_clora.report.tables import CLASS_TABLES, Row, RunTable
from pcl_clora.report.units import count, duration, giga, percent


def plain_table(
    title: str, header: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1
) -> RenderableType:
    """Make a table under a title; its first `left` columns are words, the others numbers."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(header):
        table.add_column(Text(visible(name)), justify="left" if index < left else "right", overflow="fold")
    for row in rows:
        table.add_row(*(Text(visible(cell)) for cell in row))
    return Group(Text(visible(title), style="bold"), table)


def cost_view(report: Mapping[str, Any], *, title: str, with_modules: bool = False) -> RenderableType:
    """Lay out a cost report; both counting conventions are named."""
    params, macs, flops = report["params"], report["macs"], report["flops"]
    conventions = macs["conventions"]
    image = report.get("image")
    sample = (
        f"image of {' x '.join(map(str, image))}" if image else f"cloud of {report['num_points']:,} points"
    )
    parts: list[RenderableType] = [
        plain_table(
            title, ["parameters", "number"], [[name, f"{value:,}"] for name, value in params.items()]
        ),
        plain_table(
            f"Multiply-adds of one {sample}",
            ["GMACs", "convention", "10^9"],
            [
                ["published", conventions["published"], giga(macs["published"])],
                ["layers", conventions["layers"], giga(macs["layers"])],
                ["executed", conventions["executed"], giga(macs["executed"])],
                ["executed, merged", conventions["executed_merged"], giga(macs["executed_merged"])],
            ],
            left=2,
        ),
        Text(
            f"Executed GFLOPs = 2 x GMACs: {giga(flops['executed'])}, merged "
            f"{giga(flops['executed_merged'])}. Sampling and neighbour search, in neither: "
            f"{giga(flops['grouping'])} GFLOPs."
        ),
        *_measured(report),
    ]
    if with_modules:
        rows = [
            [name, count(row["params"]), giga(row["macs_published"]), giga(row["macs_executed"])]
            for name, row in report["modules"].items()
        ]
        header = ["module", "parameters", "GMACs published", "GMACs executed"]
        parts.append(
            plain_table(
                "Module by module, adapter merged; a product that a parent does counts there", header, rows
            )
        )
    return Group(*parts)


def run_table_view(table: RunTable) -> RenderableType:
    """Lay out a table over runs."""
    rows = [row.cells() for row in table.rows]
    return Group(plain_table("", table.header, rows), Text(table.title, style="dim"))


def seeds_view(row: Row) -> RenderableType:
    """Lay out the runs of a row, seed by seed."""
    return plain_table(f"{row.label}, seed by seed, percent", row.seed_header(), row.seed_cells())


def metrics_view(result: Mapping[str, Any], title: str) -> RenderableType:
    """Lay out the metrics of one evaluation, as `pcl-clora eval` gives them: means, then classes."""
    metrics = result["metrics"]
    shown = [head for head in headlines(task_of(result)) if head.key != "loss"]
    rows = [[head.title, percent(metrics[head.key])] for head in shown]
    if "accuracy" in metrics:
        rows.append(["accuracy of points", percent(metrics["accuracy"])])
        rows.append(["mean accuracy of parts", percent(metrics["part_accuracy"])])
    loss = "cross entropy" if shown else "reconstruction loss, no percentage"
    rows.append([loss, f"{metrics['loss']:.4f}" if shown else f"{metrics['loss']:.6f}"])
    if result["protocol"]["votes"] > 1:
        cost = result["evaluation"]
        rows.append(["votes: forward passes of a cloud", str(cost["passes_per_cloud"])])
        rows.append(["GMACs executed, all votes", giga(cost["macs"])])
        rows.append(["time", duration(cost["seconds"])])
    parts = [plain_table(title, ["percent", ""], rows)]
    for key, name, quantity in CLASS_TABLES:
        if key in metrics:
            known = [[label, "" if v is None else percent(v)] for label, v in metrics[key].items()]
            parts.append(plain_table("", [name, f"{quantity}, percent"], known))
    return Group(*parts)


def _measured(report: Mapping[str, Any]) -> list[RenderableType]:
    """Tables of what was measured, if it was."""
    parts: list[RenderableType] = []
    memory, latency = report["memory_mib"], report["latency_ms"]
    if memory:
        names = ("weights", "inference", "training_step")
        rows = [[name.replace("_", " "), _number(memory[name])] for name in names]
        parts += [
            plain_table(f"Memory, batch of {memory['batch_size']}", ["what", "MiB"], rows),
            Text(memory["method"], style="dim"),
        ]
    if latency:
        rows = [[name, _number(latency[name])] for name in ("unmerged", "merged", "grouping")]
        title = (
            f"Latency a cloud, batch of {latency['batch_size']}, {latency['device']}, "
            f"{latency['threads']} thread(s), median of {latency['repeats']}"
        )
        parts += [plain_table(title, ["what", "ms"], rows), Text(latency["method"], style="dim")]
    return parts


def _number(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.2f}"
