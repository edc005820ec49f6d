"""Benchmark of the point operators on the CPU: sizes, targets, and who computes the right thing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from pcl_clora import ops
from pcl_clora.bench.harness import Contender, Verdict, best_peer, check_isa, in_child, race, record
from pcl_clora.errors import MissingPackageError

NATIVE, REFERENCE = "pcl-clora, native", "pcl-clora, reference (plain torch)"
NO_PEERS = (
    "Only our own backends are measured: the comparison with other libraries is no part of an installed "
    "package; install a checkout of the repository with `pip install -e .` to measure them too."
)
STEPS = 256  # of a sampling order that is not ours, checked one by one
CLOSE = 1e-5  # relative: float32 distances in another order of operations, or from another formula


@dataclass(frozen=True)
class Size:
    """One row: an operator and how much it has to do.

    Attributes:
        op: "fps", "knn" or "group".
        clouds: B.
        num_points: N of every cloud.
        samples: points to choose; for "knn" the number of queries, which are chosen points.
        target: ratio to the best exact peer that we aim at; 0 for none.
        target_avx2: the same of kernels without AVX-512.
    """

    op: str
    clouds: int
    num_points: int
    samples: int
    target: float = 0.0
    target_avx2: float = 0.0

    @property
    def label(self) -> str:
        """The size as people write it."""
        unit = {"fps": "", "knn": " queries", "group": " groups"}[self.op]
        return f"{self.clouds} x {self.num_points:,} -> {self.samples:,}{unit}"


SIZES = (
    Size("fps", 32, 1024, 64, 6.0, 5.0),
    Size("fps", 32, 2048, 128, 6.0, 5.0),
    Size("fps", 32, 8192, 512, 5.0, 5.0),
    Size("fps", 1, 100_000, 2048, 4.0, 5.0),
    Size("fps", 1, 1_000_000, 2048, 2.8),
    Size("knn", 32, 1024, 64, 6.0, 5.0),
    Size("knn", 32, 2048, 128, 4.0, 4.0),
    Size("knn", 32, 8192, 512, 1.5),
    Size("knn", 1, 100_000, 2048, 1.0),
    Size("group", 32, 1024, 64, 15.0, 12.0),
    Size("group", 32, 2048, 128, 15.0, 12.0),
    Size("group", 32, 8192, 512, 15.0, 12.0),
    Size("group", 1, 100_000, 2048),
)
QUICK = (Size("fps", 2, 256, 16), Size("knn", 2, 256, 16), Size("group", 2, 256, 16))
NEIGHBORS = 32


class Task:
    """The input of a row: random points in a cube, the same for everyone."""

    def __init__(self, size: Size) -> None:
        self.samples, self.neighbors = size.samples, NEIGHBORS
        generator = torch.Generator().manual_seed(0)
        self.points = torch.rand(size.clouds, size.num_points, 3, generator=generator)

    @cached_property
    def chosen(self) -> Tensor:
        """Farthest points by our operator, (B, S)."""
        return ops.farthest_point_sample(self.points, self.samples)

    @cached_property
    def queries(self) -> Tensor:
        """The chosen points themselves, (B, S, 3)."""
        return ops.gather_points(self.points, self.chosen)

    @cached_property
    def nearest(self) -> ops.KNN:
        """Their neighbours by our operator."""
        return ops.knn(self.points, self.queries, self.neighbors)


def has_peers() -> bool:
    """Say whether other libraries can be measured: in a checkout, not from the wheel."""
    return find_spec("pcl_clora.bench.peers") is not None


def contenders(op: str) -> list[Contender]:
    """Name who takes part in an operator: our backends, and other libraries where `has_peers`."""

    def native(task: Task) -> Callable[[], Any]:
        if "native" not in ops.report().values():
            raise MissingPackageError("not installed: pip install ./extensions")
        return lambda: _run_ours(op, task)

    def reference(task: Task) -> Callable[[], Any]:
        def run() -> Any:
            with ops.use_backend("reference"):  # costs less than 1 ms
                return _run_ours(op, task)

        return run

    ours = [
        Contender(NATIVE, native, "pcl-clora-ops", is_peer=False),
        Contender(REFERENCE, reference, is_peer=False),
    ]
    if not has_peers():
        return ours
    from pcl_clora.bench.peers import PEERS

    return [*ours, *PEERS[op]]


def _run_ours(op: str, task: Task) -> Any:
    if op == "fps":
        return ops.farthest_point_sample(task.points, task.samples)
    if op == "knn":
        return ops.knn(task.points, task.queries, task.neighbors)
    groups = ops.group_points(task.points, task.samples, task.neighbors)
    return groups.center, groups.neighborhood


def bench_ops(
    threads: Sequence[int] = (1, 2),
    *,
    quick: bool = False,
    repeats: int = 30,
    budget_s: float = 4.0,
    isa: str = "",
    on_row: Callable[[dict[str, Any]], None] = lambda row: None,
) -> dict[str, Any]:
    """Measure all sizes with every number of threads, each in a process of its own.

    Args:
        threads: numbers of threads.
        quick: one small size per operator, to see that everything works; its times mean little.
        repeats: rounds, at most.
        budget_s: time for one contender and size; a slow one has fewer rounds.
        isa: instruction set that ours is held to, see `harness.ISAS`; "" for the processor's own.
        on_row: called with every row as soon as it is there.

    Returns:
        The record: machine, environment, versions of the peers, and rows. A row holds op, size, threads,
        target, the contenders' times and verdicts, who is absent and why, the best exact peer, and the ratio
        of its time to ours, both minima.

    Raises:
        UserValueError: if `isa` is none that this processor can be held to.
    """
    check_isa(isa)
    sizes = [asdict(size) for size in (QUICK if quick else SIZES)]
    rows = []
    for number in threads:
        job = {"sizes": sizes, "repeats": repeats, "budget_s": budget_s, "threads": number}
        for row in in_child("pcl_clora.bench.ops:measure", job, number, isa):
            rows.append(row)
            on_row(row)
    everyone = [contender for op in JUDGES for contender in contenders(op)]
    return record("ops", everyone, rows, isa) | {"quick": quick, "repeats": repeats, "budget_s": budget_s}


def measure(job: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Measure the sizes of a job in this process and yield their rows."""
    for fields in job["sizes"]:
        size, kernels = Size(**fields), ops.describe_native()
        task = Task(size)
        judge = JUDGES[size.op]
        row = race(
            contenders(size.op),
            task,
            partial(judge, task),
            repeats=job["repeats"],
            budget_s=job["budget_s"],
            threads=job["threads"],
        )
        best = best_peer(row)
        ours = row["contenders"].get(NATIVE)
        ratio = row["contenders"][best]["min_ms"] / ours["min_ms"] if best and ours else None
        yield {
            "op": size.op,
            "size": size.label,
            **fields,
            "isa": kernels and kernels["isa"],
            "target": size.target_avx2 if kernels and kernels["isa"] == "avx2" else size.target,
            "neighbors": None if size.op == "fps" else NEIGHBORS,
            "threads": job["threads"],
            "best_exact_peer": best,
            "ratio": ratio,
            **row,
        }


def judge_sampling(task: Task, result: Tensor) -> Verdict:
    """Compare a sampling order with ours; a library that starts elsewhere is followed from its start."""
    if result.dim() == 3:
        pairs = zip(result.float().tolist(), task.queries.tolist(), strict=True)
        alike = [sorted(found) == sorted(expected) for found, expected in pairs]
        return Verdict(all(alike), f"same points in {sum(alike)} of {len(alike)} clouds, their order is lost")
    starts = result[:, 0].tolist()
    if not any(starts):
        expected, where = task.chosen, ""
    else:
        parts = zip(task.points, starts, strict=True)
        one_by_one = [ops.farthest_point_sample(c[None], task.samples, start_index=s) for c, s in parts]
        expected, where = torch.cat(one_by_one), ", start index ignored"
    same = result == expected
    if same.all():
        return Verdict(True, f"same indices{where}")
    shortfall = _shortfall(task.points[0], result[0, :STEPS])
    share = f"{same.float().mean():.2%} same indices{where}"
    if shortfall < CLOSE:
        return Verdict(True, f"{share}; farthest at every step up to rounding")
    return Verdict(False, f"{share}; a point {shortfall:.1%} nearer than the farthest was chosen")


def _shortfall(points: Tensor, order: Tensor) -> float:
    """Return by how much, at most, a chosen point was nearer than the farthest there was; relative."""
    points = points.double()
    nearest = (points - points[order[0]]).square().sum(1)
    worst = 0.0
    for index in order[1:]:
        farthest = nearest.max()
        worst = max(worst, float((farthest - nearest[index]) / farthest))
        nearest = torch.minimum(nearest, (points - points[index]).square().sum(1))
    return worst


def judge_neighbors(task: Task, result: Sequence[Any]) -> Verdict:
    """Compare neighbours with ours; distances may be squared (ours) or not."""
    distances, idx = (torch.as_tensor(part) for part in result)
    dist2, expected = task.nearest
    if not isinstance(result, ops.KNN):
        distances = distances.double().square()
    same = (idx.long() == expected).double().mean()
    wrong = ((distances.double() - dist2).abs() / dist2.clamp_min(1e-12))[..., 1:].max()
    # the first neighbour is the query itself: what a formula makes of its distance 0 is a question of its own
    return Verdict(bool(wrong < CLOSE), f"{same:.2%} same indices, squared distances within {wrong:.1e}")


def judge_groups(task: Task, result: Sequence[Tensor]) -> Verdict:
    """Compare patches with ours: centres exactly, neighbourhoods as sets of distances."""
    center, neighborhood = result
    same = bool((center == task.queries).all())
    dist2 = neighborhood.square().sum(3).sort(2).values
    wrong = ((dist2 - task.nearest.dist2).abs() / task.nearest.dist2.clamp_min(1e-12))[..., 1:].max()
    centres = "same centres" if same else "other centres"
    return Verdict(same and bool(wrong < CLOSE), f"{centres}, squared distances within {wrong:.1e}")


# op -> who says whether a result is right
JUDGES: dict[str, Callable[[Task, Any], Verdict]] = {
    "fps": judge_sampling,
    "knn": judge_neighbors,
    "group": judge_groups,
}
