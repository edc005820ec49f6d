"""The product of linear layers: equal on every route, differentiable, torch's own in captured graphs."""

import os
import subprocess
import sys
import threading

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from pcl_clora.errors import UserValueError
from pcl_clora.models import create_model
from pcl_clora.models.layers import product
from pcl_clora.models.layers.product import Linear
from tests.support.model_cases import TINY

OP = torch.ops.pcl_clora.linear
ROUTES = [
    pytest.param(
        name,
        marks=pytest.mark.skipif(
            name == "onednn" and not product.has_onednn(), reason="this torch has no product of oneDNN"
        ),
    )
    for name in product.ROUTES
]


def drawn(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def difference(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("shape", [(7,), (5, 7), (2, 9, 64), (3, 0, 8), (2, 3, 4, 5)], ids=str)
@pytest.mark.parametrize("with_bias", [True, False])
def test_every_route_gives_the_plain_product(route, shape, with_bias):
    x, weight = drawn(*shape), drawn(33, shape[-1], seed=1)
    bias = drawn(33, seed=2) if with_bias else None
    with product.use_route(route):
        found = product.linear(x, weight, bias)
    assert found.shape == (*shape[:-1], 33)
    if found.numel():
        assert (
            difference(
                found.double(), F.linear(x.double(), weight.double(), None if bias is None else bias.double())
            )
            < 2e-6
        )


@pytest.mark.parametrize("route", ROUTES)
def test_gradients_are_those_of_the_plain_product(route):
    leaves = [drawn(4, 33, 48), drawn(96, 48, seed=1), drawn(96, seed=2)]
    upper = drawn(4, 33, 96, seed=3)
    ours = [leaf.clone().requires_grad_() for leaf in leaves]
    with product.use_route(route):
        product.linear(*ours).backward(upper)
    plain = [leaf.double().requires_grad_() for leaf in leaves]
    F.linear(*plain).backward(upper.double())
    assert max(difference(a.grad.double(), b.grad) for a, b in zip(ours, plain, strict=True)) < 3e-6


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("make", [lambda g: g.expand(6, 5, 8), lambda g: g.expand(5, 6, 8).transpose(0, 1)])
def test_gradients_that_are_views_are_taken(route, make):
    x = drawn(6, 5, 12).requires_grad_()
    weight = drawn(8, 12, seed=1).requires_grad_()
    upper = make(drawn(1, 1, 8, seed=2))
    with product.use_route(route):
        product.linear(x, weight).backward(upper)
    assert difference(x.grad, upper @ weight.detach()) < 2e-6
    assert difference(weight.grad, upper.reshape(-1, 8).t() @ x.detach().reshape(-1, 12)) < 2e-6


@settings(deadline=None, max_examples=25)
@given(
    rows=st.integers(1, 40), inputs=st.integers(1, 70), outputs=st.integers(1, 70), seed=st.integers(0, 99)
)
def test_any_size_and_any_layout_of_the_weight_is_right(rows, inputs, outputs, seed):
    x, wide = drawn(rows, inputs, seed=seed), drawn(outputs, inputs + 3, seed=seed + 1)
    weight = wide[:, 3:] if seed % 2 else drawn(inputs, outputs, seed=seed + 2).t()
    for route in product.ROUTES if product.has_onednn() else ("torch",):
        with product.use_route(route):
            assert torch.allclose(product.linear(x, weight), x @ weight.t(), rtol=1e-5, atol=1e-5)


def test_first_and_second_derivatives_are_right():
    leaves = [
        drawn(*shape, seed=k, dtype=torch.float64).requires_grad_()
        for k, shape in enumerate(((2, 3, 4), (5, 4), (5,)))
    ]
    assert torch.autograd.gradcheck(OP, leaves)
    assert torch.autograd.gradgradcheck(OP, leaves)


@pytest.mark.parametrize("route", ROUTES)
def test_the_operator_is_registered_as_pytorch_asks(route):
    leaves = (drawn(2, 3, 8).requires_grad_(), drawn(6, 8).requires_grad_(), drawn(6).requires_grad_())
    with product.use_route(route):
        torch.library.opcheck(OP, leaves)
        torch.library.opcheck(torch.ops.pcl_clora.linear_weight_gradient, (drawn(2, 3, 6), drawn(2, 3, 8)))


def test_frozen_weights_get_no_gradient_and_keep_no_input():
    x, layer = drawn(3, 8).requires_grad_(), Linear(8, 4).requires_grad_(False)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(tuple(t.shape)) or t, lambda t: t):
        layer(x).sum().backward()
    assert (3, 8) not in kept
    assert layer.weight.grad is None
    assert x.grad is not None


@pytest.mark.parametrize("route", ROUTES)
def test_flops_are_counted(route):
    layer, x = Linear(8, 4), drawn(3, 8).requires_grad_()
    with product.use_route(route), FlopCounterMode(display=False) as counter:
        layer(x).sum().backward()
    assert counter.get_total_flops() == 3 * (2 * 3 * 8 * 4)


@pytest.mark.parametrize("route", ROUTES)
def test_a_captured_graph_holds_a_plain_linear(route):
    layer = Linear(8, 4)
    with product.use_route(route):
        program = torch.export.export(layer, (drawn(3, 8),))
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert called == ["aten.linear.default"]


@pytest.mark.parametrize("route", ROUTES)
def test_a_compiled_model_has_no_break(route):
    model = create_model("point_mae", **TINY).eval()
    points = drawn(2, 64, 3)
    with product.use_route(route), torch.no_grad():
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        assert difference(compiled(points), model(points)) < 1e-5


def test_autocast_multiplies_in_bfloat16():
    with torch.autocast("cpu", torch.bfloat16):
        assert Linear(8, 4)(drawn(3, 8)).dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_other_dtypes_are_multiplied_by_torch(dtype):
    x, weight = drawn(3, 8, dtype=torch.float64).to(dtype), drawn(4, 8, dtype=torch.float64).to(dtype)
    assert torch.equal(product.linear(x, weight), F.linear(x, weight))


def test_a_route_is_asked_for_by_name_and_only_inside_the_block():
    before = product.route()
    with product.use_route("torch"):
        assert product.route() == "torch"
        with product.use_route(""):
            assert product.route() == "torch"
    assert product.route() == before


def test_a_route_asked_for_in_one_thread_is_not_that_of_another():
    seen = []
    other = "onednn" if product.route() == "torch" and product.has_onednn() else "torch"
    with product.use_route(other):
        thread = threading.Thread(target=lambda: seen.append(product.route()))
        thread.start()
        thread.join()
    assert seen == [product.route()]


def test_unknown_and_missing_routes_are_refused_by_name(monkeypatch):
    with (
        pytest.raises(UserValueError, match=r"'mkl' is not known; use torch or onednn"),
        product.use_route("mkl"),
    ):
        pass
    monkeypatch.setattr(product, "has_onednn", lambda: False)
    with (
        pytest.raises(UserValueError, match=r"has no such product here; use torch"),
        product.use_route("onednn"),
    ):
        pass


@pytest.mark.slow
@pytest.mark.parametrize(
    ("value", "expected"), [("torch", "torch"), ("mkl", "PCL_CLORA_PRODUCT='mkl' is not known")]
)
def test_the_environment_names_a_route(value, expected):
    code = "from pcl_clora.models.layers import product; print(product.route())"
    environment = {**os.environ, "PCL_CLORA_PRODUCT": value}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert expected in done.stdout + done.stderr


def test_without_the_operator_of_onednn_torch_multiplies(monkeypatch):
    monkeypatch.setattr(product, "has_onednn", lambda: False)
    monkeypatch.setattr(product, "_found", {})
    monkeypatch.delenv(product.ENVIRONMENT, raising=False)
    assert product.route() == "torch"
    x, weight = drawn(3, 8), drawn(4, 8)
    assert torch.equal(product.linear(x, weight), F.linear(x, weight))


@pytest.mark.skipif(not product.has_onednn(), reason="this torch has no product of oneDNN")
@pytest.mark.parametrize(
    ("seconds", "expected"), [((2.0, 1.0), "onednn"), ((1.05, 1.0), "torch"), ((1.0, 2.0), "torch")]
)
def test_the_trial_takes_the_faster_one_and_torch_where_they_are_alike(monkeypatch, seconds, expected):
    clock, turns = [0.0], [0]

    def thread_time():
        turns[0] += 1
        if turns[0] % 2 == 0:
            clock[0] += seconds[(turns[0] // 2 - 1) % 2]
        return clock[0]

    monkeypatch.setattr(product.time, "thread_time", thread_time)
    choice = product._try(16)
    assert choice.route == expected
    assert choice.gflops["onednn"] * seconds[1] == pytest.approx(choice.gflops["torch"] * seconds[0])
