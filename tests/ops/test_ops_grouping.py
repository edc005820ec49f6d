import pytest
import torch
from ops_oracles import KINDS, OFFSET, make_cloud

from pcl_clora import ops


@pytest.mark.parametrize("compat", ["none", "pointnet2"])
@pytest.mark.parametrize("kind", KINDS)
def test_patches_are_sampled_centres_and_their_centred_neighbours(kind, compat):
    points = make_cloud(kind, 2, 60)
    groups = ops.group_points(points, 9, 5, start_index=3, compat=compat)
    center_idx = ops.farthest_point_sample(points, 9, start_index=3, compat=compat)
    clouds = torch.arange(2)
    assert torch.equal(groups.center, points[clouds[:, None], center_idx])
    assert torch.equal(groups.idx, ops.knn(points, groups.center, 5).idx)
    neighbours = points[clouds[:, None, None], groups.idx]
    assert torch.equal(groups.neighborhood, neighbours - groups.center[:, :, None])


@pytest.mark.parametrize("kind", KINDS)
def test_every_patch_starts_at_its_centre(kind):
    groups = ops.group_points(make_cloud(kind, 2, 40), 8, 4)
    assert torch.equal(groups.neighborhood[:, :, 0], torch.zeros(2, 8, 3))


@pytest.mark.parametrize("num_points", range(1, 10))
def test_as_many_groups_as_points_keep_the_points_in_order(num_points):
    points = make_cloud("random", 2, num_points)
    groups = ops.group_points(points, num_points, num_points)
    assert torch.equal(groups.center, points)
    assert groups.idx.sort().values.equal(torch.arange(num_points).expand(2, num_points, num_points))


def test_groups_do_not_share_memory_with_the_points():
    points = make_cloud("random", 1, 6)
    before = points.clone()
    ops.group_points(points, 6, 2).center.zero_()
    assert torch.equal(points, before)


def test_patches_do_not_move_with_the_cloud():
    points = (make_cloud("random", 2, 64) * 16).round() / 16  # multiples of 1/16 stay exact at 1e6 in float32
    near, far = (ops.group_points(cloud, 8, 6) for cloud in (points, points + OFFSET))
    assert torch.equal(near.idx, far.idx)
    assert torch.equal(near.neighborhood, far.neighborhood)


@pytest.mark.parametrize("num_groups", [3, 6])
def test_patches_have_the_right_gradients_of_first_and_second_order(num_groups):
    points = make_cloud("random", 2, 6, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: ops.group_points(p, num_groups, 3)[:2], (points,))
    assert torch.autograd.gradgradcheck(lambda p: ops.group_points(p, num_groups, 3)[:2], (points,))


@pytest.mark.parametrize("used", ["center", "neighborhood"])
def test_gradient_of_one_output_equals_that_of_plain_indexing(used):
    points = make_cloud("random", 2, 20).requires_grad_()
    groups = ops.group_points(points, 4, 5)
    clouds = torch.arange(2)
    center = points[clouds[:, None], ops.farthest_point_sample(points, 4)]
    neighborhood = points[clouds[:, None, None], groups.idx] - center[:, :, None]
    expected = {"center": center, "neighborhood": neighborhood}[used]
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(0))
    (found,) = torch.autograd.grad((getattr(groups, used) * weight).sum(), points)
    (wanted,) = torch.autograd.grad((expected * weight).sum(), points)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=0)  # sums in another order


def test_an_empty_batch_gives_empty_patches():
    groups = ops.group_points(torch.zeros(0, 8, 3), 4, 2)
    assert [part.shape for part in groups] == [(0, 4, 3), (0, 4, 2, 3), (0, 4, 2)]


def test_twenty_repeats_are_identical():
    points = make_cloud("lattice", 2, 100)
    assert len({ops.group_points(points, 10, 7).neighborhood.numpy().tobytes() for _ in range(20)}) == 1
