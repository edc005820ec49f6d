"""Maxima over points and tokens: values, gradients, and what they keep for their backward pass."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from pcl_clora.models.layers import maximum, product
from pcl_clora.models.layers.maximum import max_of_linear, max_over_group, max_over_tokens
from pcl_clora.models.layers.product import Linear


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def plain(layer, rows, k):
    """As it is written in the published code."""
    return F.linear(rows, layer.weight, layer.bias).view(-1, k, len(layer.weight)).max(dim=1).values


def difference(ours, theirs):
    return float((ours - theirs).abs().max()) / max(float(theirs.abs().max()), 1e-12)


def test_of_equal_points_the_first_one_gets_the_gradient_of_a_maximum():
    rows = torch.tensor([[1.0, 5.0], [3.0, 5.0], [3.0, 4.0], [2.0, 1.0]], requires_grad=True)
    found = max_over_group(rows, 2)
    found.backward(torch.tensor([[1.0, 2.0], [4.0, 8.0]]))
    assert torch.equal(found.detach(), torch.tensor([[3.0, 5.0], [3.0, 4.0]]))
    assert torch.equal(rows.grad, torch.tensor([[0.0, 2.0], [1.0, 0.0], [4.0, 8.0], [0.0, 0.0]]))


def test_the_maximum_of_patches_passes_gradients_of_second_order():
    rows = drawn(6, 4).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: max_over_group(x.square(), 3), rows)
    assert torch.autograd.gradgradcheck(lambda x: max_over_group(x.square(), 3), rows)


def test_the_maximum_over_tokens_keeps_places_for_its_gradient_and_not_the_sequence():
    tokens = torch.tensor([[[1.0, 5.0], [3.0, 5.0], [3.0, 2.0]]], requires_grad=True)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        found = max_over_tokens(tokens.square())
    found.sum().backward()
    assert torch.equal(found, max_over_tokens(tokens.detach().square()))
    of_the_first = torch.tensor([[[0.0, 10.0], [6.0, 0.0], [0.0, 0.0]]])
    assert torch.equal(tokens.grad, of_the_first)
    assert not any(tensor.is_floating_point() and tensor.shape == tokens.shape for tensor in kept[1:])


def test_gradients_of_the_maximum_over_tokens_are_those_of_differences():
    tokens = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: max_over_tokens(x.square()), tokens)
    assert torch.autograd.gradgradcheck(lambda x: max_over_tokens(x.square()), tokens)


def gradients(layer, rows, k, function, pull):
    layer, rows = copy.deepcopy(layer), rows.clone().requires_grad_()
    found = function(layer, rows, k)
    found.backward(pull)
    return [found.detach(), rows.grad, *(parameter.grad for parameter in layer.parameters())]


@settings(max_examples=25, deadline=None)
@given(
    st.integers(1, 5),
    st.sampled_from([1, 2, 7, 300]),
    st.integers(1, 9),
    st.integers(1, 9),
    st.booleans(),
    st.sampled_from([1, 2, 128]),
    st.integers(0, 99),
)
def test_the_maximum_of_a_layer_has_the_gradients_of_the_published_form(
    patches, k, width, channels, has_bias, at_a_time, seed
):
    torch.manual_seed(seed)
    layer = Linear(width, channels, bias=has_bias).double()
    rows, pull = torch.randn(patches * k, width).double(), torch.randn(patches, channels).double()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(maximum, "PATCHES", at_a_time)
        ours = gradients(layer, rows, k, max_of_linear, pull)
    for found, expected in zip(ours, gradients(layer, rows, k, plain, pull), strict=True):
        assert difference(found, expected) < 1e-12


@pytest.mark.parametrize(
    "route",
    [
        "torch",
        pytest.param(
            "onednn",
            marks=pytest.mark.skipif(not product.has_onednn(), reason="this torch has no product of oneDNN"),
        ),
    ],
)
def test_in_float32_it_is_off_by_rounding_alone(route):
    torch.manual_seed(0)
    layer, rows, pull = Linear(256, 16), drawn(40 * 32, 256), drawn(40, 16, seed=1)
    values = F.linear(rows.double(), layer.weight.double()).view(40, 32, 16).topk(2, dim=1).values
    assert float((values[:, 0] - values[:, 1]).min()) > 1e-5  # or rounding would choose the row
    with product.use_route(route):
        ours = gradients(layer, rows, 32, max_of_linear, pull)
        again = gradients(layer, rows, 32, max_of_linear, pull)
    expected = gradients(layer.double(), rows.double(), 32, plain, pull.double())
    assert all(torch.equal(first, second) for first, second in zip(ours, again, strict=True))
    for found, exact in zip(ours, expected, strict=True):
        assert difference(found, exact.float()) < 2e-6


def test_the_maximum_of_a_layer_does_not_depend_on_the_number_of_threads():
    layer, rows, pull = Linear(64, 48), drawn(200 * 16, 64), drawn(200, 48, seed=1)
    before = torch.get_num_threads()
    found = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(gradients(layer, rows, 16, max_of_linear, pull)[1:])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_gradients_of_second_order_are_those_of_differences():
    torch.manual_seed(0)
    layer = Linear(3, 4).double()

    def of_all(rows, weight, bias):
        twin = copy.deepcopy(layer)
        del twin.weight, twin.bias
        twin.weight, twin.bias = weight, bias
        return max_of_linear(twin, rows.square(), 3)

    given = [drawn(6, 3).double().requires_grad_(), *layer.parameters()]
    assert maximum._adds_up(layer, given[0])
    assert torch.autograd.gradcheck(of_all, given)
    assert torch.autograd.gradgradcheck(of_all, given)


@pytest.mark.parametrize("k", [3, 300])
def test_the_operators_are_what_torch_expects_of_them(k):
    rows, weight, bias = drawn(2 * k, 5), drawn(4, 5, seed=1), drawn(4, seed=2)
    leaves = [tensor.requires_grad_() for tensor in (rows, weight, bias)]
    torch.library.opcheck(torch.ops.pcl_clora.max_of_linear, (*leaves, k))
    places = torch.ops.pcl_clora.max_of_linear(rows, weight, bias, k)[1]
    pull = drawn(2, 4, seed=3).requires_grad_()
    torch.library.opcheck(torch.ops.pcl_clora.max_of_linear_rows, (pull, places, weight, k))
    torch.library.opcheck(torch.ops.pcl_clora.max_of_linear_weight, (pull, places, rows))


def test_of_equal_rows_the_first_one_gets_the_gradient_of_a_layer():
    layer, rows = Linear(3, 4), drawn(1, 3).expand(5, 3).clone().requires_grad_()
    max_of_linear(layer, rows, 5).sum().backward()
    assert rows.grad[0].abs().sum() > 0
    assert not rows.grad[1:].any()


def test_what_is_not_finite_is_told():
    rows = drawn(6, 3)
    rows[1, 0] = torch.nan
    found = max_of_linear(Linear(3, 4), rows, 3)
    assert found[0].isnan().all()
    assert found[1].isfinite().all()


def test_it_runs_under_checkpointing():
    layer, rows = Linear(3, 4), drawn(6, 3)
    pull = drawn(3, 4, seed=1)
    expected = gradients(layer, rows, 2, max_of_linear, pull)
    again = gradients(
        layer, rows, 2, lambda *given: checkpoint(max_of_linear, *given, use_reentrant=False), pull
    )
    assert all(torch.equal(one, other) for one, other in zip(expected, again, strict=True))


def test_the_bits_are_those_without_a_gradient():
    layer, rows = Linear(64, 48), drawn(40 * 32, 64)
    with torch.no_grad():
        expected = max_of_linear(layer, rows, 32)
    assert torch.equal(max_of_linear(layer, rows, 32).detach(), expected)


@pytest.mark.parametrize("trained", ["rows", "weight", "bias"])
def test_what_is_not_trained_gets_no_gradient(trained):
    layer, rows = Linear(3, 4), drawn(6, 3)
    tensors = {"rows": rows, "weight": layer.weight, "bias": layer.bias}
    for name, tensor in tensors.items():
        tensor.requires_grad_(name == trained)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.shape) or t, lambda t: t):
        found = max_of_linear(layer, rows, 2)
    found.sum().backward()
    assert (rows.shape in kept) == (trained == "weight")  # what nothing needs is not kept
    assert {name for name, tensor in tensors.items() if tensor.grad is not None} == {trained}


def test_the_result_of_the_layer_is_not_kept():
    layer, rows, kept = Linear(8, 16), drawn(40 * 32, 8).requires_grad_(), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        max_of_linear(layer, rows, 32)
    assert sorted(tuple(tensor.shape) for tensor in kept) == [(16, 8), (40, 16), (1280, 8)]


@pytest.mark.parametrize("kind", ["another class", "a hook", "autocast", "no gradient", "no rows", "vmap"])
def test_elsewhere_the_layer_is_called_as_it_is(kind):
    class Other(Linear):
        pass

    layer = Other(3, 4) if kind == "another class" else Linear(3, 4)
    rows = drawn(0 if kind == "no rows" else 6, 3)
    called = []
    if kind == "a hook":
        layer.register_forward_hook(lambda *_: called.append(1))
    if kind == "no gradient":
        layer.requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16, enabled=kind == "autocast"):
        if kind == "vmap":
            found = torch.vmap(lambda x: max_of_linear(layer, x, 2))(rows[None])[0]
        else:
            assert not maximum._adds_up(layer, rows)
            found = max_of_linear(layer, rows, 2)
    exact = plain(layer, rows, 2) if len(rows) else torch.empty(0, 4)
    assert torch.allclose(found.float(), exact, atol=1e-2 if kind == "autocast" else 1e-6)
    assert called == ([1] if kind == "a hook" else [])
