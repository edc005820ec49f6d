"""What is counted of a server, as Prometheus reads it."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from pcl_clora import __version__

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
POINTS = (128, 1024, 8192, 65_536, 524_288, 4_194_304)
BATCHES = (1, 2, 4, 8, 16, 32, 64)
TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """Counters of one server; several in a process do not meet.

    Args:
        waiting: gives the number of requests that are worked on or wait.
        points: gives the points in memory.
    """

    def __init__(self, waiting: Callable[[], float], points: Callable[[], float]) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        Info("pcl_clora", "What answers", registry=registry).info({"version": __version__})
        self.requests = Counter(
            "pcl_clora_requests", "Requests by address and status", ["path", "status"], registry=registry
        )
        self.seconds = Histogram(
            "pcl_clora_request_seconds", "Time of a request", ["path"], buckets=SECONDS, registry=registry
        )
        self.points = Histogram(
            "pcl_clora_cloud_points", "Points of clouds that were read", buckets=POINTS, registry=registry
        )
        self.batches = Histogram(
            "pcl_clora_batch_clouds", "Clouds of a batch", buckets=BATCHES, registry=registry
        )
        self.model_seconds = Histogram(
            "pcl_clora_batch_seconds", "Time of a batch in the models", buckets=SECONDS, registry=registry
        )
        held = Gauge("pcl_clora_requests_held", "Requests that are worked on or wait", registry=registry)
        held.set_function(waiting)
        memory = Gauge("pcl_clora_points_held", "Points of all clouds in memory", registry=registry)
        memory.set_function(points)

    def batch(self, count: int, seconds: float) -> None:
        """Note a batch of the models."""
        self.batches.observe(count)
        self.model_seconds.observe(seconds)

    def request(self, path: str, status: int, seconds: float) -> None:
        """Note a request."""
        self.requests.labels(path, str(status)).inc()
        self.seconds.labels(path).observe(seconds)

    def text(self) -> bytes:
        """Write all of it."""
        return bytes(generate_latest(self.registry))
