"""Benchmark of a pre-training step on the CPU, and of the generator that feeds it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from pcl_clora import ops
from pcl_clora.bench.harness import in_child, load, record
from pcl_clora.data import build_dataset, parse_data_config
from pcl_clora.engine import build_optimizer
from pcl_clora.engine.config import OptimConfig
from pcl_clora.engine.modes import autocast, evaluation_mode
from pcl_clora.engine.randomness import make_generator
from pcl_clora.models import create_model
from pcl_clora.ops import use_backend
from pcl_clora.report.latency import interleaved_times

BASELINE = "all patches embedded, plain torch"
# name -> (patches that are embedded, backend of the operators, bfloat16)
STEPS: dict[str, tuple[str, str, bool]] = {
    BASELINE: ("all", "reference", False),
    "all patches embedded": ("all", "auto", False),
    "visible patches embedded": ("visible", "auto", False),
    "visible patches embedded, bfloat16": ("visible", "auto", True),
}
TARGET = 2.0  # ratio to the baseline that we aim at


def bench_pretraining(
    *, batch_size: int = 64, num_points: int = 1024, repeats: int = 7, budget_s: float = 60.0
) -> dict[str, Any]:
    """Measure steps of point_mae_tiny, turn by turn in one process with one thread.

    A step is grouping, forward, backward and AdamW. All contenders have the same weights and, in evaluation
    mode with the same masks, the same loss (bfloat16: nearly).

    Args:
        batch_size: clouds a step.
        num_points: points a cloud.
        repeats: rounds, at most.
        budget_s: processor time for one contender, after which it sits out.

    Returns:
        The record; its row holds "steps": name -> min_ms, median_ms, clouds_per_second, ratio to the
        baseline, loss; and "generator": ms a cloud and its share of the fastest step.
    """
    job = {"batch_size": batch_size, "num_points": num_points, "repeats": repeats, "budget_s": budget_s}
    rows = list(in_child("pcl_clora.bench.pretraining:measure", job, 1))
    return record("pretraining", (), rows) | job


def measure(job: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Measure in this process and yield the one row."""
    size = job["batch_size"]
    corpus = build_dataset(
        parse_data_config({"name": "procedural_corpus", "num_points": job["num_points"]}), "train"
    )
    made, points = [], torch.empty(0)
    for first in range(3):
        began = time.process_time()
        points = corpus.read_batch(range(first * size, (first + 1) * size)).points
        made.append((time.process_time() - began) / size)
    runs = {name: _stepper(points, *how) for name, how in STEPS.items()}
    losses = {name: _loss(points, *how) for name, how in STEPS.items()}
    clock = time.process_time
    times = interleaved_times(runs, job["repeats"], warmup=1, budget_s=job["budget_s"], clock=clock)
    base = min(times[BASELINE])
    rows = {
        name: {
            "min_ms": 1000 * min(seconds),
            "median_ms": 1000 * statistics.median(seconds),
            "runs": len(seconds),
            "clouds_per_second": size / min(seconds),
            "ratio": base / min(seconds),
            "loss": losses[name],
        }
        for name, seconds in times.items()
    }
    fastest = max(row["clouds_per_second"] for row in rows.values())
    generator = {"ms_per_cloud": 1000 * min(made), "share_of_fastest_step": min(made) * fastest}
    yield {
        "model": "point_mae_tiny",
        "threads": 1,
        "clock": "processor",
        "load": load(),
        "ops": ops.report(),
        "target": TARGET,
        "steps": rows,
        "generator": generator,
    }


def _make(embed: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pretraining = {"embed": embed}
        return create_model("point_mae_tiny", task="pretraining", drop_path=0.0, pretraining=pretraining)


def _stepper(points: torch.Tensor, embed: str, backend: str, bfloat16: bool) -> Callable[[], None]:
    model = _make(embed)
    optimizer = build_optimizer(model, OptimConfig(weight_decay=0.05))
    generator = make_generator("bench masks")

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with use_backend(backend), autocast(points.device, bfloat16):
            output = model(points, generator)
            output.loss.backward()
        optimizer.step()

    return step


def _loss(points: torch.Tensor, embed: str, backend: str, bfloat16: bool) -> float:
    model = _make(embed)
    with evaluation_mode(model), torch.inference_mode(), use_backend(backend):
        amp = autocast(points.device, bfloat16)
        with amp:
            return float(model(points, make_generator("bench masks")).loss)


def pretraining_lines(result: Mapping[str, Any]) -> Sequence[str]:
    """Say a record in lines."""
    lines = []
    for row in result["rows"]:
        for name, step in row["steps"].items():
            lines.append(
                f"{name}: {step['min_ms']:.0f} ms a step of {result['batch_size']} clouds, "
                f"{step['clouds_per_second']:.0f} clouds/s, {step['ratio']:.2f} times as fast as the first"
            )
        made = row["generator"]
        lines.append(
            f"generator: {made['ms_per_cloud']:.2f} ms a cloud, {made['share_of_fastest_step']:.0%} of what "
            "the fastest step takes for it"
        )
    return lines
