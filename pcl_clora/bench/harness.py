"""What every benchmark shares: contenders timed turn by turn in a process of their own, and the record.

A ratio of two times is only worth something if both were measured in one process, turn by turn, on the same
input, and if both computed the same thing. So every contender is judged before it is timed.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pcl_clora.engine import choose_device, environment
from pcl_clora.engine.run.processor import processor_name, vector_flags
from pcl_clora.errors import UserValueError
from pcl_clora.io.safe import write_json
from pcl_clora.report.latency import interleaved_times

ISAS: dict[str, dict[str, str]] = {
    "avx2": {
        "PCL_CLORA_ISA": "avx2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "FBGEMM_ENABLE_INSTRUCTIONS": "AVX2",
    }
}
"""What a benchmark can be held to: the environment that holds our kernels, torch, oneDNN, MKL and FBGEMM.
Libraries that are compared with ours go on choosing for themselves."""

_LIMITS = (*ISAS["avx2"], "DNNL_MAX_CPU_ISA")
_ROW = "row "  # what a line of the child process begins with when it holds a result


@dataclass(frozen=True)
class Contender:
    """Somebody's implementation of a task.

    Attributes:
        name: as printed.
        prepare: called with the input; returns what is timed. Raises ImportError where its package is
            missing. Converting the input is its business and is not timed; building a search tree is.
        package: distribution whose version is recorded; "" for what belongs to torch or to this project.
        is_peer: whether a ratio is taken to it.
    """

    name: str
    prepare: Callable[..., Callable[[], Any]]
    package: str = ""
    is_peer: bool = True


@dataclass(frozen=True)
class Verdict:
    """Whether a contender computed what was asked, and how that was seen."""

    exact: bool
    note: str


def race(
    contenders: Sequence[Contender],
    task: Any,
    judge: Callable[[Any], Verdict],
    *,
    repeats: int,
    budget_s: float,
    threads: int = 1,
) -> dict[str, Any]:
    """Judge every contender on a task, then time all of them turn by turn.

    With one thread the processor time of the process counts. On a quiet machine it is the time on the wall;
    on a shared one it leaves out what others ran in between. With several threads only the wall can count.

    Args:
        contenders: who takes part; one whose package is missing, and a peer that fails, is named among the
            absent.
        task: handed to `prepare`.
        judge: looks at a result.
        repeats: rounds, at most.
        budget_s: time for one contender, after which it sits out; it has at least one round.
        threads: how many the contenders use.

    Returns:
        "contenders": name -> min_ms, median_ms, runs, exact, note, is_peer; "absent": name -> why; "clock":
        "processor" or "wall"; "load".
    """
    runs: dict[str, Callable[[], Any]] = {}
    found: dict[str, dict[str, Any]] = {}
    absent: dict[str, str] = {}
    for contender in contenders:
        try:
            run = contender.prepare(task)
            verdict = judge(run())  # the first call also warms up
        except ImportError as error:
            absent[contender.name] = str(error).splitlines()[0]
            continue
        except Exception as error:
            if not contender.is_peer:
                raise
            absent[contender.name] = f"fails: {type(error).__name__}: {error}".splitlines()[0]
            continue
        runs[contender.name] = run
        found[contender.name] = {
            "exact": verdict.exact,
            "note": verdict.note,
            "is_peer": contender.is_peer,
        }
    clock = time.process_time if threads == 1 else time.perf_counter
    times = interleaved_times(runs, repeats, warmup=0, budget_s=budget_s, clock=clock)
    for name, seconds in times.items():
        found[name] |= {
            "min_ms": 1000 * min(seconds),
            "median_ms": 1000 * statistics.median(seconds),
            "runs": len(seconds),
        }
    clock_name = "processor" if threads == 1 else "wall"
    return {"contenders": found, "absent": absent, "clock": clock_name, "load": load()}


def load() -> float | None:
    """Return how many processes wanted a core in the last minute, ours among them, where the system says."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None


def thread_remarks(times: Mapping[tuple[str, int], float]) -> list[str]:
    """Say, for every number of threads above one, whether anything took longer than with one.

    Args:
        times: (what, threads) -> ms.
    """
    lines = []
    for threads in sorted({threads for _, threads in times if threads > 1}):
        ratios = {
            what: times[what, threads] / times[what, 1]
            for what, number in times
            if number == threads and (what, 1) in times
        }
        slower = {what: ratio for what, ratio in ratios.items() if ratio > 1}
        if not ratios:
            continue
        line = f"With {threads} threads {len(slower) or 'nothing'} of {len(ratios)} took longer than with one"
        if slower:
            worst = max(slower, key=lambda what: slower[what])
            line += f", at most {slower[worst]:.2f} times ({worst})"
        lines.append(line + ": time on the wall against time of the processor.")
    return lines


def best_peer(row: Mapping[str, Any]) -> str | None:
    """Name the fastest peer of a row that computed the right thing; None if there is none."""
    exact = {
        name: entry["min_ms"]
        for name, entry in row["contenders"].items()
        if entry["is_peer"] and entry["exact"]
    }
    return min(exact, key=lambda name: exact[name]) if exact else None


def check_isa(isa: str) -> None:
    """Refuse an instruction set that a benchmark cannot be held to; "" is none.

    Raises:
        UserValueError: naming those that are known, or the one that this processor does not have.
    """
    if isa and isa not in ISAS:
        raise UserValueError(f"--isa {isa!r} is not known; use {', '.join(ISAS)}, or leave it out.")
    flags = vector_flags()
    if isa and flags and isa not in flags:
        raise UserValueError(f"--isa {isa}: this processor does not have it; leave it out.")


def in_child(
    function: str, argument: Mapping[str, Any], threads: int, isa: str = ""
) -> Iterator[dict[str, Any]]:
    """Run a generator of rows in a fresh process with a number of threads, which libraries read at start.

    Args:
        function: "module:name" of a function that takes `argument` and yields rows.
        argument: anything json can hold.
        threads: for OpenMP and torch; the process is also bound to so many cores, where the system can.
        isa: name in `ISAS` of what the process is held to; "" for nothing but what the environment says.

    Yields:
        Rows, as soon as each is there.

    Raises:
        RuntimeError: if the process fails.
    """
    module, name = function.split(":")
    code = f"from pcl_clora.bench.harness import work; from {module} import {name}; work({name}, {threads})"
    limits = {key: str(threads) for key in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")}
    process = subprocess.Popen(
        [sys.executable, "-c", code, json.dumps(argument)],
        env={**os.environ, **limits, **ISAS.get(isa, {})},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if line.startswith(_ROW):
                yield json.loads(line.removeprefix(_ROW))
    finally:
        if process.poll() is None and sys.exc_info()[0] is not None:
            process.kill()
        process.wait()
    if process.returncode:
        raise RuntimeError(_told(process.returncode, threads))


def _told(code: int, threads: int) -> str:
    """Say how a child ended: with an error, which it printed, or by a signal, in silence."""
    if code >= 0:
        return f"The process that measures with {threads} threads failed; its error is above."
    name = signal.Signals(-code).name
    cause = "; most often memory was short: free some, or measure less at once" if name == "SIGKILL" else ""
    return f"The process that measures with {threads} threads was ended by {name}{cause}."


def work(function: Callable[[Mapping[str, Any]], Iterator[dict[str, Any]]], threads: int) -> None:
    """Be the child of `in_child`: bind to cores, then write every row on a line."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    torch.set_num_threads(threads)
    for row in function(json.loads(sys.argv[1])):
        sys.stdout.write(_ROW + json.dumps(row) + "\n")
        sys.stdout.flush()


def record(
    name: str, contenders: Sequence[Contender], rows: Sequence[Mapping[str, Any]], isa: str = ""
) -> dict[str, Any]:
    """Put rows together with what they were measured on: machine, versions, git commit.

    "held_to" names the instruction set that the processes were held to, "limits" the variables that did it,
    those of the caller's environment included.
    """
    limits = {name: os.environ[name] for name in _LIMITS if os.environ.get(name)} | ISAS.get(isa, {})
    packages = sorted({contender.package for contender in contenders if contender.package})
    return {
        "benchmark": name,
        "machine": {"cpu": processor_name(), "cores": os.cpu_count(), "flags": vector_flags()},
        "environment": environment(choose_device("cpu")),
        "peers": {package: _version(package) for package in packages},
        "held_to": isa,
        "limits": limits,
        "rows": list(rows),
    }


def write_record(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write a record, whole or not at all."""
    write_json(path, content)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
