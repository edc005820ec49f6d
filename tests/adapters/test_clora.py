"""CLoRA against formulas written without its code: counts, special cases, rank, merged weights, cost."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from pcl_clora.adapters import AdaptedModel, CLoRAConfig, attach_adapter
from pcl_clora.adapters.methods.clora import CLoRADelta
from pcl_clora.adapters.paths import tuner_layers
from pcl_clora.config import ConfigError
from tests.support import adapter_cases as cases

DIM = 16
QKV, FC1 = "layers.0.attention.mix_in", "layers.0.ffn.0"


def make(**settings: object) -> AdaptedModel:
    """A float64 backbone with CLoRA whose tensors are all away from zero."""
    settings = {"rank": 3, "num_spaces": 2, **settings}
    if settings.get("core") == "full":
        settings["sade"] = {"weight": 0}
    base = cases.make_backbone("bare").double()
    return cases.shake(attach_adapter(base, {"method": "clora", **settings}), size=0.3)


Tensors = tuple[Tensor, Tensor, Tensor | None, Tensor | None]


def tensors_of(model: AdaptedModel, path: str, place: str = "input") -> Tensors:
    """(D, U, Q, bias) as they lie in the adapter's file, for one place."""
    state = {k: v.clone().requires_grad_(v.is_floating_point()) for k, v in model.adapter_state().items()}
    prefix = f"layers.{path}.lrms.{place}."
    own = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
    shared = {k.removeprefix("method."): v for k, v in state.items() if k.startswith("method.")}
    group = "global" if "spaces.global.down" in shared else ("attention" if path == QKV else "ffn")
    down = own.get("spaces.down", shared.get(f"spaces.{group}.down"))
    up = own.get("spaces.up", shared.get(f"spaces.{group}.up"))
    core = own.get("core.weight", shared.get("core.weight"))
    return down, up if up is not None else down.t(), core, own.get("bias")


def update(down: Tensor, up: Tensor, core: Tensor | None, config: CLoRAConfig) -> Tensor:
    """Sum over h of D_h Q_h U_h, one space after the other."""
    if config.core == "full":
        return down @ core @ up
    total = torch.zeros(down.shape[0], up.shape[1], dtype=down.dtype)
    for h in range(config.num_spaces):
        part = slice(h * config.rank, (h + 1) * config.rank)
        q = torch.eye(config.rank, dtype=down.dtype) if core is None else core[h]
        total = total + down[:, part] @ (torch.diag(q) if q.dim() == 1 else q) @ up[part]
    return total


UNSHARED = {"sharing": "none", "core": "identity", "init": "up_zero", "num_spaces": 1}
ARC = {"tied": True, "core": "diagonal", "num_spaces": 1, "bias": True}
FORMS = [
    {},
    {"core": "diagonal"},
    {"core": "full"},
    {"core": "identity", "init": "up_zero"},
    {"sharing": "per_role"},
    {"sharing": "none"},
    {"sharing": "all"},
    UNSHARED,
    {"tied": True},
    ARC,
    {"num_spaces": 1},
    {"scale": 0.25, "bias": True},
]


@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("path", [QKV, FC1])
def test_an_update_on_the_input_is_the_sum_over_the_spaces(form: dict[str, object], path: str) -> None:
    model = make(**form)
    config, tuner = model.config, tuner_layers(model.base)[path]
    down, up, core, bias = tensors_of(model, path)
    x = torch.randn(3, 5, DIM, dtype=torch.float64)

    step = x @ update(down, up, core, config) + (0 if bias is None else bias)
    expected = tuner.base_layer(x + config.scale * step)

    torch.testing.assert_close(tuner(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_gradients_are_those_of_the_sum_over_the_spaces(form: dict[str, object]) -> None:
    model = make(**form)
    tuner, lrm = tuner_layers(model.base)[QKV], tuner_layers(model.base)[QKV].deltas["default"].at("input")
    down, up, core, bias = tensors_of(model, QKV)
    x = torch.randn(7, DIM, dtype=torch.float64)
    weights = torch.randn(7, 3 * DIM, dtype=torch.float64)

    step = x @ update(down, up, core, model.config) + (0 if bias is None else bias)
    (tuner.base_layer(x + model.config.scale * step) * weights).sum().backward()
    (tuner(x) * weights).sum().backward()

    pairs = [(lrm.used_spaces.down, down), (lrm.used_spaces.up, up), (lrm.bias, bias)]
    if core is not None:
        pairs.append((lrm.used_core.weight, core))
    compared = [
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-12, atol=1e-12)
        for own, other in pairs
        if own is not None and other.is_leaf
    ]
    assert len(compared) >= 2


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_the_merged_input_update_is_w_times_one_plus_delta_transposed(form: dict[str, object]) -> None:
    model = make(**form)
    tuner = tuner_layers(model.base)[FC1]
    weight, bias = tuner.base_layer.weight.clone(), tuner.base_layer.bias.clone()
    down, up, core, own_bias = tensors_of(model, FC1)
    delta = model.config.scale * update(down, up, core, model.config)
    eye = torch.eye(DIM, dtype=torch.float64)

    model.merge()

    torch.testing.assert_close(tuner.base_layer.weight, weight @ (eye + delta).t(), rtol=1e-12, atol=1e-12)
    shift = 0 if own_bias is None else model.config.scale * weight @ own_bias
    torch.testing.assert_close(tuner.base_layer.bias, bias + shift, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("sharing", ["global", "per_role", "none", "all"])
@pytest.mark.parametrize("roles", [["q"], ["v", "q"], ["q", "k", "v"], ["k"]], ids=str)
@pytest.mark.parametrize("bias", [False, True])
def test_an_update_beside_q_k_v_adds_to_their_rows_only(sharing: str, roles: list[str], bias: bool) -> None:
    model = make(placement="parallel", parallel_targets=roles, sharing=sharing, bias=bias, scale=0.5)
    tuner = tuner_layers(model.base)[QKV]
    x = torch.randn(3, 5, DIM, dtype=torch.float64)
    expected = tuner.base_layer(x).clone()
    for role in roles:
        down, up, core, own_bias = tensors_of(model, QKV, role)
        start = "qkv".index(role) * DIM
        step = x @ update(down, up, core, model.config) + (0 if own_bias is None else own_bias)
        expected[..., start : start + DIM] += 0.5 * step

    torch.testing.assert_close(tuner(x), expected, rtol=1e-12, atol=1e-12)


def test_with_both_placements_the_updates_beside_read_the_input_before_its_update() -> None:
    model = make(placement="both", parallel_targets=["v"])
    tuner = tuner_layers(model.base)[QKV]
    x = torch.randn(4, DIM, dtype=torch.float64)
    front = update(*tensors_of(model, QKV)[:3], model.config)
    beside = update(*tensors_of(model, QKV, "v")[:3], model.config)

    expected = tuner.base_layer(x + x @ front).clone()
    expected[:, 2 * DIM :] += x @ beside

    torch.testing.assert_close(tuner(x), expected, rtol=1e-12, atol=1e-12)


def test_one_diagonal_space_tied_is_arc() -> None:
    model = make(num_spaces=1, core="diagonal", tied=True, bias=True)
    tuner = tuner_layers(model.base)[QKV]
    state = model.adapter_state()
    projection = state["method.spaces.global.down"]
    diagonal = state[f"layers.{QKV}.lrms.input.core.weight"][0]
    shift = state[f"layers.{QKV}.lrms.input.bias"]
    x = torch.randn(4, DIM, dtype=torch.float64)

    adapted = (x @ projection) * diagonal @ projection.t() + shift + x

    assert "method.spaces.global.up" not in state
    torch.testing.assert_close(tuner(x), tuner.base_layer(adapted), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("settings", [{"num_spaces": 1}, {"core": "full"}], ids=str)
def test_one_space_or_a_full_core_is_fact_tt(settings: dict[str, object]) -> None:
    model = make(placement="parallel", parallel_targets=["v"], **settings)
    tuner = tuner_layers(model.base)[QKV]
    state = model.adapter_state()
    left, right = state["method.spaces.global.down"], state["method.spaces.global.up"]
    sigma = state[f"layers.{QKV}.lrms.v.core.weight"].view(left.shape[1], right.shape[0])
    x = torch.randn(4, DIM, dtype=torch.float64)

    expected = tuner.base_layer(x)[:, 2 * DIM :] + torch.einsum("ni,ia,ab,bo->no", x, left, sigma, right)

    torch.testing.assert_close(tuner(x)[:, 2 * DIM :], expected, rtol=1e-12, atol=1e-12)


def test_without_sharing_and_core_it_is_lora_beside_the_same_places() -> None:
    own = make(placement="parallel", parallel_targets=["q", "v"], **UNSHARED)
    lora = attach_adapter(cases.make_backbone("bare").double(), {"method": "lora", "rank": 3, "alpha": 3})
    state = {
        key.replace(".lrms.", ".updates.").replace(".spaces.", "."): value.t() if ".spaces." in key else value
        for key, value in own.adapter_state().items()
    }
    lora.load_adapter_state(state)
    points = cases.make_points().double()

    torch.testing.assert_close(own(points), lora(points), rtol=1e-12, atol=1e-12)
    assert own.parameter_counts() == lora.parameter_counts()


@pytest.mark.parametrize("spaces", [1, 2, 4])
@pytest.mark.parametrize("core", ["block", "diagonal", "full"])
def test_the_rank_of_an_update_is_at_most_spaces_times_rank(spaces: int, core: str) -> None:
    model = make(num_spaces=spaces, rank=3, core=core)

    ranks = {
        int(torch.linalg.matrix_rank(tuner.deltas["default"].at("input").delta_matrix()))
        for tuner in tuner_layers(model.base).values()
    }

    assert ranks == {3 * spaces}


@pytest.mark.parametrize(
    ("spaces", "adapter", "total"),
    [(1, 7_680, 0.276), (2, 15_360, 0.284), (4, 30_720, 0.299), (8, 61_440, 0.330), (12, 92_160, 0.360)],
)
def test_parameter_counts_on_point_mae(spaces: int, adapter: int, total: float) -> None:
    counts = attach_adapter(
        cases.full_size_without_values(), {"method": "clora", "num_spaces": spaces}
    ).parameter_counts()

    assert counts["adapter"] == adapter
    assert counts["head"] == 267_535
    assert counts["tokens"] == 768
    assert counts["trainable"] == adapter + 267_535 + 768
    assert counts["total"] == 22_093_327 + adapter
    assert round(counts["trainable"] / 1e6, 3) == total


@pytest.mark.parametrize(
    ("settings", "adapter"),
    [
        ({"method": "clora", "rank": 16}, 147_456),
        ({"method": "clora", "rank": 32}, 393_216),
        ({"method": "clora", "sharing": "per_role"}, 2 * 8 * 2 * 384 * 8 + 24 * 8 * 64),
        ({"method": "clora", "sharing": "all"}, 8 * (2 * 384 * 8 + 64)),
        ({"method": "clora", **UNSHARED}, 147_456),
        ({"method": "clora", **ARC}, 384 * 8 + 24 * (8 + 384)),
        ({"method": "lora"}, 147_456),
        ({"method": "linear_probe"}, 0),
        ({"method": "full"}, 0),
    ],
    ids=str,
)
def test_parameter_counts_of_other_settings_on_point_mae(settings: dict[str, object], adapter: int) -> None:
    assert attach_adapter(cases.full_size_without_values(), settings).parameter_counts()["adapter"] == adapter


@pytest.mark.parametrize(("dim", "depth", "adapter"), [(1024, 24, 155_648), (768, 12, 110_592)])
def test_parameter_counts_at_other_widths(dim: int, depth: int, adapter: int) -> None:
    with torch.device("meta"):
        model = cases.PlainTransformer(dim=dim, depth=depth)

    assert attach_adapter(model, {"method": "clora"}).parameter_counts()["adapter"] == adapter


class Shapes(TorchDispatchMode):
    """Collects the shapes of everything that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, tuple[int, ...]]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, tuple | list) else [result]:
            if isinstance(value, Tensor):
                self.seen.append((str(func), tuple(value.shape)))
        return result


@pytest.mark.parametrize("form", ["output", "input", "inner"])
def test_training_never_forms_a_matrix_as_wide_as_a_token_twice(form: str) -> None:
    model = make(sade={"form": form, "normalized": True}, placement="both")
    tuner = tuner_layers(model.base)[QKV]
    x = torch.randn(7, DIM, dtype=torch.float64, requires_grad=True)

    with Shapes() as shapes:
        (tuner(x).sum() + model.extra_losses()["sade"]).backward()

    assert len(shapes.seen) > 20
    assert not [entry for entry in shapes.seen if entry[1].count(DIM) > 1]


def test_an_input_update_adds_two_products_of_the_stacked_width() -> None:
    model = make(rank=2, num_spaces=3)
    tuner = tuner_layers(model.base)[QKV]
    x = torch.randn(7, DIM, dtype=torch.float64)

    with torch.no_grad(), Shapes() as shapes:
        tuner(x)

    products = [entry for entry in shapes.seen if "mm" in entry[0]]
    assert [shape for _, shape in products] == [(7, 6), (3, 2, DIM), (7, DIM), (7, 3 * DIM)]


def test_dropout_acts_in_training_only() -> None:
    model = make(dropout=0.5)
    tuner = tuner_layers(model.base)[QKV]
    x = torch.randn(7, DIM, dtype=torch.float64)
    expected = make()
    quiet = tuner_layers(expected.base)[QKV](x)

    assert torch.equal(tuner(x), quiet)
    tuner.train()
    assert not torch.equal(tuner(x), quiet)


def test_under_autocast_the_start_is_the_base_too() -> None:
    points = cases.make_points()
    base = cases.make_backbone("point_mae")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = base(points)
        adapted = attach_adapter(base, {"method": "clora", "placement": "both", "bias": True})

        assert torch.equal(adapted(points), expected)
        (adapted(points).float().sum() + adapted.extra_losses()["sade"]).backward()


def test_inputs_of_any_layout_give_the_same(generator: torch.Generator) -> None:
    tuner = tuner_layers(make(placement="both").base)[QKV]
    x = torch.randn(5, DIM, 3, dtype=torch.float64, generator=generator).transpose(1, 2)

    torch.testing.assert_close(tuner(x), tuner(x.contiguous()), rtol=1e-12, atol=1e-12)


def test_layers_hold_shared_spaces_without_registering_them() -> None:
    model = make()
    names = [name for name in model.state_dict() if ".spaces." in name]
    delta = tuner_layers(model.base)[QKV].deltas["default"]

    assert isinstance(delta, CLoRADelta)
    assert names == ["slots.default.method.spaces.global/.down", "slots.default.method.spaces.global/.up"]
    assert delta.at("input").used_spaces is model.method.spaces["global/"]


VALUES = {
    "rank": [1, 3],
    "num_spaces": [1, 2, 3],
    "placement": ["input", "parallel", "both"],
    "targets": [["qkv", "fc1"], ["proj"], ["fc1", "qkv", "proj"]],
    "parallel_targets": [["q", "v"], ["k", "proj"], ["q", "k", "v"]],
    "sharing": ["global", "per_role", "none", "all"],
    "core": ["block", "diagonal", "full", "identity"],
    "tied": [False, True],
    "init": ["core_zero", "up_zero"],
    "scale": [1.0, -0.5],
    "bias": [False, True],
    "sade": [{"weight": 0}, {"weight": 0.1, "form": "inner"}],
}
COMBINATIONS = st.fixed_dictionaries({name: st.sampled_from(values) for name, values in VALUES.items()})


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(values=COMBINATIONS)
def test_every_combination_of_settings_keeps_the_promises_or_is_refused(values: dict[str, object]) -> None:
    base, points = cases.make_backbone("bare").double(), cases.make_points(2).double()
    expected = base(points)
    try:
        model = attach_adapter(base, {"method": "clora", **values})
    except ConfigError:
        return
    start = model(points)
    cases.shake(model, size=0.3)
    (model(points).sum() + sum(model.extra_losses().values())).backward()

    adapted = model(points)
    with model.merged():
        merged = model(points)

    assert torch.equal(start, expected)
    assert not torch.allclose(adapted, expected)
    torch.testing.assert_close(merged, adapted, rtol=1e-10, atol=1e-10)
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


WRONG = [
    ({"targets": ["fc2"]}, "targets names fc2.*d x d.*qkv, fc1, proj"),
    ({"targets": ["q"]}, "targets names q"),
    ({"targets": []}, "targets is empty"),
    ({"targets": ["qkv", "qkv"]}, "qkv more than once"),
    ({"placement": "parallel", "parallel_targets": ["fc1"]}, "parallel_targets names fc1"),
    ({"placement": "parallel", "targets": ["fc1"]}, "targets has no effect"),
    ({"parallel_targets": ["k"]}, "parallel_targets has no effect"),
    ({"core": "identity"}, "no Q that could start at zero.*up_zero"),
    ({"core": "identity", "init": "up_zero", "sharing": "all"}, "none to share"),
    ({"core": "full"}, "SADE compares.*sade.weight=0"),
    ({"tied": True, "init": "up_zero"}, "U = D\\^T.*core_zero"),
    ({"scale": 0}, "scale=0"),
    ({"dropout": 1.0}, "dropout"),
    ({"rank": 0}, "rank"),
    ({"num_space": 3}, "did you mean 'num_spaces'"),
    ({"sade": {"form": "outer"}}, "sade.form"),
    ({"sade": {"weight": -1}}, "sade.weight"),
    ({"train": ["heads"]}, "train"),
    ({"train": ["head", "head"]}, "head more than once"),
]


@pytest.mark.parametrize(("settings", "message"), WRONG, ids=str)
def test_settings_that_cannot_work_say_why(settings: dict[str, object], message: str) -> None:
    base = cases.make_backbone("bare")
    before = list(base.state_dict())

    with pytest.raises(ConfigError, match=message):
        attach_adapter(base, {"method": "clora", **settings})

    assert list(base.state_dict()) == before
