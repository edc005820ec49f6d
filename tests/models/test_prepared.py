"""What is kept of weights: made once, made anew when a weight changes, invisible to copies and files."""

import copy
import pickle

import pytest
import torch
from torch import nn

from pcl_clora.adapters import attach_adapter
from pcl_clora.errors import UserValueError
from pcl_clora.models import create_model, parse_model_config, published_form
from pcl_clora.models.layers import product
from pcl_clora.models.layers.prepared import Prepared
from pcl_clora.models.layers.product import Linear
from pcl_clora.models.layers.transformer import Mlp, PatchEncoder, affine_parts, attend
from tests.support.model_cases import TINY

ONEDNN = pytest.param(
    "onednn",
    marks=pytest.mark.skipif(not product.has_onednn(), reason="this torch has no product of oneDNN"),
)
ROUTES = ["torch", ONEDNN]


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def difference(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


def encoder():
    """A patch encoder whose norms are no identities."""
    torch.manual_seed(0)
    made = PatchEncoder(24, (8, 12, 16), chunk=3)
    for norm in (made.norm1, made.norm2):
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2.0)
    return made.eval()


def published(model, *inputs):
    with published_form(model), product.use_route("torch"), torch.no_grad():
        return model(*inputs)


def load_other(model):
    model.load_state_dict({key: value + 1 for key, value in model.state_dict().items()})


def edit_in_place(model):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)


def replace_data(model):
    for parameter in model.parameters():
        parameter.data = parameter.data * 2


def train_norms(model):
    model.train()(drawn(2, 5, 6, 3, seed=3))
    model.eval()


def go_to_double_and_back(model):
    model.double().float()


def step(model):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model(drawn(1, 4, 6, 3, seed=4)).sum().backward()
    optimizer.step()


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    "change", [load_other, edit_in_place, replace_data, train_norms, go_to_double_and_back, step]
)
def test_a_changed_weight_is_seen(route, change):
    model, patches = encoder(), drawn(2, 7, 6, 3)
    with product.use_route(route):
        for grads in (torch.inference_mode, torch.no_grad):
            with grads():
                model(patches)
            change(model)
            with grads():
                assert difference(model(patches), published(model, patches)) < 1e-5


@pytest.mark.parametrize("route", ROUTES)
def test_folding_happens_once(route, monkeypatch):
    model, patches = encoder(), drawn(2, 7, 6, 3)
    calls = []
    from pcl_clora.models.layers import transformer

    fold = transformer.folded_linear
    monkeypatch.setattr(transformer, "folded_linear", lambda *layers: calls.append(0) or fold(*layers))
    with product.use_route(route), torch.no_grad():
        for _ in range(3):
            model(patches)
    assert len(calls) == 2


@pytest.mark.parametrize("chunk", [1, 2, 5, 100])
@pytest.mark.parametrize("route", ROUTES)
def test_the_size_of_a_chunk_changes_nothing_but_rounding(route, chunk):
    model, patches = encoder(), drawn(2, 7, 6, 3)
    with product.use_route(route), torch.no_grad():
        expected = model(patches)
        model.chunk = chunk
        assert difference(model(patches), expected) < 1e-6


def test_a_chunk_of_nothing_is_refused():
    with pytest.raises(UserValueError, match="chunk=0"):
        PatchEncoder(24, chunk=0)


def test_no_tensor_of_all_points_is_made(monkeypatch):
    model, patches, rows = encoder(), drawn(4, 30, 6, 3), []
    monkeypatch.setattr(
        model.linear4, "forward", lambda x: rows.append(len(x)) or Linear.forward(model.linear4, x)
    )
    with torch.no_grad():
        model(patches)
    assert max(rows) == 3 * 6


def test_copies_and_pickles_are_independent():
    model, patches = encoder(), drawn(2, 7, 6, 3)
    with torch.no_grad():
        expected = model(patches)
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(twin(patches), expected)
            edit_in_place(twin)
            assert not torch.equal(twin(patches), expected)
        assert torch.equal(model(patches), expected)
    assert set(model.state_dict()) == set(encoder().state_dict())


def test_what_was_kept_without_gradient_serves_training():
    model, patches = encoder().requires_grad_(False), drawn(2, 7, 6, 3)
    head = nn.Linear(24, 2)
    with torch.inference_mode():
        model(patches)
    head(model(patches)).sum().backward()
    assert head.weight.grad is not None


def test_gradients_pass_a_patch_encoder_that_trains_in_evaluation_mode():
    model, patches = encoder(), drawn(2, 7, 6, 3)
    with torch.no_grad():
        model(patches)
    model(patches).sum().backward()
    twin = encoder()
    with published_form(twin), product.use_route("torch"):
        twin(patches).sum().backward()
    for (name, ours), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-4, rtol=1e-4), name


@pytest.mark.parametrize("route", ROUTES)
def test_gelu_in_the_product_is_the_exact_one(route):
    mlp, x = Mlp(48, 192), drawn(3, 5, 48)
    with product.use_route(route), torch.no_grad():
        expected = mlp.fc2(nn.functional.gelu(mlp.fc1(x)))
        assert difference(mlp(x), expected) < 1e-5


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("method", ["clora", "lora"])
def test_merging_and_unmerging_are_seen(route, method):
    model = create_model("point_mae", **TINY).eval()
    points = drawn(2, 64, 3)
    with product.use_route(route), torch.no_grad():
        bare = model(points)
        adapted = attach_adapter(model, {"method": method, "train": []}).eval()
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
        changed = adapted(points)
        for _ in range(2):
            adapted.merge()
            assert difference(adapted(points), changed) < 1e-5
            adapted.unmerge()
            assert torch.equal(adapted(points), changed)
        with adapted.disabled():
            assert difference(adapted(points), bare) < 1e-5


@pytest.mark.skipif(not product.has_onednn(), reason="this torch has no product of oneDNN")
def test_bfloat16_is_cast_once_and_near_to_that_of_torch():
    layer, x = Linear(64, 32), drawn(5, 64)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        with product.use_route("torch"):
            expected = layer(x)
        with product.use_route("onednn"):
            found = layer(x)
            assert found.dtype == torch.bfloat16
            assert difference(found.float(), expected.float()) < 0.01
            with torch.no_grad():
                layer.weight.mul_(2)
                layer.bias.mul_(2)
            assert difference(layer(x).float(), 2 * expected.float()) < 0.01


def test_parts_add_up_to_the_layer():
    linear, norm, x = Linear(10, 6), nn.BatchNorm1d(6).eval(), drawn(4, 10)
    nn.init.normal_(norm.running_mean)
    first, second = affine_parts(linear, norm, (3, 7), biased=1)
    assert first.bias is None
    assert torch.allclose(first(x[:, :3]) + second(x[:, 3:]), norm(linear(x)), atol=1e-6)


def test_tensors_that_cannot_be_watched_are_not_kept():
    prepared, made = Prepared(), []
    with torch.inference_mode():
        unwatched = torch.ones(2)
    for _ in range(2):
        prepared.get("x", (unwatched,), lambda: made.append(0))
    assert len(made) == 2


def test_the_chunk_is_a_setting_that_no_hash_knows_at_its_default():
    assert "encoder_chunk" not in parse_model_config({"name": "point_mae"}).model_dump()
    assert create_model("point_mae", **TINY, encoder_chunk=5).patch_embed.chunk == 5
    with pytest.raises(ValueError, match="encoder_chunk"):
        create_model("point_mae", **TINY, encoder_chunk=0)


@pytest.mark.skipif(not product.has_onednn(), reason="this torch has no product of oneDNN")
@pytest.mark.parametrize(("rows", "above", "below"), [(40, 8, 24), (40, 24, 8), (7, 30, 20)])
def test_the_weight_gradient_is_right_whichever_matrix_is_turned(rows, above, below):
    gradient, x = drawn(rows, above), drawn(rows, below, seed=1)
    with product.use_route("onednn"):
        found = torch.ops.pcl_clora.linear_weight_gradient(gradient, x)
    assert found.is_contiguous()
    assert difference(found, gradient.t() @ x) < 2e-6


@pytest.mark.skipif(not product.has_onednn(), reason="this torch has no product of oneDNN")
def test_a_frozen_layer_trains_what_is_below_in_bfloat16():
    layer, gradients = Linear(64, 32).requires_grad_(False), []
    for route in ("torch", "onednn"):
        x = drawn(5, 64).requires_grad_()
        with product.use_route(route), torch.autocast("cpu", torch.bfloat16):
            layer(x).float().square().sum().backward()
        gradients.append(x.grad)
    assert difference(*gradients) < 0.02


@pytest.mark.parametrize("masked", [False, True])
def test_attention_in_bfloat16_is_that_of_float32(masked):
    q, k, v = (drawn(2, 3, 9, 16, seed=seed) for seed in range(3))
    mask = torch.ones(9, 9, dtype=torch.bool).tril() if masked else None
    found = attend(q.bfloat16(), k.bfloat16(), v.bfloat16(), mask)
    assert difference(found.float(), attend(q, k, v, mask)) < 0.02


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("training", [True, False])
def test_gradients_of_the_patch_encoder_are_those_of_the_published_form(route, training):
    model, patches = encoder().double().train(training), drawn(4, 5, 6, 3).double()
    twin = copy.deepcopy(model)
    with published_form(twin):
        twin(patches).square().sum().backward()
    with product.use_route(route):
        model.float()(patches.float()).square().sum().backward()
    for (name, ours), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert difference(ours.grad, theirs.grad.float()) < 1e-4 or float(theirs.grad.abs().max()) < 1e-9, (
            name
        )
