"""Every backend, and the drop-in module, give what the published CUDA ops give."""

import pytest
import torch

from pcl_clora import ops
from pcl_clora.ops import pointnet2
from tests.support import fake_pointnet2
from tests.support.ops_oracles import batched, slow_fps

FPS_CASES = ("generic", "n1024", "n7", "grid_ties", "near_origin", "all_near_origin", "duplicates")
CLOSE = {"rtol": 1e-6, "atol": 1e-7}  # another order of operations: a few units in the last place


@pytest.mark.parametrize("rule", ["none", "pointnet2"])
@pytest.mark.parametrize("case", FPS_CASES)
def test_sampling(backend, golden_ops, case, rule):
    if backend.own_ties and rule == "none":
        pytest.skip("has one rule")
    answers = {"none": "noskip", "pointnet2": "cuda" if backend.own_ties else "lowest"}
    expected = golden_ops[f"fps_{case}_idx_{answers[rule]}"]
    points = golden_ops[f"fps_{case}_xyz"]
    (found,) = backend.run(ops.farthest_point_sample, points, expected.shape[1], compat=rule)
    assert torch.equal(found, expected.long())


def test_the_golden_cases_tell_the_rules_apart(golden_ops):
    names = [f"fps_near_origin_idx_{rule}" for rule in ("noskip", "lowest")]
    names += [f"fps_grid_ties_idx_{rule}" for rule in ("lowest", "cuda")]
    default, published, lowest, by_threads = (golden_ops[name] for name in names)
    assert not torch.equal(default, published)
    assert not torch.equal(lowest, by_threads)


@pytest.mark.parametrize("case", FPS_CASES)
def test_the_stand_in_breaks_ties_as_the_published_threads_do(golden_ops, case):
    points, expected = golden_ops[f"fps_{case}_xyz"], golden_ops[f"fps_{case}_idx_cuda"]
    order = fake_pointnet2.thread_order(points.shape[1])
    found = batched(slow_fps, points, num_samples=expected.shape[1], skip_origin=True, order=order)[0]
    assert torch.equal(found, expected.long())


@pytest.mark.parametrize("case", ["", "tie_"])
def test_neighbours(backend, golden_ops, case):
    expected = golden_ops[f"knn_{case}idx"]
    ref, query = golden_ops[f"knn_{case}ref"], golden_ops[f"knn_{case}query"]
    dist2, idx = backend.run(ops.knn, ref, query, expected.shape[2])
    assert torch.equal(idx, expected)
    torch.testing.assert_close(dist2.sqrt(), golden_ops[f"knn_{case}dist"], **CLOSE)


@pytest.mark.parametrize("case", ["", "m2_"])
def test_three_neighbours(backend, golden_ops, case):
    dist2, idx = backend.run(ops.three_nn, golden_ops[f"tnn_{case}known"], golden_ops[f"tnn_{case}unknown"])
    assert torch.equal(idx, golden_ops[f"tnn_{case}idx"].long())
    torch.testing.assert_close(dist2.sqrt(), golden_ops[f"tnn_{case}dist"], **CLOSE)


def test_ball_query(backend, golden_ops):
    radius, num_samples = golden_ops["ball_radius"], golden_ops["ball_nsample"]
    (idx,) = backend.run(
        ops.ball_query, golden_ops["ball_xyz"], golden_ops["ball_new_xyz"], radius, num_samples
    )
    assert torch.equal(idx, golden_ops["ball_idx"].long())


def test_interpolation_and_its_gradient(backend, golden_ops):
    def blend(features, idx, weight, grad):
        features.requires_grad_()
        blended = ops.three_interpolate(features, idx, weight)
        blended.backward(grad)
        return blended.detach(), features.grad

    blended, grad = backend.run(
        blend,
        golden_ops["tint_features"].transpose(1, 2).clone(),
        golden_ops["tnn_idx"].long(),
        golden_ops["tint_weight"],
        golden_ops["tint_grad_out"].transpose(1, 2),
    )
    # float32 sums of 3 products, and of about 11 for the gradient, in another order
    torch.testing.assert_close(blended.transpose(1, 2), golden_ops["tint_out"], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(grad.transpose(1, 2), golden_ops["tint_grad_features"], atol=5e-6, rtol=1e-6)


def test_picking_and_its_gradient(backend, golden_ops):
    def pick(features, idx, grad):
        features.requires_grad_()
        picked = ops.gather_points(features, idx)
        picked.backward(grad)
        return picked.detach(), features.grad

    features = golden_ops["gather_features"].transpose(1, 2).clone()
    (picked,) = backend.run(ops.gather_points, features, golden_ops["gather_idx"].long())
    assert torch.equal(picked.transpose(1, 2), golden_ops["gather_out"])
    grad = golden_ops["group_grad_out"].permute(0, 2, 3, 1)
    picked, grad = backend.run(pick, features, golden_ops["group_idx"].long(), grad)
    assert torch.equal(picked.permute(0, 3, 1, 2), golden_ops["group_out"])
    # sums of a few float32 numbers of size 1, in another order
    torch.testing.assert_close(grad.transpose(1, 2), golden_ops["group_grad_features"], atol=1e-6, rtol=0)


def test_chamfer_distances_and_losses(backend, golden_ops):
    found = backend.run(ops.chamfer_distance, golden_ops["chamfer_a"], golden_ops["chamfer_b"])
    dist_a, dist_b, idx_a, idx_b = found
    assert torch.equal(idx_a, golden_ops["chamfer_idx1"].long())
    assert torch.equal(idx_b, golden_ops["chamfer_idx2"].long())
    torch.testing.assert_close(dist_a, golden_ops["chamfer_dist1"], **CLOSE)
    torch.testing.assert_close(dist_b, golden_ops["chamfer_dist2"], **CLOSE)
    assert (dist_a.mean() + dist_b.mean()).item() == pytest.approx(golden_ops["chamfer_l2"], rel=1e-6)
    loss_l1 = (dist_a.sqrt().mean() + dist_b.sqrt().mean()) / 2
    assert loss_l1.item() == pytest.approx(golden_ops["chamfer_l1"], rel=1e-6)


# The drop-in module `pcl_clora.ops.pointnet2`: names, layouts and dtypes as published


@pytest.mark.parametrize("case", FPS_CASES)
def test_drop_in_furthest_point_sample(golden_ops, case):
    expected = golden_ops[f"fps_{case}_idx_lowest"]
    found = pointnet2.furthest_point_sample(golden_ops[f"fps_{case}_xyz"], expected.shape[1])
    assert found.dtype == torch.int32
    assert torch.equal(found, expected)


@pytest.mark.parametrize("case", ["n7", "all_near_origin", "near_origin"])
def test_drop_in_furthest_point_sample_repeats_where_points_run_out(golden_ops, case):
    points = golden_ops[f"fps_{case}_xyz"]
    asked = points.shape[1] + 5
    found = pointnet2.furthest_point_sample(points, asked)
    assert torch.equal(found, batched(slow_fps, points, num_samples=asked, skip_origin=True)[0].int())


@pytest.mark.parametrize("channels_first", [False, True])
@pytest.mark.parametrize("case", ["", "tie_"])
def test_drop_in_knn(golden_ops, case, channels_first):
    ref, query, dist, idx = (golden_ops[f"knn_{case}{part}"] for part in ("ref", "query", "dist", "idx"))
    if channels_first:
        ref, query, dist, idx = (part.transpose(1, 2).contiguous() for part in (ref, query, dist, idx))
    search = pointnet2.KNN(k=32 if case == "" else 10, transpose_mode=not channels_first)
    found_dist, found_idx = search(ref.requires_grad_(), query)
    assert torch.equal(found_idx, idx)
    assert found_idx.dtype == torch.int64
    assert found_idx.is_contiguous()
    assert not found_dist.requires_grad
    torch.testing.assert_close(found_dist, dist, **CLOSE)


@pytest.mark.parametrize("case", ["", "m2_"])
def test_drop_in_three_nn(golden_ops, case):
    unknown = golden_ops[f"tnn_{case}unknown"].clone().requires_grad_()
    dist, idx = pointnet2.three_nn(unknown, golden_ops[f"tnn_{case}known"])
    assert torch.equal(idx, golden_ops[f"tnn_{case}idx"])
    assert idx.dtype == torch.int32
    assert not dist.requires_grad
    torch.testing.assert_close(dist, golden_ops[f"tnn_{case}dist"], **CLOSE)


def test_drop_in_three_interpolate(golden_ops):
    features = golden_ops["tint_features"].clone().requires_grad_()
    blended = pointnet2.three_interpolate(features, golden_ops["tnn_idx"], golden_ops["tint_weight"])
    blended.backward(golden_ops["tint_grad_out"])
    torch.testing.assert_close(blended, golden_ops["tint_out"], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(features.grad, golden_ops["tint_grad_features"], atol=5e-6, rtol=1e-6)


def test_drop_in_gather_and_grouping(golden_ops):
    features = golden_ops["gather_features"].clone().requires_grad_()
    assert torch.equal(
        pointnet2.gather_operation(features, golden_ops["gather_idx"]), golden_ops["gather_out"]
    )
    grouped = pointnet2.grouping_operation(features, golden_ops["group_idx"])
    assert torch.equal(grouped, golden_ops["group_out"])
    assert grouped.is_contiguous()
    grouped.backward(golden_ops["group_grad_out"])
    torch.testing.assert_close(features.grad, golden_ops["group_grad_features"], atol=1e-6, rtol=0)


def test_drop_in_ball_query_and_the_modules_on_it(golden_ops):
    xyz, new_xyz = golden_ops["ball_xyz"], golden_ops["ball_new_xyz"]
    radius, nsample = golden_ops["ball_radius"], golden_ops["ball_nsample"]
    idx = pointnet2.ball_query(radius, nsample, xyz, new_xyz)
    assert torch.equal(idx, golden_ops["ball_idx"])
    assert idx.dtype == torch.int32
    features = golden_ops["gather_features"]
    grouped = pointnet2.QueryAndGroup(radius, nsample)(xyz, new_xyz, features)
    clouds = torch.arange(len(xyz))[:, None, None]
    assert torch.equal(grouped[:, :3].permute(0, 2, 3, 1), xyz[clouds, idx.long()] - new_xyz.unsqueeze(2))
    assert torch.equal(grouped[:, 3:], pointnet2.grouping_operation(features, idx))
    without = pointnet2.QueryAndGroup(radius, nsample, use_xyz=False)
    assert torch.equal(without(xyz, new_xyz, features), grouped[:, 3:])


def test_drop_in_group_all():
    xyz, features = torch.rand(2, 5, 3), torch.rand(2, 4, 5)
    grouped = pointnet2.GroupAll()(xyz, None, features)
    assert torch.equal(grouped, torch.cat([xyz.transpose(1, 2), features], 1).unsqueeze(2))
    assert torch.equal(pointnet2.GroupAll()(xyz, None), xyz.transpose(1, 2).unsqueeze(2))


def test_drop_in_group_all_gives_coordinates_where_there_is_nothing_else():
    xyz = torch.rand(1, 4, 3)
    assert torch.equal(pointnet2.GroupAll(use_xyz=False)(xyz, None), xyz.transpose(1, 2).unsqueeze(2))


@pytest.mark.parametrize("kind", [ValueError, AssertionError])
def test_drop_in_query_and_group_refuses_to_return_nothing(kind):
    with pytest.raises(kind, match="use_xyz=False leaves nothing where there are no features"):
        pointnet2.QueryAndGroup(1.0, 2, use_xyz=False)(torch.rand(1, 4, 3), torch.rand(1, 2, 3))
