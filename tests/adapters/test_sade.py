"""SADE against the definition with d x d matrices, in float64."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pcl_clora.adapters import attach_adapter
from pcl_clora.adapters.methods.sade import pair_similarities
from tests.support import adapter_cases as cases

FORMS = ["output", "input", "inner"]
EPS = 1e-3


def naive(left: Tensor, right: Tensor, form: str, normalized: bool, eps: float = EPS) -> Tensor:
    """The similarity of two d x d matrices as it is defined."""
    if form == "output":
        value = torch.linalg.matrix_norm(left.t() @ right) ** 2
    elif form == "input":
        value = torch.linalg.matrix_norm(left @ right.t()) ** 2
    else:
        value = (left * right).sum() ** 2
    if normalized:
        value = value / (torch.linalg.matrix_norm(left) ** 2 * torch.linalg.matrix_norm(right) ** 2 + eps)
    return value


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("normalized", [False, True])
@settings(max_examples=15, deadline=None)
@given(
    dim=st.integers(1, 9),
    rank=st.integers(1, 4),
    spaces=st.integers(2, 4),
    modules=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_it_equals_the_definition_with_the_same_gradient(
    form: str, normalized: bool, dim: int, rank: int, spaces: int, modules: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(dim, spaces, rank), (spaces, rank, dim), (modules, spaces, rank, rank)]
    ours = [torch.randn(s, dtype=torch.float64, generator=generator).requires_grad_() for s in shapes]
    theirs = [t.detach().clone().requires_grad_() for t in ours]

    values = pair_similarities(*ours, form, normalized=normalized, eps=EPS)
    down, up, cores = theirs
    expected = torch.stack(
        [
            torch.stack(
                [
                    naive(down[:, h] @ q[h] @ up[h], down[:, k] @ q[k] @ up[k], form, normalized)
                    for h, k in combinations(range(spaces), 2)
                ]
            )
            for q in cores
        ]
    )
    weights = torch.randn(values.shape, dtype=torch.float64, generator=generator)
    (values * weights).sum().backward()
    (expected * weights).sum().backward()

    torch.testing.assert_close(values, expected, rtol=1e-9, atol=1e-9)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-8, atol=1e-8)


LAYOUTS = [
    {"sharing": "global"},
    {"sharing": "per_role"},
    {"sharing": "none"},
    {"sharing": "all"},
    {"core": "diagonal"},
    {"core": "identity", "init": "up_zero"},
    {"tied": True},
    {"placement": "both"},
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize(("pairs", "modules"), [("mean", "mean"), ("sum", "sum"), ("mean", "sum")])
def test_the_loss_of_a_model_is_its_weight_times_the_definition(
    layout: dict[str, object], form: str, normalized: bool, pairs: str, modules: str
) -> None:
    sade = {
        "weight": 0.5,
        "form": form,
        "normalized": normalized,
        "pairs": pairs,
        "modules": modules,
        "eps": EPS,
    }
    base = cases.make_backbone("bare").double()
    model = attach_adapter(base, {"method": "clora", "rank": 2, "num_spaces": 3, "sade": sade, **layout})
    cases.shake(model, size=0.5)
    lrms = model.method._lrms
    expected = torch.zeros((), dtype=torch.float64)
    for lrm in lrms:
        parts = []
        for h in range(3):
            only = torch.zeros(6, 6, dtype=torch.float64)
            only[2 * h : 2 * h + 2, 2 * h : 2 * h + 2] = torch.eye(2)
            parts.append(lrm.used_spaces.down @ only @ lrm.used_core.times(lrm.used_spaces.stacked_up()))
        values = torch.stack([naive(a, b, form, normalized) for a, b in combinations(parts, 2)])
        expected = expected + (values.mean() if pairs == "mean" else values.sum())
    expected = expected / len(lrms) if modules == "mean" else expected

    loss = model.extra_losses()["sade"]
    planned = [p for p in model.parameters() if p.requires_grad]
    ours = torch.autograd.grad(loss, planned, allow_unused=True)
    theirs = torch.autograd.grad(0.5 * expected, planned, allow_unused=True)

    torch.testing.assert_close(loss, 0.5 * expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(model.extra_loss_values()["sade"], expected, rtol=1e-10, atol=1e-12)
    assert [g is None for g in ours] == [g is None for g in theirs]
    for one, other in zip(ours, theirs, strict=True):
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-10)


def test_the_gradient_of_the_plain_form_is_zero_at_the_start() -> None:
    model = attach_adapter(cases.make_backbone("bare"), {"method": "clora"})
    core = model.method._lrms[0].used_core.weight

    model.extra_losses()["sade"].backward()

    assert torch.count_nonzero(core.grad) == 0


def test_the_normalized_form_does_not_shrink_with_the_weights() -> None:
    model = attach_adapter(
        cases.make_backbone("bare").double(),
        {"method": "clora", "sade": {"normalized": True, "eps": 1e-30}},
    )
    cases.shake(model)
    before = model.extra_loss_values()["sade"]
    with torch.no_grad():
        for lrm in model.method._lrms:
            lrm.used_core.weight.mul_(0.1)

    torch.testing.assert_close(model.extra_loss_values()["sade"], before, rtol=1e-9, atol=0)


@pytest.mark.parametrize(
    ("settings", "losses", "values"),
    [
        ({}, {"sade"}, {"sade"}),
        ({"sade": {"weight": 0}}, set(), {"sade"}),
        ({"num_spaces": 1}, set(), set()),
        ({"core": "full", "sade": {"weight": 0}}, set(), set()),
    ],
    ids=str,
)
def test_it_is_reported_where_there_are_pairs_and_trained_where_it_weighs(
    settings: dict[str, object], losses: set[str], values: set[str]
) -> None:
    model = attach_adapter(cases.make_backbone("bare"), {"method": "clora", **settings})

    assert set(model.extra_losses()) == losses
    assert set(model.extra_loss_values()) == values
    assert not any(value.requires_grad for value in model.extra_loss_values().values())


def test_training_on_it_alone_makes_the_spaces_less_alike() -> None:
    model = attach_adapter(
        cases.make_backbone("bare"), {"method": "clora", "sade": {"weight": 1.0, "normalized": True}}
    )
    cases.shake(model)
    before = model.extra_loss_values()["sade"]
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(20):
        optimizer.zero_grad()
        model.extra_losses()["sade"].backward()
        optimizer.step()

    assert model.extra_loss_values()["sade"] < 0.5 * before
