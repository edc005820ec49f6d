import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ops_oracles import KINDS, OFFSET, batched, make_cloud, slow_knn
from scipy.spatial import cKDTree
from torch.utils._python_dispatch import TorchDispatchMode

from pcl_clora import ops
from pcl_clora.ops import reference

DOUBLE = torch.float64


@pytest.mark.parametrize("case", ["", "tie_"])
def test_knn_gives_the_published_neighbours(pointnet2, case):
    expected = pointnet2[f"knn_{case}idx"]
    found = ops.knn(pointnet2[f"knn_{case}ref"], pointnet2[f"knn_{case}query"], expected.shape[2])
    assert torch.equal(found.idx, expected)
    # the published values come from another order of operations: a few units in the last place
    torch.testing.assert_close(found.dist2.sqrt(), pointnet2[f"knn_{case}dist"], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, DOUBLE])
@pytest.mark.parametrize("num_points", [1, 2, 3, 4, 5, 6, 7, 8, 9, 100])
@pytest.mark.parametrize("kind", KINDS)
def test_knn_agrees_with_a_stable_sort_bit_for_bit(kind, num_points, dtype):
    points, queries = make_cloud(kind, 2, num_points, 0, dtype), make_cloud(kind, 2, 5, 1, dtype)
    found = ops.knn(points, queries, num_points)  # k = N orders every distance
    dist2, idx = batched(slow_knn, points, queries, k=num_points)
    assert torch.equal(found.idx, idx)
    assert torch.equal(found.dist2, dist2)


@pytest.mark.parametrize(("num_points", "k"), [(40, 1), (100, 3), (101, 3), (1000, 7), (1023, 32)])
@pytest.mark.parametrize("kind", KINDS)
def test_a_few_neighbours_among_many_points_agree_with_a_stable_sort_bit_for_bit(kind, num_points, k):
    points = make_cloud(kind, 2, num_points)
    queries = points[:, ::9]
    found = ops.knn(points, queries, k)
    dist2, idx = batched(slow_knn, points, queries, k=k)
    assert torch.equal(found.idx, idx)
    assert torch.equal(found.dist2, dist2)


@pytest.mark.parametrize("k", [1, 3, 16, 32, 200])
def test_knn_agrees_with_a_kd_tree(k):
    points, queries = make_cloud("random", 2, 200, 0), make_cloud("random", 2, 40, 1)
    found = ops.knn(points, queries, k)
    trees = [
        cKDTree(cloud.double().numpy()).query(q.double().numpy(), k=[*range(1, k + 1)])
        for cloud, q in zip(points, queries, strict=True)
    ]
    distances, idx = (np.stack(part) for part in zip(*trees, strict=True))
    np.testing.assert_allclose(found.dist2.sqrt(), distances, rtol=1e-5)  # float32 against float64
    assert (found.idx.numpy() == idx).mean() > 0.999  # distances closer than float32 resolves may swap


@settings(max_examples=60, deadline=None, database=None)
@given(data=st.data())
def test_knn_of_any_shape_agrees_with_a_stable_sort(data):
    num_points = data.draw(st.integers(1, 40))
    k = data.draw(st.integers(1, num_points))
    kind, seed = data.draw(st.sampled_from(KINDS)), data.draw(st.integers(0, 99))
    batch, num_queries = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 12))
    points, queries = (
        make_cloud(kind, batch, num_points, seed),
        make_cloud(kind, batch, num_queries, seed + 1),
    )
    found = ops.knn(points, queries, k)
    dist2, idx = batched(slow_knn, points, queries, k=k)
    assert torch.equal(found.idx, idx)
    assert torch.equal(found.dist2, dist2)


@pytest.mark.parametrize("kind", ["random", "lattice"])
def test_neighbours_do_not_move_with_the_cloud(kind):
    points = (make_cloud(kind, 2, 64) * 16).round() / 16  # multiples of 1/16 stay exact at 1e6 in float32
    near, far = (ops.knn(cloud, cloud[:, :9], 8) for cloud in (points, points + OFFSET))
    assert torch.equal(near.idx, far.idx)
    assert torch.equal(near.dist2, far.dist2)


def test_a_point_is_at_distance_zero_of_itself_far_from_the_origin():
    points = make_cloud("far_away", 1, 50)
    assert torch.equal(ops.knn(points, points, 1).dist2, torch.zeros(1, 50, 1))


@pytest.mark.parametrize("budget", [1, 7, 64, 300])
def test_cutting_the_distances_into_pieces_changes_nothing(monkeypatch, budget):
    points, queries = make_cloud("lattice", 3, 30, 0), make_cloud("lattice", 3, 11, 1)
    neighbours, chamfer = ops.knn(points, queries, 6), ops.chamfer_distance(points, queries)
    monkeypatch.setattr(reference, "_CPU_PIECE", budget)
    assert all(map(torch.equal, neighbours, ops.knn(points, queries, 6)))
    assert all(map(torch.equal, chamfer, ops.chamfer_distance(points, queries)))


class LargestTensor(TorchDispatchMode):
    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                self.numel = max(self.numel, tensor.numel())
        return result


@pytest.mark.parametrize(
    "kernel",
    [lambda a, b: reference.knn(a, b, 8), reference.chamfer_distance],
    ids=["knn", "chamfer_distance"],
)
def test_no_tensor_grows_with_the_product_of_both_clouds(kernel):
    points, queries = make_cloud("random", 1, 4000, 0), make_cloud("random", 1, 1000, 1)
    with LargestTensor() as largest:
        kernel(points, queries)
    assert largest.numel <= reference._CPU_PIECE < 4000 * 1000


def test_memory_layout_does_not_matter():
    points = make_cloud("random", 3, 50)
    strided = points.transpose(1, 2).contiguous().transpose(1, 2)
    assert all(map(torch.equal, ops.knn(points, points, 5), ops.knn(strided, strided[:, :, :], 5)))
    assert all(
        map(
            torch.equal,
            ops.chamfer_distance(points, points[:, ::2]),
            ops.chamfer_distance(strided, points[:, ::2].contiguous()),
        )
    )


def test_twenty_repeats_are_identical():
    points = make_cloud("lattice", 2, 100)
    assert len({ops.knn(points, points, 9).idx.numpy().tobytes() for _ in range(20)}) == 1


@pytest.mark.parametrize(("batch", "num_queries"), [(0, 4), (2, 0), (0, 0)])
def test_no_clouds_or_no_queries_give_an_empty_result(batch, num_queries):
    found = ops.knn(torch.zeros(batch, 6, 3), torch.zeros(batch, num_queries, 3), 2)
    assert found.dist2.shape == found.idx.shape == (batch, num_queries, 2)
    assert found.idx.dtype == torch.int64


def test_overflowing_distances_come_last_in_the_order_of_the_index():
    points = torch.tensor([[[3e38, 0, 0], [1.0, 0, 0], [-3e38, 0, 0]]])
    found = ops.knn(points, torch.zeros(1, 1, 3), 3)
    assert found.idx.tolist() == [[[1, 0, 2]]]
    assert found.dist2.tolist() == [[[1.0, torch.inf, torch.inf]]]


def test_squared_distances_have_the_right_gradient():
    points, queries = make_cloud("random", 2, 7, 0, DOUBLE), make_cloud("random", 2, 4, 1, DOUBLE)
    inputs = (points.requires_grad_(), queries.requires_grad_())
    assert torch.autograd.gradcheck(lambda p, q: ops.knn(p, q, 3).dist2, inputs)
    assert torch.autograd.gradgradcheck(lambda p, q: ops.knn(p, q, 3).dist2, inputs)


@pytest.mark.parametrize("case", ["", "m2_"])
def test_three_nn_gives_the_published_neighbours(pointnet2, case):
    found = ops.three_nn(pointnet2[f"tnn_{case}known"], pointnet2[f"tnn_{case}unknown"])
    assert torch.equal(found.idx, pointnet2[f"tnn_{case}idx"].long())
    # the published values come from another order of operations: a few units in the last place
    torch.testing.assert_close(found.dist2.sqrt(), pointnet2[f"tnn_{case}dist"], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("num_points", [1, 2, 3, 4])
def test_three_nn_pads_small_clouds_with_infinite_distance(num_points):
    points, queries = make_cloud("random", 2, num_points, 0), make_cloud("random", 2, 5, 1)
    found = ops.three_nn(points, queries)
    known = min(3, num_points)
    assert all(map(torch.equal, ops.knn(points, queries, known), (part[..., :known] for part in found)))
    assert torch.equal(found.dist2[..., known:], torch.full((2, 5, 3 - known), torch.inf))
    assert torch.equal(found.idx[..., known:], torch.zeros((2, 5, 3 - known), dtype=torch.int64))


def test_chamfer_gives_the_published_distances_and_losses(pointnet2):
    found = ops.chamfer_distance(pointnet2["chamfer_a"], pointnet2["chamfer_b"])
    assert torch.equal(found.idx_a, pointnet2["chamfer_idx1"].long())
    assert torch.equal(found.idx_b, pointnet2["chamfer_idx2"].long())
    # the published values come from another order of operations: a few units in the last place
    torch.testing.assert_close(found.dist_a, pointnet2["chamfer_dist1"], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(found.dist_b, pointnet2["chamfer_dist2"], rtol=1e-6, atol=1e-7)
    loss_l2 = found.dist_a.mean() + found.dist_b.mean()
    loss_l1 = (found.dist_a.sqrt().mean() + found.dist_b.sqrt().mean()) / 2
    assert loss_l2.item() == pytest.approx(pointnet2["chamfer_l2"], rel=1e-6)
    assert loss_l1.item() == pytest.approx(pointnet2["chamfer_l1"], rel=1e-6)


@pytest.mark.parametrize("sizes", [(1, 1), (1, 9), (9, 1), (5, 7), (60, 45)])
@pytest.mark.parametrize("kind", KINDS)
def test_chamfer_is_the_nearest_neighbour_both_ways(kind, sizes):
    a, b = make_cloud(kind, 2, sizes[0], 0), make_cloud(kind, 2, sizes[1], 1)
    found = ops.chamfer_distance(a, b)
    dist_a, idx_a = batched(slow_knn, b, a, k=1)
    dist_b, idx_b = batched(slow_knn, a, b, k=1)
    expected = (part.squeeze(-1) for part in (dist_a, dist_b, idx_a, idx_b))
    assert all(map(torch.equal, found, expected))


def test_chamfer_has_the_right_gradients_of_first_and_second_order():
    a, b = make_cloud("random", 2, 6, 0, DOUBLE), make_cloud("random", 2, 4, 1, DOUBLE)
    inputs = (a.requires_grad_(), b.requires_grad_())
    assert torch.autograd.gradcheck(lambda a, b: ops.chamfer_distance(a, b)[:2], inputs)
    assert torch.autograd.gradgradcheck(lambda a, b: ops.chamfer_distance(a, b)[:2], inputs)


def test_chamfer_of_an_empty_batch_is_empty():
    found = ops.chamfer_distance(torch.zeros(0, 4, 3), torch.zeros(0, 5, 3))
    assert [part.shape for part in found] == [(0, 4), (0, 5), (0, 4), (0, 5)]
