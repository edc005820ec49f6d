"""How the plain-torch kernels keep memory bounded, and what they do where values are not checked."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pcl_clora.ops import reference
from tests.support.ops_oracles import make_cloud


@pytest.mark.parametrize("budget", [1, 7, 64, 300])
def test_cutting_the_distances_into_pieces_changes_nothing(monkeypatch, budget):
    points, queries = make_cloud("lattice", 3, 30, 0), make_cloud("lattice", 3, 11, 1)

    def answers():
        near = reference.knn(points, queries, 6)
        return [
            *near,
            *reference.chamfer_distance(points, queries),
            reference.ball_query(points, queries, 2, 5),
        ]

    whole = answers()
    monkeypatch.setattr(reference, "_CPU_PIECE", budget)
    assert all(map(torch.equal, whole, answers()))


@pytest.mark.parametrize("budget", [1, 5, 20])
def test_cutting_the_gradient_of_interpolation_into_pieces_changes_nothing(monkeypatch, budget):
    generator = torch.Generator().manual_seed(0)
    idx = torch.randint(0, 6, (2, 9, 3), generator=generator)
    weight = torch.rand(2, 9, 3, generator=generator, dtype=torch.float64)
    grad = torch.randn(2, 9, 4, dtype=torch.float64, generator=generator)
    whole = reference.three_interpolate_backward(grad, idx, weight, 6)
    monkeypatch.setattr(reference, "_CPU_PIECE", budget)
    pieces = reference.three_interpolate_backward(grad, idx, weight, 6)
    torch.testing.assert_close(pieces, whole, atol=1e-14, rtol=1e-12)  # sums in another order


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
    [
        lambda a, b: reference.knn(a, b, 8),
        reference.chamfer_distance,
        lambda a, b: reference.ball_query(a, b, 0.1, 8),
    ],
    ids=["knn", "chamfer_distance", "ball_query"],
)
def test_no_tensor_grows_with_the_product_of_both_clouds(kernel):
    points, queries = make_cloud("random", 1, 4000, 0), make_cloud("random", 1, 1000, 1)
    with LargestTensor() as largest:
        kernel(points, queries)
    assert largest.numel <= reference._CPU_PIECE < 4000 * 1000


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("num_good", [0, 1, 7])
@pytest.mark.parametrize("num_points", [9, 21, 1025])
def test_without_the_check_non_finite_points_still_give_indices_in_range(num_points, num_good, value):
    # what an accelerator does, where nothing may wait for a look at the data
    planes = make_cloud("random", 2, num_points).permute(2, 0, 1).contiguous()
    queries = planes[:, :, :5].clone()
    planes[:, :, : num_points - num_good] = value
    found = (
        reference._farthest_point_sample(planes, 8, 0, False),
        reference._farthest_point_sample(planes, 8, 0, True),
        reference._knn(planes, queries, 2)[1],
    )
    assert all(idx.min() >= 0 and idx.max() < num_points for idx in found)


def test_a_raw_ball_query_of_clouds_without_points_finds_nothing():
    found = reference.ball_query(torch.zeros(2, 0, 3), torch.zeros(2, 4, 3), 0.5, 3)
    assert torch.equal(found, torch.zeros(2, 4, 3, dtype=torch.int64))
