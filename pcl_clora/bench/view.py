"""Benchmarks on a terminal and as markdown."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from rich.console import Group, RenderableType
from rich.text import Text

from pcl_clora.bench.harness import thread_remarks
from pcl_clora.bench.model_view import ModelRowShape, model_remarks, model_tables
from pcl_clora.bench.ops import NATIVE
from pcl_clora.bench.serve import serve_remarks, serve_table
from pcl_clora.io import explained
from pcl_clora.report.marks import put_between_marks
from pcl_clora.report.shapes import Shape, check_shape, parse_object
from pcl_clora.report.show import plain_table
from pcl_clora.report.units import markdown_table

TITLES = {
    "fps": "Farthest point sampling",
    "knn": "Nearest neighbours, k = 32",
    "group": "Grouping, patches of 32",
}


class EntryShape(Shape):
    """What a contender took, and whether it was right."""

    min_ms: float
    median_ms: float
    exact: bool
    note: str


class RowShape(Shape):
    """A size of an operator."""

    op: Literal["fps", "knn", "group"]
    size: str
    threads: int
    target: float
    ratio: float | None
    clock: str
    load: float | None
    contenders: dict[str, EntryShape]
    absent: dict[str, str]


class MachineShape(Shape):
    """What it was measured on."""

    cpu: str
    cores: int | None


class EnvironmentShape(Shape):
    """Versions and commit."""

    versions: dict[str, str]
    git: str | None


class AnyRecordShape(Shape):
    """What the records have in common."""

    benchmark: Literal["ops", "model", "serve"]
    machine: MachineShape
    environment: EnvironmentShape
    peers: dict[str, str | None]
    held_to: str = ""


class RecordShape(AnyRecordShape):
    """A record of `bench_ops`."""

    rows: list[RowShape]


class ModelRecordShape(AnyRecordShape):
    """A record of `bench_model`."""

    rows: list[ModelRowShape]


class ServeRowShape(Shape):
    """What some clients at once were answered."""

    clients: int
    requests: int
    answered: int
    turned_down: int
    others: int
    p50_ms: float | None
    p99_ms: float | None
    clouds_per_s: float
    peak_mib: float | None


class ServeRecordShape(AnyRecordShape):
    """A record of `bench_serve`."""

    points: int
    queue: int
    load: float | None
    rows: list[ServeRowShape]


_SHAPES: Mapping[Any, type[Shape]] = {
    "ops": RecordShape, "model": ModelRecordShape, "serve": ServeRecordShape
}  # fmt: skip


def read_record(path: str | Path) -> dict[str, Any]:
    """Read a record of `bench_ops`, `bench_model` or `bench_serve`, those that this module lays out.

    Raises:
        ReportError: if the file is damaged, or a record of something else.
        FileAccessError: if it cannot be read.
    """
    with explained(path, "read"):
        text = Path(path).read_bytes()
    content = parse_object(path, text)
    kind = content.get("benchmark")
    known = kind if isinstance(kind, str) and kind in _SHAPES else "ops"
    named = known if known == kind else f"{', '.join(list(_SHAPES)[:-1])} or {list(_SHAPES)[-1]}"
    writer, shape = f"pcl-clora bench {named}", _SHAPES[known]
    check_shape(shape, content, path, writer=writer, remedy="measure again")
    return content


def row_line(row: Mapping[str, Any]) -> str:
    """Say in a line what a row found."""
    ours = row["contenders"].get(NATIVE)
    text = f"{row['op']} {row['size']}, {row['threads']} thread(s): "
    text += f"{milliseconds(ours['min_ms'])} ms" if ours else "no native build"
    if row["ratio"]:
        text += f", {row['ratio']:.1f} times as fast as {row['best_exact_peer']}"
        text += f" (target {row['target']:g})" if row["target"] else ""
    return text


def bench_view(result: Mapping[str, Any]) -> RenderableType:
    """Lay out a record."""
    parts: list[RenderableType] = [Text(machine_line(result), style="dim")]
    for title, header, rows in tables(result):
        parts.append(plain_table(title, header, rows))
    return Group(*parts, *(Text(line, style="dim") for line in remarks(result)))


def bench_markdown(result: Mapping[str, Any]) -> str:
    """Write a record as markdown: the machine, its tables, remarks."""
    parts = [machine_line(result)]
    for title, header, rows in tables(result):
        parts.append(f"**{title}**\n\n{markdown_table(header, rows)}")
    parts.append("\n".join(f"* {line}" for line in remarks(result)))
    return "\n\n".join(parts) + "\n"


def put_into(page: str, result: Mapping[str, Any], mark: str = "") -> str:
    """Replace what stands between the two marks of a benchmark on a page; one held to avx2 has its own.

    Args:
        page: text of the page.
        result: the record.
        mark: name of the marks behind the benchmark's, where a page shows several records of one benchmark;
            "" for what it was held to.

    Raises:
        ValueError: if the page does not have both marks.
    """
    name = " ".join(filter(None, ("bench", result["benchmark"], mark or result.get("held_to", ""))))
    return put_between_marks(page, name, bench_markdown(result))


def machine_line(result: Mapping[str, Any]) -> str:
    """Name machine, what it was held to, versions and commit."""
    environment = result["environment"]
    held = f", held to {result['held_to']}" if result.get("held_to") else ""
    peers = ", ".join(f"{name} {number}" for name, number in result["peers"].items() if number)
    return (
        f"{result['machine']['cpu']}, {result['machine']['cores']} cores{held}; "
        f"torch {environment['versions']['torch']}, numpy {environment['versions']['numpy']}; "
        f"{peers + '; ' if peers else ''}commit {(environment['git'] or 'unknown')[:12]}."
    )


def tables(result: Mapping[str, Any]) -> list[tuple[str, list[str], list[list[str]]]]:
    """Make title, header and rows of every table; of operators: contenders down, sizes across, ms."""
    if result["benchmark"] == "model":
        return model_tables(result)
    if result["benchmark"] == "serve":
        header, cells = serve_table(result)
        return [(f"POST /predict, clouds of {result['points']:,} points", list(header), cells)]
    made = []
    for threads in dict.fromkeys(row["threads"] for row in result["rows"]):
        for op, title in TITLES.items():
            rows = [row for row in result["rows"] if (row["op"], row["threads"]) == (op, threads)]
            if rows:
                number = "one thread" if threads == 1 else f"{threads} threads"
                clock = f"minimum / median, {rows[0]['clock']} time"
                made.append((f"{title}, {number}, ms ({clock})", *_table(rows)))
    return made


def _table(rows: list[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    names = list(dict.fromkeys(name for row in rows for name in row["contenders"]))
    body = [[name, *(_cell(row["contenders"].get(name)) for row in rows)] for name in names]
    ratios = ["best exact peer / native", *(_ratio(row["ratio"]) for row in rows)]
    targets = ["target", *(f"{row['target']:g}" if row["target"] else "" for row in rows)]
    body.append(ratios)
    if any(targets[1:]):
        body.append(targets)
    return ["", *(row["size"] for row in rows)], body


def remarks(result: Mapping[str, Any]) -> list[str]:
    """Say who was not there, who did not compute the same, and whether the machine was busy with more."""
    if result["benchmark"] == "model":
        return model_remarks(result)
    if result["benchmark"] == "serve":
        return serve_remarks(result)
    lines: dict[str, None] = {}
    inexact: dict[tuple[str, str], list[str]] = {}
    for row in result["rows"]:
        for name, why in row["absent"].items():
            lines[f"{name}: absent ({why})"] = None
        for name, entry in row["contenders"].items():
            if not entry["exact"]:
                inexact.setdefault((name, row["op"]), []).append(f"{row['size']}: {entry['note']}")
    for (name, op), notes in inexact.items():
        lines[f"{name} (*), {op}: not exact in {len(notes)} row(s), for example {notes[-1]}"] = None
    own = [row for row in result["rows"] if NATIVE in row["contenders"]]
    times = {
        (f"{row['op']} {row['size']}", row["threads"]): row["contenders"][NATIVE]["min_ms"] for row in own
    }
    lines |= dict.fromkeys(thread_remarks(times))
    busy = [row["load"] for row in result["rows"] if (row["load"] or 0) > row["threads"] + 1]
    if busy:
        lines[
            f"The machine was busy with other work in {len(busy)} of {len(result['rows'])} rows (load up to "
            f"{max(busy):.1f}). With one thread processor time is counted, which leaves that out but for "
            "shared caches; with more threads the wall is, and ratios are too high. Measure again before "
            "quoting."
        ] = None
    return list(lines)


def milliseconds(value: float) -> str:
    """Write a time with three digits: 0.394, 25.4, 1,662."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"


def _cell(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return ""
    both = f"{milliseconds(entry['min_ms'])} / {milliseconds(entry['median_ms'])}"
    return both + ("" if entry["exact"] else " (*)")


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
