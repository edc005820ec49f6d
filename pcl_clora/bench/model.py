"""Benchmark of whole networks on the CPU: the published computation in plain modules against ours.

Both sides have the same weights and are handed the same patches, made by our kernels. They run turn by turn
in one process, and what they compute is compared before it is timed.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from pcl_clora.bench.harness import check_isa, in_child, load, record
from pcl_clora.bench.parts import count_flops, matmul_peak, saved_bytes
from pcl_clora.bench.sides import PLAIN, PLAIN_FULL, PLAIN_LORA, Bench, Network, Side
from pcl_clora.errors import PclCloraError, UserValueError
from pcl_clora.models.layers import product
from pcl_clora.report.latency import interleaved_times
from pcl_clora.report.memory import mib, peak_bytes

TOLERANCE = 1e-5  # largest difference / largest output of float32 on both sides
KINDS = ("forward", "step", "profile")
WIDE = 1.6  # times as fast as torch's own that oneDNN must be for the first column of targets
_SEGMENTATION = {"task": "part_segmentation", "num_parts": 50, "num_categories": 16}
_SMALL: dict[str, Any] = {"embed_dim": 24, "depth": 2, "num_heads": 2, "num_groups": 8, "group_size": 8}
_SMALL |= {"encoder_widths": (8, 16, 32)}
_SMALL_HEAD = {"propagation_widths": (20, 24), "segmentation_widths": (16, 12), "label_width": 6}
NETWORKS = {
    "point_mae": Network("point_mae", 2048),
    "point_mae_tiny": Network("point_mae_tiny", 1024),
    "pointgpt_s": Network("pointgpt_s", 2048),
    "point_mae, parts": Network("point_mae", 2048, _SEGMENTATION),
}
QUICK = {
    "point_mae": Network("point_mae", 64, _SMALL),
    "pointgpt_s": Network("pointgpt_s", 64, {**_SMALL, "generator_depth": 1}),
    "point_mae, parts": Network("point_mae", 64, {**_SMALL, **_SEGMENTATION, **_SMALL_HEAD}),
}
# (network, what of ours) -> (against, target where oneDNN is twice torch's own, target elsewhere)
TARGETS: dict[tuple[str, str], tuple[str, float, float]] = {
    ("point_mae", "merged"): (PLAIN, 2.4, 1.4),
    ("point_mae", "merged, bfloat16"): (PLAIN, 4.0, 0.0),
    ("point_mae", "merged, int8"): (PLAIN, 4.0, 0.0),
    ("point_mae", "clora"): (PLAIN_LORA, 2.5, 1.6),
    ("point_mae", "clora, bfloat16"): (PLAIN_LORA, 3.3, 0.0),
    ("point_mae", "full"): (PLAIN_FULL, 2.0, 1.5),
    ("point_mae", "full, bfloat16"): (PLAIN_FULL, 3.0, 0.0),
    ("point_mae, parts", "merged"): (PLAIN, 3.0, 2.0),
    ("point_mae, parts", "clora"): (PLAIN_LORA, 3.0, 2.0),
}
FULL_AGAINST_CLORA = (4.0, 2.6)  # published full fine-tuning against our CLoRA step
SHARES = {"merged": 0.75, "clora": 0.65}  # of the better matmul peak
SAVED = {"clora": 30.0, "lora": 30.0, "clora, checkpointed": 3.0}  # MiB a cloud


class BenchMismatchError(PclCloraError):
    """Both sides of a benchmark did not compute the same."""


def bench_model(
    threads: Sequence[int] = (1, 2),
    *,
    only: Sequence[str] = (),
    quick: bool = False,
    repeats: int = 5,
    budget_s: float = 8.0,
    isa: str = "",
    on_row: Callable[[dict[str, Any]], None] = lambda row: None,
) -> dict[str, Any]:
    """Measure all networks with every number of threads, each in a process of its own.

    Args:
        threads: numbers of threads; with more than one, forward passes and steps of one batch size.
        only: networks and kinds ("forward", "step", "profile") to measure; all if none is named.
        quick: networks of a few layers, to see that everything works; the times mean nothing.
        repeats: rounds, at most.
        budget_s: time for one form and row; a slow one has fewer rounds.
        isa: instruction set that everything is held to, see `harness.ISAS`; "" for the processor's own.
        on_row: called with every row as soon as it is there.

    Returns:
        The record: machine, environment, product route, matmul peak and rows.

    Raises:
        UserValueError: if `only` or `isa` names something else.
        RuntimeError: if two forms do not compute the same; the child process says which.
    """
    networks, kinds = choose(only, quick=quick)
    check_isa(isa)
    product.route()  # an unknown route in the environment is refused here and not in every child
    rows: list[dict[str, Any]] = []
    for number, network in itertools.product(threads, networks):
        job = {
            "network": network,
            "kinds": kinds,
            "quick": quick,
            "repeats": repeats,
            "budget_s": budget_s,
            "threads": number,
            "route": rows[0]["route"] if rows else "",  # chosen once: a trial of alike libraries is a draw
        }
        # A process a network: libraries do not give back all the memory that the one before needed.
        for row in in_child("pcl_clora.bench.model:measure", job, number, isa):
            rows.append(row)
            on_row(row)
    return record("model", (), rows, isa) | {"quick": quick, "repeats": repeats, "budget_s": budget_s}


def choose(only: Sequence[str], *, quick: bool) -> tuple[list[str], list[str]]:
    """Split words into networks and kinds.

    Raises:
        UserValueError: if a word is neither.
    """
    known = QUICK if quick else NETWORKS
    unknown = [word for word in only if word not in known and word not in KINDS]
    if unknown:
        raise UserValueError(
            f"--only {unknown[0]!r} is neither a network ({'; '.join(known)}) nor a kind "
            f"({', '.join(KINDS)})."
        )
    networks = [name for name in known if name in only] or list(known)
    return networks, [kind for kind in KINDS if kind in only] or list(KINDS)


def measure(job: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Measure the network of a job in this process and yield its rows."""
    name = job["network"]
    network = (QUICK if job["quick"] else NETWORKS)[name]
    threads, quick = job["threads"], job["quick"]
    forward_sizes = (2,) if quick else (1, 8, 32) if threads == 1 else (8,)
    step_size = 2 if quick else 8
    bench = Bench(network)
    peak = matmul_peak(bench.rows(step_size), bench.config.embed_dim, repeats=2 if quick else 12)
    route = job["route"] or product.route(bench.config.embed_dim)
    shared = {"network": name, "threads": threads, "route": route, "peak_gflops": peak}
    shared["vectors"] = torch.backends.cpu.get_cpu_capability()
    with product.use_route(route):
        if "forward" in job["kinds"]:
            flops: dict[str, float] = {}
            for size in forward_sizes:
                yield {**shared, "kind": "forward", "batch": size, **_forward_row(bench, size, job, flops)}
        if "step" in job["kinds"]:
            yield {**shared, "kind": "step", "batch": step_size, **_step_row(bench, step_size, job)}
        if "profile" in job["kinds"] and threads == 1:
            yield {**shared, "kind": "profile", "batch": step_size, **bench.profile(step_size)}


def _forward_row(bench: Bench, size: int, job: Mapping[str, Any], flops: dict[str, float]) -> dict[str, Any]:
    sides, absent = bench.forward_sides(size)
    return {"absent": absent, **_time(sides, size, job, flops, grad=False)}


def _step_row(bench: Bench, size: int, job: Mapping[str, Any]) -> dict[str, Any]:
    sides = bench.step_sides(size)
    row = {"absent": {}, **_time(sides, size, job, {}, grad=True)}
    if job["threads"] == 1:
        sides["clora, checkpointed"] = bench.checkpointed_side(size)
        row["memory"] = {name: _memory(side, bench.inputs(size), size) for name, side in sides.items()}
    return row


def _time(
    sides: Mapping[str, Side], size: int, job: Mapping[str, Any], flops: dict[str, float], *, grad: bool
) -> dict[str, Any]:
    """Compare all sides, then time them turn by turn; times are a cloud.

    Args:
        sides: name -> what runs.
        size: clouds of a batch.
        job: repeats, budget_s, threads.
        flops: what was counted already, a cloud; filled for the sides that are not in it.
        grad: whether graphs are recorded.
    """
    found: dict[str, dict[str, Any]] = {}
    with torch.set_grad_enabled(grad):
        outputs = {name: side.run().detach().float() for name, side in sides.items()}
        for name, side in sides.items():
            if name not in flops:
                flops[name] = count_flops(side.run) / size
            found[name] = {
                "against": side.against,
                "same_as": side.same_as,
                "difference": _difference(name, side, outputs) if side.same_as else None,
                "flops": flops[name],
            }
        clock = time.process_time if job["threads"] == 1 else time.perf_counter
        runs = {name: side.run for name, side in sides.items()}
        times = interleaved_times(runs, job["repeats"], warmup=0, budget_s=job["budget_s"], clock=clock)
    for name, seconds in times.items():
        found[name] |= {
            "min_ms": 1000 * min(seconds) / size,
            "median_ms": 1000 * statistics.median(seconds) / size,
            "runs": len(seconds),
            "gflops": flops[name] * size / min(seconds) / 1e9,
        }
    for entry in found.values():
        against = found.get(entry["against"])
        entry["ratio"] = against["min_ms"] / entry["min_ms"] if against else None
    return {"sides": found, "clock": "processor" if job["threads"] == 1 else "wall", "load": load()}


def _difference(name: str, side: Side, outputs: Mapping[str, Tensor]) -> float:
    expected = outputs[side.same_as]
    difference = float((outputs[name] - expected).abs().max() / expected.abs().max())
    if side.exact and not difference <= TOLERANCE:
        raise BenchMismatchError(
            f"{name} and {side.same_as} differ by {difference:.2g} of the largest output, more than "
            f"{TOLERANCE:g}: they do not compute the same, so their times cannot be compared."
        )
    return difference


def _memory(side: Side, inputs: Sequence[Tensor], size: int) -> dict[str, float]:
    """Measure what a step keeps for its backward pass, MiB a cloud, and its peak, MiB."""
    known = {**dict(side.model.named_parameters()), **dict(side.model.named_buffers())}
    known |= {f"input {number}": tensor for number, tensor in enumerate(inputs)}
    assert side.forward is not None
    saved = saved_bytes(side.forward, known)
    peak = peak_bytes(side.run, known.values())
    return {"saved_mib": saved / 2**20 / size, "peak_mib": mib(peak)}
