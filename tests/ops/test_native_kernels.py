"""What only compiled kernels can get wrong: instruction sets, threads, memory, raw calls, slow clouds."""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from pcl_clora.ops import _native, use_backend
from tests.support.ops_oracles import make_cloud

pytestmark = pytest.mark.skipif(_native.problem() is not None, reason=str(_native.problem()))

OPS = torch.ops.pcl_clora
ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def native():
    with use_backend("native"):
        yield


@pytest.fixture
def threads():
    """Sets the number of threads; the old one returns at the end."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def run_answers(isa, *arguments):
    paths = os.pathsep.join([str(ROOT), *sys.path])
    environment = {**os.environ, "PCL_CLORA_ISA": isa, "PCL_CLORA_OPS": "native", "PYTHONPATH": paths}
    command = [sys.executable, "-m", "tests.support.native_answers", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.fixture(scope="module")
def baseline_answers():
    return run_answers("baseline").stdout


@pytest.mark.slow
@pytest.mark.parametrize("isa", ["avx2", "avx512"])
def test_every_instruction_set_gives_the_same_bits(baseline_answers, isa):
    answers = run_answers(isa)
    if "is not an instruction set of this processor" in answers.stderr:
        pytest.skip(f"this processor has no {isa}")
    assert len(baseline_answers.splitlines()) > 900
    assert answers.stdout == baseline_answers


@pytest.mark.slow
def test_an_instruction_set_that_is_not_there_is_refused():
    answers = run_answers("mmx")
    assert answers.returncode != 0
    assert "ValueError: PCL_CLORA_ISA=mmx is not an instruction set of this processor" in answers.stderr


@pytest.mark.slow
def test_a_million_points_need_less_than_200_mib_above_the_input():
    assert 0 < float(run_answers("", "memory").stdout) < 200


def many_answers(kind, batch):
    """Clouds so large that threads share out the work within one of them."""
    points = make_cloud(kind, batch, 150_000 // batch)
    queries = points[:, ::50].contiguous()
    dist2, idx = OPS.knn(points, queries, 3)
    picked = OPS.gather_points(points, idx)
    generator = torch.Generator().manual_seed(0)
    features = torch.rand(*idx.shape[:2], 40, generator=generator)
    return [
        OPS.farthest_point_sample(points, 40),
        dist2,
        idx,
        *OPS.group_points(points, 70, 20),
        *OPS.chamfer_distance(points, queries),
        OPS.ball_query(points, queries, 0.05, 8),
        OPS.gather_points_backward(picked, idx % 100, points.shape[1]),
        OPS.three_interpolate(features, idx % 100, dist2),
        OPS.three_interpolate_backward(features, idx % 100, dist2, 100),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("kind", ["random", "lattice"])
def test_the_number_of_threads_changes_no_bit(threads, kind, batch):
    threads(1)
    expected = many_answers(kind, batch)
    for count in (2, 3, 5):
        threads(count)
        found = many_answers(kind, batch)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True)), count


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="the system does not list threads")
def test_small_clouds_wake_no_thread_and_large_ones_do():
    program = (
        "import os, torch; from pcl_clora import ops\n"
        "count = lambda: len(os.listdir('/proc/self/task'))\n"
        "small, large = torch.rand(8, 64, 3), torch.rand(32, 1024, 3)\n"
        "torch.set_num_threads(2); before = count()\n"
        "ops.farthest_point_sample(small, 8); ops.knn(small, small[:, :8].contiguous(), 8)\n"
        "ops.group_points(small, 8, 8); ops.ball_query(small, small[:, :8].contiguous(), 0.1, 8)\n"
        "ops.chamfer_distance(small[:2, :16], small[:2, :16]); between = count()\n"
        "ops.group_points(large, 64, 32); print(between - before, count() - between)\n"
    )
    environment = {
        **os.environ,
        "PCL_CLORA_OPS": "native",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path]),
    }
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.stdout.split() == ["0", "1"], done.stderr


def test_gradients_add_up_in_the_order_of_the_indices(threads):
    threads(3)
    generator = torch.Generator().manual_seed(0)
    grad = torch.rand(1, 5000, 64, generator=generator)
    idx = torch.randint(0, 10, (1, 5000), generator=generator)
    expected = torch.zeros(10, 64)
    for row, target in zip(grad[0], idx[0].tolist(), strict=True):
        expected[target] += row
    assert torch.equal(OPS.gather_points_backward(grad, idx, 10)[0], expected)
    assert all(torch.equal(OPS.gather_points_backward(grad, idx, 10)[0], expected) for _ in range(20))


P = torch.arange(24, dtype=torch.float32).view(2, 4, 3)
I3 = torch.zeros(2, 5, 3, dtype=torch.int64)
W3 = torch.ones(2, 5, 3)
EMPTY = torch.zeros(2, 0, 3)
BAD_POINTS = {
    "no_axes": torch.tensor(1.0),
    "two_axes": P[0],
    "four_channels": torch.zeros(2, 4, 4),
    "half": P.half(),
    "integers": P.long(),
    "complex": P.to(torch.complex64),
    "nan": torch.full_like(P, torch.nan),
    "infinite": torch.full_like(P, torch.inf),
    "no_points": EMPTY,
}


def lengths(*values):
    return torch.tensor(values)


RAW_WITH_POINTS = {
    "farthest_point_sample": lambda p: OPS.farthest_point_sample(p, 1),
    "knn": lambda p: OPS.knn(p, P, 1),
    "group_points": lambda p: OPS.group_points(p, 1, 1),
    "chamfer_distance": lambda p: OPS.chamfer_distance(p, P),
    "ball_query": lambda p: OPS.ball_query(p, P, 1.0, 2),
}
RAW_CALLS = {
    "fps_too_many": lambda: OPS.farthest_point_sample(P, 5),
    "fps_none": lambda: OPS.farthest_point_sample(P, 0),
    "fps_negative": lambda: OPS.farthest_point_sample(P, -(2**62)),
    "fps_huge": lambda: OPS.farthest_point_sample(P, 2**62),
    "fps_start": lambda: OPS.farthest_point_sample(P, 1, 4),
    "fps_start_negative": lambda: OPS.farthest_point_sample(P, 1, -1),
    "knn_k": lambda: OPS.knn(P, P, 5),
    "knn_zero": lambda: OPS.knn(P, P, 0),
    "knn_batch": lambda: OPS.knn(P, P[:1], 1),
    "knn_dtype": lambda: OPS.knn(P, P.double(), 1),
    "knn_query_channels": lambda: OPS.knn(P, torch.zeros(2, 3, 2), 1),
    "knn_query_nan": lambda: OPS.knn(P, P * torch.nan, 1),
    "group_groups": lambda: OPS.group_points(P, 5, 1),
    "group_size": lambda: OPS.group_points(P, 1, 5),
    "chamfer_empty": lambda: OPS.chamfer_distance(P, EMPTY),
    "ball_samples": lambda: OPS.ball_query(P, P, 1.0, 0),
    "lengths_zero": lambda: OPS.knn(P, P, 1, lengths(0, 4)),
    "lengths_above": lambda: OPS.knn(P, P, 1, lengths(5, 4)),
    "lengths_shape": lambda: OPS.knn(P, P, 1, lengths(4)),
    "lengths_dtype": lambda: OPS.knn(P, P, 1, lengths(4, 4).int()),
    "lengths_scalar": lambda: OPS.knn(P, P, 1, torch.tensor(4)),
    "lengths_below_k": lambda: OPS.knn(P, P, 3, lengths(4, 2)),
    "lengths_below_samples": lambda: OPS.farthest_point_sample(P, 3, 0, False, lengths(4, 2)),
    "lengths_below_start": lambda: OPS.farthest_point_sample(P, 1, 3, False, lengths(4, 2)),
    "lengths_below_size": lambda: OPS.group_points(P, 1, 3, 0, False, lengths(4, 2)),
    "gather_high": lambda: OPS.gather_points(P, I3 + 4),
    "gather_low": lambda: OPS.gather_points(P, I3 - 1),
    "gather_far": lambda: OPS.gather_points(P, I3 + 2**62),
    "gather_from_nothing": lambda: OPS.gather_points(EMPTY, I3),
    "gather_dtype": lambda: OPS.gather_points(P, I3.int()),
    "gather_batch": lambda: OPS.gather_points(P, I3[:1]),
    "gather_no_axes": lambda: OPS.gather_points(P, torch.tensor(0)),
    "gather_back_high": lambda: OPS.gather_points_backward(torch.ones(2, 5, 3, 7), I3, 0),
    "gather_back_shape": lambda: OPS.gather_points_backward(torch.ones(2, 5, 2, 7), I3, 4),
    "gather_back_axes": lambda: OPS.gather_points_backward(torch.ones(2, 5, 3), I3, 4),
    "gather_back_negative": lambda: OPS.gather_points_backward(torch.ones(2, 5, 3, 7), I3, -1),
    "interpolate_high": lambda: OPS.three_interpolate(P, I3 + 4, W3),
    "interpolate_two": lambda: OPS.three_interpolate(P, I3[..., :2], W3[..., :2]),
    "interpolate_rows": lambda: OPS.three_interpolate(P, I3[:, :4], W3),
    "interpolate_dtype": lambda: OPS.three_interpolate(P, I3, W3.double()),
    "interpolate_axes": lambda: OPS.three_interpolate(P, I3[0], W3),
    "interpolate_back_high": lambda: OPS.three_interpolate_backward(W3, I3 + 4, W3, 4),
    "interpolate_back_rows": lambda: OPS.three_interpolate_backward(W3[:, :4], I3, W3, 4),
}


@pytest.mark.parametrize("bad", BAD_POINTS)
@pytest.mark.parametrize("op", RAW_WITH_POINTS)
def test_a_raw_call_refuses_bad_points(op, bad):
    with pytest.raises(RuntimeError, match=r"^ValueError: .*(shape|dtype|is (nan|inf)|points)"):
        RAW_WITH_POINTS[op](BAD_POINTS[bad])


@pytest.mark.parametrize("case", RAW_CALLS)
def test_a_raw_call_refuses_what_would_crash(case):
    with pytest.raises(RuntimeError, match=r"^ValueError: "):
        RAW_CALLS[case]()


def test_more_points_than_an_index_counts_are_refused_by_name():
    points = torch.zeros(1, 1, 3).expand(1, 2**31, 3)  # takes no memory
    with pytest.raises(RuntimeError, match="points holds 2147483648 points per cloud; at most"):
        OPS.farthest_point_sample(points, 1)


@pytest.mark.parametrize("op", ["gather_points", "three_interpolate"])
def test_rows_without_channels_are_empty(op):
    features = torch.zeros(2, 4, 0)
    arguments = (features, I3) if op == "gather_points" else (features, I3, W3)
    assert getattr(OPS, op)(*arguments).shape[-1] == 0


def make_slow_cloud(kind, num_points):
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(1, num_points, 3, generator=generator)
    if kind == "half_of_it_one_point":
        points[:, ::2] = 0
    elif kind == "exponential":
        points = torch.exp2(20 * points)
    elif kind == "outliers":
        points = 1e-6 * points
        points[:, :5] = torch.eye(3).repeat(2, 1)[:5] * 1e6
    elif kind == "sorted_line":
        points = points[..., :1].sort(1).values.expand(1, num_points, 3).contiguous()
    elif kind != "random":
        points = make_cloud(kind, 1, num_points)
    return points


def seconds_of(points):
    """Processor time, so that other processes do not count."""
    queries = points[:, ::40].contiguous()
    start = time.process_time()
    OPS.farthest_point_sample(points, 500)
    OPS.knn(points, queries, 16)
    OPS.chamfer_distance(points, queries)
    return time.process_time() - start


SLOW_KINDS = ("all_equal", "duplicates", "collinear", "clustered", "lattice", "symmetric")
SLOWER_KINDS = ("half_of_it_one_point", "exponential", "outliers", "sorted_line")


@pytest.mark.slow
@pytest.mark.parametrize("kind", [*SLOW_KINDS, *SLOWER_KINDS])
def test_no_cloud_takes_much_longer_than_a_random_one(kind):
    random, points = make_slow_cloud("random", 40_000), make_slow_cloud(kind, 40_000)
    fastest = min(seconds_of(random) for _ in range(3))
    # Looking at all pairs would take about 60 times as long; the slowest kind takes 4 to 8, by processor.
    assert min(seconds_of(points) for _ in range(3)) < 16 * fastest


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", ["squares overflow", "denormal"])
@pytest.mark.parametrize("num_points", [65, 1024, 4096])
def test_the_smallest_and_the_largest_coordinates_are_sorted_as_by_the_reference(dtype, size, num_points):
    scale = {torch.float32: (1e30, 1e-42), torch.float64: (1e200, 1e-310)}[dtype][size == "denormal"]
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(2, num_points, 3, dtype=dtype, generator=generator) * scale
    asked = [lambda: OPS.group_points(points, 16, 33), lambda: OPS.knn(points, points[:, :9], 65)]
    found = [ask() for ask in asked]
    with use_backend("reference"):
        expected = [ask() for ask in asked]
    for ours, theirs in zip(found, expected, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_python_threads_may_call_at_once():
    points = make_cloud("random", 4, 2048)
    expected = OPS.group_points(points, 128, 32)[2]
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: OPS.group_points(points, 128, 32)[2], range(24)))
    assert all(torch.equal(answer, expected) for answer in answers)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_process_computes_too():
    points = make_cloud("random", 2, 2048)
    expected = OPS.group_points(points, 64, 16)[2]
    loader = torch.utils.data.DataLoader(
        [points] * 2,
        batch_size=None,
        num_workers=1,
        multiprocessing_context="fork",
        collate_fn=lambda cloud: OPS.group_points(cloud, 64, 16)[2],
    )
    assert all(torch.equal(answer, expected) for answer in loader)
