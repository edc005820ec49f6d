"""The CUDA kernels, unchanged, thread by thread on the CPU, and proof that these tests can fail."""

import os

import numpy as np
import pytest
import torch

from pcl_clora.ops import reference
from tests.support.emulation import build, emulated
from tests.support.emulation.emulated import EmulationError, Emulator, Settings
from tests.support.emulation.trials import FAULTS, TRIALS
from tests.support.ops_oracles import make_cloud

pytestmark = pytest.mark.skipif(
    not build.has_compiler(), reason="needs g++ to compile the emulated CUDA kernels"
)
EXPERIMENTS = (  # the table of emulated_selftest.cpp
    "reverse_by_dynamic_memory",
    "reverse_without_barrier",
    "count_by_atomics",
    "sum_of_lanes",
    "rotate_over_grid",
    "read_before_writing",
    "barrier_for_some",
    "two_barriers",
    "shuffle_for_some",
    "two_shuffles",
    "lane_outside_of_its_mask",
    "rotate_over_grid in an ordinary launch",
    "rotate_over_grid on too small a device",
    "reverse_by_dynamic_memory with too little",
)


@pytest.fixture(scope="module")
def unchecked():
    """The ops under the sanitizers, without the checks of values that a device leaves out too."""
    return Emulator(Settings(seed=1), emulated.in_sanitizers(), checked=False)


def experiment(name, seed=0, runner=None):
    numbers = torch.arange(64)
    settings = Settings(seed=seed, resident_blocks=6)
    runner = runner or emulated.in_process()
    runner("selftest", settings, False, [EXPERIMENTS.index(name)], 0.0, [], [numbers])
    return numbers


# The emulation itself.


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_dynamic_shared_memory_and_barriers_work(seed):
    assert experiment("reverse_by_dynamic_memory", seed).tolist() == list(range(63, -1, -1))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_atomic_takes_effect_once(seed):
    numbers = experiment("count_by_atomics", seed)
    assert numbers[:3].tolist() == [0 + 3 * 64, 63, 2]  # the third was not 0, so it was not exchanged


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_shuffles_bring_the_value_of_the_other_lane(seed):
    lane = torch.arange(64) % 32
    up, down = (lane - 1).clamp(min=0), (lane + 1).clamp(max=31)
    assert torch.equal(experiment("sum_of_lanes", seed), up + 100 * down + 10_000 * (31 - lane) + 5_000_000)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_blocks_of_a_grid_keep_their_shared_memory_and_meet(seed):
    assert experiment("rotate_over_grid", seed)[:5].tolist() == [1, 12, 23, 34, 40]


def test_shared_memory_starts_as_garbage():
    assert experiment("read_before_writing").unique().tolist() == [-0x5A5A5A5A5A5A5A5B]


def test_a_missing_barrier_shows_under_some_schedule():
    expected = list(range(63, -1, -1))
    assert any(experiment("reverse_without_barrier", seed).tolist() != expected for seed in range(4))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("barrier_for_some", "deadlock .* 50 wait at the barrier of line .* 14 have ended"),
        ("two_barriers", "threads wait at different barriers, lines"),
        ("shuffle_for_some", "deadlock .* 31 of a warp in line"),
        ("two_shuffles", "lanes of a warp meet in different operations"),
        ("lane_outside_of_its_mask", "a lane is not in the mask it passes"),
        ("rotate_over_grid in an ordinary launch", "needs a cooperative launch"),
        ("rotate_over_grid on too small a device", "larger than the device"),
    ],
)
@pytest.mark.parametrize("seed", [0, 1])
def test_what_a_device_would_hang_on_is_an_error(name, text, seed):
    with pytest.raises(EmulationError, match=text):
        experiment(name, seed)


@pytest.mark.slow
def test_dynamic_shared_memory_ends_where_the_launch_says():
    with pytest.raises(EmulationError, match="use-after-poison"):
        experiment("reverse_by_dynamic_memory with too little", runner=emulated.in_sanitizers())


def test_builds_that_nobody_used_for_long_are_deleted(tmp_path):
    old, used = tmp_path / "old.o", tmp_path / "used.o"
    old.touch()
    used.touch()
    os.utime(old, (0, 0))
    build._prune(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["used.o"]


# The kernels. The matrix of the ops runs them too, as the backend "emulated"; here every launch has its turn.


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", TRIALS)
def test_every_launch_finds_what_the_reference_finds(name, dtype):
    assert TRIALS[name].passes(emulated.in_process(), dtype)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", TRIALS)
def test_every_launch_passes_the_sanitizers(name, dtype):
    assert TRIALS[name].passes(emulated.in_sanitizers(), dtype)


@pytest.mark.parametrize("num_points", [512, 513, 1024, 1025, 2049, 4097, 8193])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_every_size_of_block_samples_alike(num_points, dtype):
    points = make_cloud("symmetric", 1, num_points, dtype=dtype)
    found = Emulator(Settings(seed=1)).farthest_point_sample(points, 5, num_points - 1)
    assert torch.equal(found, reference.farthest_point_sample(points, 5, num_points - 1))


@pytest.mark.parametrize("max_cloud_rows", [1, 3])
def test_clouds_are_sampled_in_several_launches_where_one_is_too_small(max_cloud_rows):
    points, lengths = make_cloud("random", 4, 90), torch.tensor([90, 20, 89, 41])
    device = Settings(seed=1, register_points=0, resident_blocks=0, max_cloud_rows=max_cloud_rows)
    found = Emulator(device).farthest_point_sample(points, 20, 3, False, lengths)
    assert torch.equal(found, reference.farthest_point_sample(points, 20, 3, False, lengths))


@pytest.mark.parametrize("k", [31, 32, 33, 64, 65, 127, 128, 129, 255])
def test_lists_of_every_length_are_sorted_with_ties_by_index(k):
    points, queries = make_cloud("lattice", 1, 256), make_cloud("lattice", 1, 2, seed=1)
    found = Emulator(Settings(seed=1)).knn(points, queries, k)
    for part, expected in zip(found, reference.knn(points, queries, k), strict=True):
        assert torch.equal(part, expected)


def test_what_lies_behind_the_end_of_a_cloud_is_never_read():
    points, lengths = make_cloud("random", 3, 80), torch.tensor([80, 33, 57])
    hidden = points.clone()
    for cloud, length in enumerate(lengths):
        hidden[cloud, length:] = torch.nan
    found = emulated.group_points(hidden, 9, 33, 2, False, lengths)
    for cloud, length in enumerate(lengths):
        alone = emulated.group_points(points[cloud : cloud + 1, :length], 9, 33, 2)
        assert all(torch.equal(part[cloud], own[0]) for part, own in zip(found, alone, strict=True))


def test_offsets_do_not_end_at_32_bits(tmp_path):
    num_points = 720_000_000  # 2.16e9 coordinates, in a file that is nearly all hole
    rows = np.memmap(tmp_path / "rows", np.float32, "w+", shape=(1, num_points, 3))
    rows[0, -1] = [1, 2, 3]
    idx = torch.tensor([[num_points - 1, 0]])
    found = Emulator(checked=False).gather_points(torch.from_numpy(rows), idx)
    assert found.tolist() == [[[1, 2, 3], [0, 0, 0]]]


# Values that only the CPU refuses: on a device they give something, in range and without a fault.


@pytest.mark.slow
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("which", ["one", "all"])
def test_non_finite_points_give_indices_in_range(unchecked, value, which):
    points = make_cloud("random", 2, 70)
    points[:, 5 if which == "one" else slice(None)] = value
    center_idx, idx = unchecked.group_points(points, 9, 40)[3:1:-1]
    in_ball = unchecked.ball_query(points, points[:, :6], 0.5, 4)
    assert all(0 <= part.min() <= part.max() < 70 for part in (center_idx, idx, in_ball))
    assert all(len(set(row.tolist())) == 40 for row in idx.flatten(0, 1))


@pytest.mark.slow
@pytest.mark.parametrize("bad", [-1, 9, 2**62, -(2**62)])
def test_an_index_out_of_range_reads_nan_and_adds_nothing(unchecked, bad):
    rows, idx = make_cloud("random", 2, 12).view(2, 9, 4), torch.arange(12).view(2, 6).remainder(9)
    weight = make_cloud("random", 2, 2)
    idx[1, 4] = bad
    good = torch.ones(2, 6, dtype=torch.bool)
    good[1, 4] = False
    picked = unchecked.gather_points(rows, idx)
    blended = unchecked.three_interpolate(rows, idx.view(2, 2, 3), weight)
    grad = unchecked.gather_points_backward(picked.nan_to_num(), idx, 9)
    expected = torch.zeros(2, 9, 4)
    expected[0].index_add_(0, idx[0], picked[0])
    expected[1].index_add_(0, idx[1][good[1]], picked[1][good[1]])
    assert torch.equal(picked.isnan().any(-1), ~good)
    assert torch.equal(blended.isnan().any(-1), ~good.view(2, 2, 3).all(-1))
    assert torch.equal(grad, expected)


@pytest.mark.slow
def test_lengths_out_of_range_are_cut_to_the_cloud(unchecked):
    points, lengths = make_cloud("random", 3, 40), torch.tensor([-7, 2**40, 5])
    cut = lengths.clamp(1, 40)
    chosen = unchecked.farthest_point_sample(points, 12, 30, False, lengths)
    dist2, idx = unchecked.knn(points, points[:, :3], 12, lengths)
    assert (chosen < cut.view(3, 1)).all()
    assert (chosen >= 0).all()
    assert idx[0].tolist() == [[0] * 12] * 3
    assert torch.equal(dist2.isinf().sum(-1), (12 - cut).clamp(min=0).view(3, 1).expand(3, 3))


def test_gradients_are_added_in_the_order_of_the_index():
    grad = torch.randn(1, 400, 3, generator=torch.Generator().manual_seed(0)) * 1e4
    idx = torch.randint(5, (1, 400), generator=torch.Generator().manual_seed(1))
    expected = torch.zeros(5, 3)
    for row, target in zip(grad[0], idx[0], strict=True):
        expected[target] += row
    for seed in (0, 1, 2):
        found = Emulator(Settings(seed=seed)).gather_points_backward(grad, idx, 5)
        assert torch.equal(found[0], expected)


# Proof that the trials can fail: the kernels with one fault each.


IN_SHORT = (  # one of each kind and source file; every fault has to be compiled
    "sampling: no barrier in a step",
    "search: one point too many in a tile",
    "ball: one hit too many",
    "gather: a negative index",
)
MUTANTS = [
    pytest.param(fault, id=name, marks=pytest.mark.slow if name in IN_SHORT else pytest.mark.long)
    for name, fault in FAULTS.items()
]


@pytest.mark.parametrize("fault", MUTANTS)
def test_a_fault_in_a_kernel_is_caught(fault):
    # In a process of its own: a fault may take an index from anywhere.
    assert not TRIALS[fault.trial].passes(emulated.in_sanitizers(fault.mutant))


def test_a_fault_that_is_no_longer_in_the_source_is_refused():
    with pytest.raises(ValueError, match="out of date"):
        build.Mutant("fps.cuh", "a text that no kernel holds", "").applied_to("__syncthreads();")
