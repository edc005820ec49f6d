"""What every fine-tuning method adds to a training step of full-size Point-MAE, beside a linear probe."""

from __future__ import annotations

import ast
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from pcl_clora.adapters import AdaptedModel, attach_adapter, list_adapters
from pcl_clora.adapters import methods as folder
from pcl_clora.bench.harness import in_child, load, record
from pcl_clora.engine import OptimConfig, build_optimizer
from pcl_clora.models import create_model
from pcl_clora.report.latency import interleaved_times
from pcl_clora.report.memory import mib, peak_bytes
from pcl_clora.report.units import markdown_table

BASELINE = "linear_probe"
START, END = "<!-- cost -->\n", "<!-- end of cost -->"  # marks of the page, around the table
ATTACH_TARGET_MS, LINES_TARGET = 50.0, 150


def bench_methods(
    *, batch_size: int = 4, num_points: int = 1024, repeats: int = 5, budget_s: float = 20.0
) -> dict[str, Any]:
    """Measure attaching and training with every method's default settings, turn by turn, with one thread.

    A step is forward, backward and AdamW of Point-MAE (22.1 M parameters, 64 patches) with a frozen backbone.

    Args:
        batch_size: clouds a step, at least 2.
        num_points: points a cloud.
        repeats: rounds, at most.
        budget_s: processor time for one method, after which it sits out.

    Returns:
        The record; its row holds "methods": name -> attach_ms (minimum), step_ms (median), ratio to linear
        probe (median over the rounds), memory_mib of a step, added_mib, lines of code of its file.
    """
    job = {"batch_size": batch_size, "num_points": num_points, "repeats": repeats, "budget_s": budget_s}
    rows = list(in_child("pcl_clora.bench.methods:measure", job, 1))
    return record("methods", (), rows) | job


def measure(job: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Measure in this process and yield the one row."""
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(job["batch_size"], job["num_points"], 3, generator=generator)
    points = points / points.norm(dim=-1).amax(dim=1)[:, None, None]
    names = [BASELINE, *(name for name in list_adapters() if name != BASELINE)]
    attach = {name: _attach_ms(name) for name in names}
    memory = {name: _memory(name, points) for name in names}
    runs = {name: _stepper(_make(name), points) for name in names}
    clock = time.process_time
    times = interleaved_times(runs, job["repeats"], warmup=1, budget_s=job["budget_s"], clock=clock)
    base = times[BASELINE]
    rows = {
        name: {
            "attach_ms": attach[name],
            "step_ms": 1000 * statistics.median(seconds),
            "ratio": statistics.median(own / other for own, other in zip(seconds, base, strict=False)),
            "runs": len(seconds),
            "memory_mib": memory[name],
            "added_mib": memory[name] - memory[BASELINE],
            "lines": lines_of(name),
        }
        for name, seconds in times.items()
    }
    yield {"model": "point_mae", "threads": 1, "clock": "processor", "load": load(), "methods": rows}


def lines_of(method: str) -> int:
    """Count the lines of code of a method's file: no blank lines, comments or docstrings."""
    (place,) = folder.__path__
    text = (Path(place) / f"{method}.py").read_text(encoding="utf-8")
    inside: set[int] = set()  # docstrings
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            inside.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    lines = enumerate(text.splitlines(), start=1)
    return sum(bool(line.strip()) and line.strip()[0] != "#" and n not in inside for n, line in lines)


def _make(name: str) -> AdaptedModel:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = attach_adapter(create_model("point_mae", num_groups=64), {"method": name})
    model.train()
    return model


def _attach_ms(name: str) -> float:
    times = []
    for _ in range(3):
        base = create_model("point_mae", num_groups=64)
        began = time.process_time()
        attach_adapter(base, {"method": name})
        times.append(time.process_time() - began)
    return 1000 * min(times)


def _stepper(model: AdaptedModel, points: torch.Tensor) -> Callable[[], None]:
    optimizer = build_optimizer(model, OptimConfig())
    labels = torch.arange(len(points)) % 40

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss = F.cross_entropy(model(points), labels) + sum(model.extra_losses().values())
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return step


def _memory(name: str, points: torch.Tensor) -> float:
    model = _make(name)
    step = _stepper(model, points)
    return mib(peak_bytes(step, known=[*model.parameters(), *model.buffers(), points]))


def cost_table(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Make header and rows, by the time of a step."""
    (row,) = result["rows"]
    header = ["adapter", "attach, ms", "step, ms", "times linear probe", "memory, MiB", "added", "lines"]
    methods = sorted(row["methods"].items(), key=lambda item: item[1]["ratio"])
    body = [
        [
            name,
            f"{found['attach_ms']:.1f}",
            f"{found['step_ms']:.0f}",
            f"{found['ratio']:.2f}",
            f"{found['memory_mib']:.0f}",
            f"{found['added_mib']:+.0f}",
            str(found["lines"]),
        ]
        for name, found in methods
    ]
    return header, body


def cost_markdown(result: Mapping[str, Any]) -> str:
    """Write the record as markdown: machine, table, and what the figures come to."""
    (row,) = result["rows"]
    versions, machine = result["environment"]["versions"], result["machine"]
    median = statistics.median(found["lines"] for found in row["methods"].values())
    slowest = sorted((found["attach_ms"], name) for name, found in row["methods"].items())[-2:]
    return (
        f"{machine['cpu']}, one thread, processor time, torch {versions['torch']}; "
        f"{result['batch_size']} clouds of {result['num_points']:,} points a step, median of at most "
        f"{result['repeats']} rounds, turn by turn;\nload {row['load'] or 0:.1f}. Attaching takes at most "
        f"{slowest[0][0]:.0f} ms, but for `{slowest[1][1]}` ({slowest[1][0]:.0f} ms); a method's file has "
        f"{median:.0f} lines of code (median).\n\n"
        f"{markdown_table(*cost_table(result))}\n"
    )


def renewed_page(page: str, result: Mapping[str, Any]) -> str:
    """Put the table between the marks of a page."""
    before, _, rest = page.partition(START)
    _, _, after = rest.partition(END)
    return f"{before}{START}{cost_markdown(result)}{END}{after}"
