"""Benchmark of the server: many clients at once, each in turn with its next cloud, over real sockets."""

from __future__ import annotations

import http.client
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from pcl_clora.bench.harness import load, record
from pcl_clora.config import build
from pcl_clora.data.generated.procedural import PROCEDURAL_CLASSES
from pcl_clora.engine import RunConfig, Trainer
from pcl_clora.io import write_points

CLIENTS = (1, 10, 100)
REQUESTS = 1000  # of all clients together
POINTS = 2048
START_S = 120.0  # in which a server has to answer
SERVER = (sys.executable, "-c", "from pcl_clora.cli import main; main()", "serve", "--port", "0")
RUN = {
    "name": "served",
    "model": {"name": "point_mae_tiny", "num_classes": len(PROCEDURAL_CLASSES)},
    "weights": {"path": "builtin"},
    "adapter": {"method": "clora"},
    "data": {"name": "procedural", "train_size": 80, "test_size": 40, "num_points": 1024},
    "optim": {"epochs": 1, "batch_size": 8, "warmup_epochs": 0},
    "train": {"progress": "off"},
}


@dataclass
class Told:
    """What clients were answered.

    Attributes:
        seconds: of requests, by status; 0 for those that got no answer.
        wall_s: from the first request to the last answer.
    """

    seconds: dict[int, list[float]] = field(default_factory=dict)
    wall_s: float = 0.0

    @property
    def counts(self) -> Counter[int]:
        """Requests by status."""
        return Counter({status: len(times) for status, times in self.seconds.items()})

    def quantile_ms(self, share: float, status: int = 200) -> float | None:
        """Give the time that a share of the requests of a status stayed within; None where there are none."""
        times = sorted(self.seconds.get(status, ()))
        return 1000 * times[min(int(share * len(times)), len(times) - 1)] if times else None


def ask_all(port: int, bodies: Sequence[bytes], *, clients: int, requests: int, path: str) -> Told:
    """Let many clients ask, each with a connection of its own, until all requests are made.

    A client that is turned down comes back when it is told to, with a new request.

    Args:
        port: of the server on this machine.
        bodies: clouds, each a bare file; taken in turn.
        clients: threads.
        requests: of all of them.
        path: with the name of the files.
    """
    told, lock, numbers = Told(), threading.Lock(), iter(range(requests))
    barrier = threading.Barrier(clients + 1)

    def work() -> None:
        line = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        barrier.wait()
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                line.close()
                return
            began, again = time.perf_counter(), 0.0
            try:
                headers = {"Content-Type": "application/octet-stream"}
                line.request("POST", path, bodies[number % len(bodies)], headers)
                reply = line.getresponse()
                reply.read()
                status, again = reply.status, float(reply.getheader("Retry-After") or 0)
            except (OSError, http.client.HTTPException):
                status = 0
                line.close()
            took = time.perf_counter() - began
            with lock:
                told.seconds.setdefault(status, []).append(took)
            time.sleep(again)

    threads = [threading.Thread(target=work, daemon=True) for _ in range(clients)]
    for thread in threads:
        thread.start()
    barrier.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    told.wall_s = time.perf_counter() - began
    return told


@contextmanager
def server(
    *arguments: str, program: Sequence[str] = SERVER, **variables: str
) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """Run `pcl-clora serve` in another process, on any port.

    Args:
        arguments: of the command.
        program: that starts a server; it prints the address first.
        variables: of its environment.

    Yields:
        Its port and the process.

    Raises:
        RuntimeError: if it does not come up.
    """
    process = subprocess.Popen(
        [*program, *arguments],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONUNBUFFERED": "1", **variables},
    )
    try:
        assert process.stdout is not None
        late = threading.Timer(START_S, process.kill)
        late.start()
        line = process.stdout.readline()
        late.cancel()
        found = re.match(r"https?://\S+?:(\d+) ", line)
        if found is None:
            raise RuntimeError(f"The server did not start; its error is above ({line!r}).")
        port = int(found[1])
        _wait_for(port)
        yield port, process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_for(port: int) -> None:
    """Wait until a server answers; its socket is open before it does."""
    line = http.client.HTTPConnection("127.0.0.1", port, timeout=START_S)
    line.request("GET", "/health")
    if line.getresponse().status != 200:
        raise RuntimeError("The server does not answer.")
    line.close()


def memory_mib(pid: int) -> dict[str, float]:
    """Read the memory that a process has, and had at most, in MiB; nothing where the system does not say."""
    try:
        text = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return {}
    found = {
        name: re.search(rf"{key}:\s+(\d+) kB", text) for name, key in (("now", "VmRSS"), ("peak", "VmHWM"))
    }
    return {name: int(match[1]) / 1024 for name, match in found.items() if match}


def bench_serve(
    *, clients: Sequence[int] = CLIENTS, requests: int = REQUESTS, points: int = POINTS, queue: int = 64
) -> dict[str, Any]:
    """Measure a server of the weights in the package with an adapter, asked by clients on the same machine.

    Args:
        clients: at once; a row each.
        requests: of a row.
        points: of a cloud, sent as a binary ply.
        queue: requests that the server takes at once.

    Returns:
        The record; a row has "clients", "requests", "answered" (200), "turned_down" (429), "others",
        "p50_ms", "p99_ms", "p99_turned_down_ms", "clouds_per_s", "memory_mib" and "peak_mib" of the process.
    """
    rows = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        Trainer(
            build(RunConfig, {**RUN, "output": place}, source="the benchmark"), run_dir=folder / "served"
        ).fit()
        bodies = _clouds(folder, points)
        with server("--run", str(folder / "served"), "--no-app", "--queue", str(queue)) as (port, process):
            ask_all(port, bodies, clients=4, requests=40, path="/predict?name=a.ply")
            for count in clients:
                told = ask_all(port, bodies, clients=count, requests=requests, path="/predict?name=a.ply")
                rows.append(_row(count, told, memory_mib(process.pid)))
    return record("serve", (), rows) | {"points": points, "queue": queue, "load": load()}


def _clouds(folder: Path, points: int) -> list[bytes]:
    draw = np.random.default_rng(0)
    found = []
    for number in range(16):
        write_points(folder / f"{number}.ply", draw.normal(size=(points, 3)).astype(np.float32))
        found.append((folder / f"{number}.ply").read_bytes())
    return found


def _row(clients: int, told: Told, memory: Mapping[str, float]) -> dict[str, Any]:
    counts = told.counts
    answered, turned_down = counts[200], counts[429]
    return {
        "clients": clients,
        "requests": sum(counts.values()),
        "answered": answered,
        "turned_down": turned_down,
        "others": sum(counts.values()) - answered - turned_down,
        "p50_ms": told.quantile_ms(0.5),
        "p99_ms": told.quantile_ms(0.99),
        "mean_ms": 1000 * statistics.fmean(told.seconds[200]) if answered else None,
        "p99_turned_down_ms": told.quantile_ms(0.99, 429),
        "clouds_per_s": answered / told.wall_s,
        "memory_mib": memory.get("now"),
        "peak_mib": memory.get("peak"),
    }


def serve_table(result: Mapping[str, Any]) -> tuple[tuple[str, ...], list[list[str]]]:
    """Return header and cells of a record."""

    def number(value: float | None, unit: str) -> str:
        return "none" if value is None else f"{value:,.0f}{unit}"

    cells = [
        [
            str(row["clients"]),
            f"{row['answered']:,}",
            f"{row['turned_down']:,}",
            str(row["others"]),
            number(row["p50_ms"], " ms"),
            number(row["p99_ms"], " ms"),
            number(row["clouds_per_s"], ""),
            number(row["peak_mib"], " MiB"),
        ]
        for row in result["rows"]
    ]
    header = ("clients", "200", "429", "others", "p50", "p99", "clouds a second", "most memory")
    return header, cells


def serve_remarks(result: Mapping[str, Any]) -> list[str]:
    """Say what the figures mean, and whether the machine was busy with more."""
    lines = [
        f"The server takes {result['queue']} requests at once; a client that is turned down (429) comes back "
        "when it is told to. The clients are on the same machine and take their share of its processor."
    ]
    cores = result["machine"]["cores"] or 1
    if (result["load"] or 0) > cores + 1:
        lines.append(
            f"The machine was busy with other work (load {result['load']:.1f}); measure again before quoting."
        )
    return lines
