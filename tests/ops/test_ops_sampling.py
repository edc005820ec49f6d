import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops_oracles import KINDS, OFFSET, batched, make_cloud, slow_fps
from scipy.spatial.distance import cdist

from pcl_clora import ops

GOLDEN_CASES = ("generic", "n1024", "n7", "grid_ties", "near_origin", "all_near_origin", "duplicates")
COMPAT = {"none": False, "pointnet2": True}


@pytest.mark.parametrize("case", GOLDEN_CASES)
def test_pointnet2_rule_gives_the_published_indices(pointnet2, case):
    expected = pointnet2[f"fps_{case}_idx_lowest"]
    found = ops.farthest_point_sample(pointnet2[f"fps_{case}_xyz"], expected.shape[1], compat="pointnet2")
    assert torch.equal(found, expected.long())


@pytest.mark.parametrize("case", GOLDEN_CASES)
def test_default_rule_gives_the_published_indices_without_the_skip(pointnet2, case):
    expected = pointnet2[f"fps_{case}_idx_noskip"]
    found = ops.farthest_point_sample(pointnet2[f"fps_{case}_xyz"], expected.shape[1])
    assert torch.equal(found, expected.long())


def test_golden_cases_tell_the_two_rules_apart(pointnet2):
    points = pointnet2["fps_near_origin_xyz"]
    default, published = (ops.farthest_point_sample(points, 150, compat=rule) for rule in COMPAT)
    assert not torch.equal(default, published)


@pytest.mark.parametrize("compat", COMPAT)
@pytest.mark.parametrize("num_points", [1, 2, 3, 4, 5, 6, 7, 8, 9, 100])
@pytest.mark.parametrize("kind", KINDS)
def test_sampling_agrees_with_a_slow_loop_bit_for_bit(kind, num_points, compat):
    points = make_cloud(kind, 2, num_points)
    found = ops.farthest_point_sample(points, num_points, start_index=num_points // 2, compat=compat)
    expected = batched(
        slow_fps, points, num_samples=num_points, start=num_points // 2, skip_origin=COMPAT[compat]
    )
    assert torch.equal(found, expected)


@pytest.mark.parametrize("compat", COMPAT)
@pytest.mark.parametrize("num_points", [1023, 1024, 1025, 1500])
@pytest.mark.parametrize("kind", KINDS)
def test_sampling_of_large_clouds_agrees_with_a_slow_loop_bit_for_bit(kind, num_points, compat):
    points = make_cloud(kind, 2, num_points)
    found = ops.farthest_point_sample(points, 100, start_index=37, compat=compat)
    expected = batched(slow_fps, points, num_samples=100, start=37, skip_origin=COMPAT[compat])
    assert torch.equal(found, expected)


@settings(max_examples=60, deadline=None, database=None)
@given(data=st.data())
def test_sampling_of_any_shape_agrees_with_a_slow_loop(data):
    num_points = data.draw(st.integers(1, 40))
    num_samples = data.draw(st.integers(1, num_points))
    start = data.draw(st.integers(0, num_points - 1))
    kind, dtype = (
        data.draw(st.sampled_from(KINDS)),
        data.draw(st.sampled_from([torch.float32, torch.float64])),
    )
    points = make_cloud(kind, data.draw(st.integers(1, 3)), num_points, data.draw(st.integers(0, 99)), dtype)
    found = ops.farthest_point_sample(points, num_samples, start_index=start)
    assert torch.equal(found, batched(slow_fps, points, num_samples=num_samples, start=start))


@pytest.mark.parametrize("step", [1, 2, 10, 49])
def test_every_sample_is_as_far_from_the_chosen_ones_as_any_point_is(step):
    points = make_cloud("random", 1, 300)
    order = ops.farthest_point_sample(points, 50)[0]
    gaps = cdist(points[0].double(), points[0, order[:step]].double()).min(1)
    assert gaps[order[step]] == pytest.approx(gaps.max(), rel=1e-6)  # float32 may swap near-equal points


@pytest.mark.parametrize("kind", ["lattice", "random"])
def test_samples_do_not_move_with_the_cloud(kind):
    points = make_cloud(kind, 2, 64)
    points = (points * 16).round() / 16  # multiples of 1/16 stay exact at 1e6 in float32
    near, far = (ops.farthest_point_sample(cloud, 32) for cloud in (points, points + OFFSET))
    assert torch.equal(near, far)


@pytest.mark.parametrize("power_of_two", [2.0**-10, 2.0**10])  # exact in float32
def test_default_rule_does_not_depend_on_the_unit(power_of_two):
    points = make_cloud("near_origin", 2, 64)
    assert torch.equal(
        ops.farthest_point_sample(points, 32), ops.farthest_point_sample(points * power_of_two, 32)
    )


def test_skip_rule_compares_in_double_precision_as_the_published_kernel_does():
    # the squared norm is float32(1e-3), which is above the double 1e-3, so the point is not skipped
    x = np.float32(0.031622775)
    y = np.float32(np.sqrt(float(np.float32(1e-3)) - float(x * x)))
    assert x * x + y * y == np.float32(1e-3)
    points = torch.tensor([[[1.0, 0, 0], [x, y, 0]]])
    assert ops.farthest_point_sample(points, 2, compat="pointnet2").tolist() == [[0, 1]]


def test_pointnet2_rule_cannot_tell_distances_above_1e10_apart():
    points = make_cloud("random", 1, 6) * 1e7  # squared distances of about 1e14
    assert ops.farthest_point_sample(points, 6, compat="pointnet2").tolist() == [[0, 1, 2, 3, 4, 5]]
    assert ops.farthest_point_sample(points, 6).tolist() != [[0, 1, 2, 3, 4, 5]]


def test_huge_coordinates_whose_distances_overflow_still_give_indices_in_range():
    points = make_cloud("random", 1, 20) * 3e38
    assert ops.farthest_point_sample(points, 20).unique().max() < 20


def test_memory_layout_does_not_matter():
    points = make_cloud("random", 3, 50)
    channels_first = points.transpose(1, 2).contiguous().transpose(1, 2)
    every_other = points.repeat_interleave(2, 1)[:, ::2]
    expected = ops.farthest_point_sample(points, 10)
    assert torch.equal(ops.farthest_point_sample(channels_first, 10), expected)
    assert torch.equal(ops.farthest_point_sample(every_other, 10), expected)


def test_clouds_of_a_batch_do_not_influence_each_other():
    points = make_cloud("random", 4, 50)
    alone = torch.cat([ops.farthest_point_sample(cloud[None], 10) for cloud in points])
    assert torch.equal(ops.farthest_point_sample(points, 10), alone)


def test_twenty_repeats_are_identical():
    points = make_cloud("lattice", 2, 100)
    assert len({ops.farthest_point_sample(points, 30).numpy().tobytes() for _ in range(20)}) == 1


def test_an_empty_batch_gives_an_empty_result():
    found = ops.farthest_point_sample(torch.empty(0, 8, 3), 4)
    assert found.shape == (0, 4)
    assert found.dtype == torch.int64


def test_indices_carry_no_gradient():
    points = make_cloud("random", 1, 8).requires_grad_()
    assert not ops.farthest_point_sample(points, 4).requires_grad


@pytest.mark.parametrize("shape", [(2,), (2, 5), (2, 3, 4)])
def test_gather_equals_plain_indexing(shape):
    features = torch.randn(2, 7, 6, generator=torch.Generator().manual_seed(0))
    idx = torch.randint(0, 7, shape, generator=torch.Generator().manual_seed(1))
    clouds = torch.arange(2).view(-1, *[1] * (len(shape) - 1))
    assert torch.equal(ops.gather_points(features, idx), features[clouds, idx])


def test_gather_gives_the_published_result(pointnet2):
    features, idx = pointnet2["gather_features"].transpose(1, 2), pointnet2["gather_idx"].long()
    assert torch.equal(ops.gather_points(features, idx).transpose(1, 2), pointnet2["gather_out"])


def test_gather_of_neighbourhoods_gives_the_published_result_and_gradient(pointnet2):
    features = pointnet2["gather_features"].transpose(1, 2).requires_grad_()
    picked = ops.gather_points(features, pointnet2["group_idx"].long()).permute(0, 3, 1, 2)
    picked.backward(pointnet2["group_grad_out"])
    assert torch.equal(picked, pointnet2["group_out"])
    # sums of a few float32 numbers of size 1, in another order
    torch.testing.assert_close(
        features.grad.transpose(1, 2), pointnet2["group_grad_features"], atol=1e-6, rtol=0
    )


def test_gather_has_the_right_gradients_of_first_and_second_order():
    features = torch.randn(2, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    idx = torch.tensor([[[0, 0], [4, 2]], [[1, 3], [3, 3]]])
    inputs = (features.requires_grad_(), idx)
    assert torch.autograd.gradcheck(ops.gather_points, inputs)
    assert torch.autograd.gradgradcheck(ops.gather_points, inputs)


@pytest.mark.parametrize("shape", [(0, 4), (2, 0), (0, 4, 2)])
def test_gather_of_nothing_is_empty(shape):
    picked = ops.gather_points(torch.zeros(shape[0], 5, 3), torch.zeros(shape, dtype=torch.int64))
    assert picked.shape == (*shape, 3)
