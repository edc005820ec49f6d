import pytest
import torch

from pcl_clora import ops
from pcl_clora.ops import reference


def make_inputs(batch=2, known=6, targets=9, channels=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(batch, known, channels, generator=generator, dtype=dtype)
    idx = torch.randint(0, known, (batch, targets, 3), generator=generator)
    weight = torch.rand(batch, targets, 3, generator=generator, dtype=dtype)
    return features, idx, weight


def test_interpolation_gives_the_published_result_and_gradient(pointnet2):
    features = pointnet2["tint_features"].transpose(1, 2).requires_grad_()
    blended = ops.three_interpolate(features, pointnet2["tnn_idx"].long(), pointnet2["tint_weight"])
    blended.backward(pointnet2["tint_grad_out"].transpose(1, 2))
    # float32 sums of 3 products, and of about 11 for the gradient, in another order
    torch.testing.assert_close(blended.transpose(1, 2), pointnet2["tint_out"], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(
        features.grad.transpose(1, 2), pointnet2["tint_grad_features"], atol=5e-6, rtol=1e-6
    )


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 6, 9, 4), (3, 2, 5, 33)])
def test_interpolation_equals_a_dense_matrix_product(shape):
    features, idx, weight = make_inputs(*shape)
    one_hot = torch.nn.functional.one_hot(idx, shape[1]).double()
    expected = torch.einsum("bnj,bnjm,bmc->bnc", weight, one_hot, features)
    torch.testing.assert_close(ops.three_interpolate(features, idx, weight), expected, atol=1e-14, rtol=1e-12)


def test_interpolation_has_the_right_gradients_of_first_and_second_order():
    features, idx, weight = make_inputs()
    inputs = (features.requires_grad_(), idx, weight.requires_grad_())
    assert torch.autograd.gradcheck(ops.three_interpolate, inputs)
    assert torch.autograd.gradgradcheck(ops.three_interpolate, inputs)


@pytest.mark.parametrize("budget", [1, 5, 20])
def test_cutting_the_gradient_into_pieces_changes_nothing(monkeypatch, budget):
    _, idx, weight = make_inputs()
    grad = torch.randn(2, 9, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    whole = torch.ops.pcl_clora.three_interpolate_backward(grad, idx, weight, 6)
    monkeypatch.setattr(reference, "_CPU_PIECE", budget)
    pieces = torch.ops.pcl_clora.three_interpolate_backward(grad, idx, weight, 6)
    torch.testing.assert_close(pieces, whole, atol=1e-14, rtol=1e-12)  # sums in another order


def test_interpolation_at_the_known_points_returns_their_features():
    points = torch.rand(2, 30, 3, generator=torch.Generator().manual_seed(0))
    features = torch.randn(2, 30, 5, generator=torch.Generator().manual_seed(1))
    dist2, idx = ops.three_nn(points, points)
    closeness = 1 / (dist2.sqrt() + 1e-8)
    blended = ops.three_interpolate(features, idx, closeness / closeness.sum(-1, keepdim=True))
    torch.testing.assert_close(blended, features, atol=1e-5, rtol=0)  # 1e-8 beside distances of about 0.1


@pytest.mark.parametrize(("batch", "targets"), [(0, 4), (2, 0)])
def test_interpolation_of_nothing_is_empty(batch, targets):
    features, idx, weight = make_inputs(max(batch, 1), targets=max(targets, 1))
    features, idx, weight = features[:batch].requires_grad_(), idx[:batch, :targets], weight[:batch, :targets]
    blended = ops.three_interpolate(features, idx, weight)
    blended.sum().backward()
    assert blended.shape == (batch, targets, 4)
    assert torch.equal(features.grad, torch.zeros_like(features))
