"""What the ops promise beyond one answer, on every backend."""

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

from pcl_clora import ops
from tests.support.ops_oracles import OFFSET, make_cloud


@pytest.fixture
def any_rule(backend):
    """A backend that samples by the default rule."""
    if backend.own_ties:
        pytest.skip("has one rule")
    return backend


@pytest.mark.parametrize("step", [1, 10, 49])
def test_every_sample_is_as_far_from_the_chosen_ones_as_any_point_is(any_rule, step):
    points = make_cloud("random", 1, 300)
    order = any_rule.run(ops.farthest_point_sample, points, 50)[0][0]
    gaps = cdist(points[0].double(), points[0, order[:step]].double()).min(1)
    assert gaps[order[step]] == pytest.approx(gaps.max(), rel=1e-6)  # float32 may swap near-equal points


@pytest.mark.parametrize("k", [1, 16, 200])
def test_neighbours_agree_with_a_kd_tree(backend, k):
    points, queries = make_cloud("random", 2, 200, 0), make_cloud("random", 2, 40, 1)
    dist2, idx = backend.run(ops.knn, points, queries, k)
    trees = [
        cKDTree(cloud.double().numpy()).query(q.double().numpy(), k=[*range(1, k + 1)])
        for cloud, q in zip(points, queries, strict=True)
    ]
    distances, by_tree = (np.stack(part) for part in zip(*trees, strict=True))
    np.testing.assert_allclose(dist2.sqrt(), distances, rtol=1e-5)  # float32 against float64
    assert (idx.numpy() == by_tree).mean() > 0.999  # distances closer than float32 resolves may swap


@pytest.mark.parametrize("kind", ["random", "lattice"])
def test_nothing_moves_with_the_cloud(any_rule, kind):
    points = (make_cloud(kind, 2, 64) * 16).round() / 16  # multiples of 1/16 stay exact at 1e6 in float32
    near, far = (any_rule.run(ops.group_points, cloud, 8, 6) for cloud in (points, points + OFFSET))
    assert torch.equal(near[1], far[1])
    assert torch.equal(near[2], far[2])


@pytest.mark.parametrize("kind", ["far_away", "symmetric"])
def test_every_patch_starts_at_its_centre(any_rule, kind):
    _, neighborhood, _ = any_rule.run(ops.group_points, make_cloud(kind, 2, 40), 8, 4)
    assert torch.equal(neighborhood[:, :, 0], torch.zeros(2, 8, 3))


@pytest.mark.parametrize("power_of_two", [2.0**-10, 2.0**10])  # exact in float32
def test_the_default_rule_does_not_depend_on_the_unit(any_rule, power_of_two):
    points = make_cloud("near_origin", 2, 64)
    once = any_rule.run(ops.farthest_point_sample, points, 32)
    scaled = any_rule.run(ops.farthest_point_sample, points * power_of_two, 32)
    assert torch.equal(*once, *scaled)


def test_the_skip_rule_compares_in_double_precision_as_the_published_kernel_does(backend):
    # the squared norm is float32(1e-3), which is above the double 1e-3, so the point is not skipped
    x = np.float32(0.031622775)
    y = np.float32(np.sqrt(float(np.float32(1e-3)) - float(x * x)))
    assert x * x + y * y == np.float32(1e-3)
    points = torch.tensor([[[1.0, 0, 0], [x, y, 0]]])
    (found,) = backend.run(ops.farthest_point_sample, points, 2, compat="pointnet2")
    assert found.tolist() == [[0, 1]]


def test_the_rule_of_pointnet2_cannot_tell_distances_above_1e10_apart(any_rule):
    points = make_cloud("random", 1, 6) * 1e7  # squared distances of about 1e14
    (published,) = any_rule.run(ops.farthest_point_sample, points, 6, compat="pointnet2")
    (default,) = any_rule.run(ops.farthest_point_sample, points, 6)
    assert published.tolist() == [[0, 1, 2, 3, 4, 5]]
    assert default.tolist() != [[0, 1, 2, 3, 4, 5]]


def test_distances_that_overflow_still_give_indices_in_range(any_rule):
    (found,) = any_rule.run(ops.farthest_point_sample, make_cloud("random", 1, 20) * 3e38, 20)
    assert found.unique().max() < 20


def test_overflowing_distances_come_last_in_the_order_of_the_index(backend):
    points = torch.tensor([[[3e38, 0, 0], [1.0, 0, 0], [-3e38, 0, 0]]])
    dist2, idx = backend.run(ops.knn, points, torch.zeros(1, 1, 3), 3)
    assert idx.tolist() == [[[1, 0, 2]]]
    assert dist2.tolist() == [[[1.0, torch.inf, torch.inf]]]


def test_overflow_does_not_bring_back_what_lies_behind_a_cloud(backend):
    if not backend.takes_lengths:
        pytest.skip("has no lengths")
    points = torch.tensor([[[3e38, 0, 0], [1.0, 0, 0], [-3e38, 0, 0], [0.0, 0, 0]]])
    _, idx = backend.run(ops.knn, points, torch.zeros(1, 1, 3), 3, lengths=torch.tensor([3]))
    assert idx.tolist() == [[[1, 0, 2]]]


@pytest.mark.parametrize(
    ("radius", "found"), [(1.0, [1, 1]), (1.0000001, [0, 1]), (0.4, [1, 1]), (0.3, [0, 0])]
)
def test_a_ball_does_not_hold_its_surface(backend, radius, found):
    points = torch.tensor([[[1.0, 0, 0], [0, 0.35, 0]]])  # 1.0000001 is the next float32 above 1
    (idx,) = backend.run(ops.ball_query, points, torch.zeros(1, 1, 3), radius, 2)
    assert idx.tolist() == [[found]]


def test_patches_do_not_share_memory_with_the_points(any_rule):
    points = make_cloud("random", 1, 6).to(any_rule.device)
    before = points.clone()
    ops.group_points(points, 6, 2).center.zero_()
    assert torch.equal(points, before)


@pytest.mark.parametrize("shape", [(2,), (2, 5), (2, 3, 4)])
def test_picking_takes_indices_of_any_shape(backend, shape):
    features = torch.randn(2, 7, 6, generator=torch.Generator().manual_seed(0))
    idx = torch.randint(0, 7, shape, generator=torch.Generator().manual_seed(1))
    clouds = torch.arange(2).view(-1, *[1] * (len(shape) - 1))
    assert torch.equal(backend.run(ops.gather_points, features, idx)[0], features[clouds, idx])


def test_interpolation_at_the_known_points_returns_their_features(backend):
    points = torch.rand(2, 30, 3, generator=torch.Generator().manual_seed(0))
    features = torch.randn(2, 30, 5, generator=torch.Generator().manual_seed(1))
    dist2, idx = backend.run(ops.three_nn, points, points)
    closeness = 1 / (dist2.sqrt() + 1e-8)
    weight = closeness / closeness.sum(-1, keepdim=True)
    (blended,) = backend.run(ops.three_interpolate, features, idx, weight)
    torch.testing.assert_close(blended, features, atol=1e-5, rtol=0)  # 1e-8 beside distances of about 0.1


@pytest.mark.parametrize(
    "op", [lambda p: ops.farthest_point_sample(p, 4), lambda p: ops.ball_query(p, p, 1, 4)]
)
def test_indices_carry_no_gradient(op):
    assert not op(make_cloud("random", 1, 8).requires_grad_()).requires_grad


@pytest.mark.parametrize("used", ["center", "neighborhood"])
def test_the_gradient_of_one_output_equals_that_of_plain_indexing(used):
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


SECOND_ORDER = {
    "knn": lambda p, q: ops.knn(p, q, 3).dist2,
    "group_points": lambda p, q: ops.group_points(p, 3, 3)[:2],
    "chamfer_distance": lambda p, q: ops.chamfer_distance(p, q)[:2],
    "gather_points": lambda p, q: ops.gather_points(p, torch.tensor([[[0, 0], [4, 2]]] * 2)),
    "three_interpolate": lambda p, q: ops.three_interpolate(
        p, torch.tensor([[[0, 0, 5], [4, 2, 1], [3, 3, 3], [1, 2, 5]]] * 2), q
    ),
}


@pytest.mark.parametrize("name", SECOND_ORDER)
def test_gradients_differentiate_again(name):
    clouds = make_cloud("random", 2, 6, 0, torch.float64), make_cloud("random", 2, 4, 1, torch.float64)
    inputs = tuple(cloud.requires_grad_() for cloud in clouds)
    assert torch.autograd.gradgradcheck(SECOND_ORDER[name], inputs)
