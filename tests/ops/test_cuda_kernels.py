"""What only a device can show of the CUDA kernels; the matrix of the ops runs them as "cuda_native"."""

import pytest
import torch
from torch import Tensor

from pcl_clora import ops
from pcl_clora.ops import _native, reference
from tests.support.emulation.trials import TRIALS
from tests.support.ops_oracles import make_cloud

pytestmark = pytest.mark.cuda


@pytest.fixture(autouse=True)
def _native_backend():
    if ops.report("cuda")["knn"] != "native":
        pytest.skip(f"the CUDA kernels are not built: {_native.problem() or 'no nvcc when they were built'}")


def moved(values, device="cuda"):
    return tuple(value.to(device) if isinstance(value, Tensor) else value for value in values)


def call(op, arguments, device="cuda"):
    """Run a CUDA kernel itself, and bring its results back."""
    found = getattr(torch.ops.pcl_clora, op)(*moved(arguments, device))
    return tuple(part.cpu() for part in (found if isinstance(found, tuple) else (found,)))


def assert_same(found, expected):
    expected = expected if isinstance(expected, tuple) else (expected,)
    for part, wanted in zip(found, expected, strict=True):
        assert part.dtype == wanted.dtype
        if part.is_floating_point():  # both backward passes add in another order than the reference
            torch.testing.assert_close(part, wanted, rtol=1e-5, atol=1e-5, equal_nan=True)
        else:
            assert torch.equal(part, wanted)


@pytest.mark.parametrize("name", TRIALS)
def test_the_device_finds_what_the_emulation_finds(name):
    trial = TRIALS[name]
    arguments = trial.arguments()
    expected = (trial.expected or getattr(reference, trial.op))(*arguments)
    assert_same(call(trial.op, arguments), expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("num_points", [1_000, 8_192, 8_193, 100_000])
def test_blocks_that_meet_sample_what_the_reference_samples(num_points, dtype):
    points = make_cloud("symmetric", 2, num_points, dtype=dtype)
    expected = reference.farthest_point_sample(points, 64)
    assert torch.equal(call("farthest_point_sample", (points, 64))[0], expected)


def test_distances_have_the_bits_of_the_reference():
    points, queries = make_cloud("far_away", 2, 3_000), make_cloud("far_away", 2, 200, seed=1)
    for part, wanted in zip(
        call("knn", (points, queries, 40)), reference.knn(points, queries, 40), strict=True
    ):
        assert torch.equal(part, wanted)


def test_kernels_run_on_the_current_stream():
    points = make_cloud("random", 8, 2_000)
    expected = reference.group_points(points, 64, 16)
    stream = torch.Stream("cuda")
    staged = torch.full(points.shape, torch.nan, device="cuda")
    source = points.to("cuda")
    torch.accelerator.synchronize()
    with stream:
        for _ in range(50):  # keeps the stream busy, so that a kernel on another one would come too early
            staged.add_(0)
        staged.copy_(source)
        found = torch.ops.pcl_clora.group_points(staged, 64, 16)
    stream.synchronize()
    assert_same(tuple(part.cpu() for part in found), expected)


def test_a_second_device_is_served_while_the_first_is_current():
    if torch.accelerator.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    points = make_cloud("random", 2, 10_000)
    found = call("group_points", (points, 64, 16), device="cuda:1")
    assert torch.accelerator.current_device_index() == 0
    assert_same(found, reference.group_points(points, 64, 16))


def test_gradients_are_the_same_in_every_run():
    generator = torch.Generator().manual_seed(0)
    grad = torch.randn(4, 5_000, 32, generator=generator)
    idx = torch.randint(7, (4, 5_000), generator=generator)
    first = call("gather_points_backward", (grad, idx, 7))
    for _ in range(20):
        assert torch.equal(call("gather_points_backward", (grad, idx, 7))[0], first[0])


@pytest.mark.parametrize("bad", [-1, 9, 2**62])
def test_an_index_out_of_range_reads_nan_and_adds_nothing(bad):
    rows, idx = torch.ones(1, 9, 4), torch.tensor([[0, bad, 8]])
    (picked,) = call("gather_points", (rows, idx))
    (added,) = call("gather_points_backward", (torch.ones(1, 3, 4), idx, 9))
    assert picked.isnan().all(-1).tolist() == [[False, True, False]]
    assert added.sum(-1).tolist() == [[4.0, 0, 0, 0, 0, 0, 0, 0, 4.0]]


def test_non_finite_points_give_indices_in_range_and_an_end():
    points = make_cloud("random", 2, 9_000)
    points[:, ::3] = torch.nan
    center_idx, idx = call("group_points", (points, 64, 16))[3:1:-1]
    assert 0 <= min(center_idx.min(), idx.min()) <= max(center_idx.max(), idx.max()) < 9_000


@pytest.mark.parametrize(
    ("op", "arguments", "text"),
    [
        ("knn", (torch.zeros(1, 4, 3), torch.zeros(1, 2, 3), 5), "k=5 is more than the cloud has"),
        ("knn", (torch.zeros(1, 4, 3), torch.zeros(2, 2, 3), 1), "same batch size"),
        ("knn", (torch.zeros(1, 4, 3), torch.zeros(1, 2, 3).double(), 1), "different dtypes"),
        ("knn", (torch.zeros(1, 4, 2), torch.zeros(1, 2, 2), 1), "has shape"),
        ("farthest_point_sample", (torch.zeros(1, 4, 3).half(), 1), "neither float32 nor float64"),
        ("farthest_point_sample", (torch.zeros(1, 0, 3), 1), "more than the cloud has"),
        ("gather_points", (torch.zeros(1, 4, 3), torch.zeros(1, 2).int()), "not int64"),
        ("gather_points_backward", (torch.zeros(1, 4, 3), torch.zeros(1, 3).long(), 4), "grad has shape"),
    ],
)
def test_a_raw_call_that_does_not_fit_is_an_error(op, arguments, text):
    with pytest.raises(RuntimeError, match=text):
        call(op, arguments)


def test_tensors_of_two_devices_are_refused():
    points, queries = torch.zeros(1, 4, 3, device="cuda"), torch.zeros(1, 2, 3)
    with pytest.raises(RuntimeError, match="different devices"):
        torch.ops.pcl_clora.knn(points, queries, 1)
