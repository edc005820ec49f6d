"""The published schedule, the groups of AdamW and the moving average."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pcl_clora.adapters import attach_adapter, list_adapters
from pcl_clora.engine import OptimConfig, build_optimizer, learning_rate
from pcl_clora.engine.ema import WeightAverage
from pcl_clora.engine.optim import gradient_norm, parameter_groups, rate_at, step_if_finite
from pcl_clora.models import create_model
from tests.support.engine_cases import FITTING

SCHEDULES = {
    "lr_5e4_300_10": {"lr": 5e-4},
    "lr_2e5_300_10": {"lr": 2e-5},
    "lr_2e4_head_300_10": {"lr": 2e-4},
    "lr_5e4_150_10": {"lr": 5e-4, "epochs": 150},
    "lr_act_5e4_300_10_min1e7": {"lr": 5e-4, "lr_min": 1e-7},
    "seg_2e4_300_10": {"lr": 2e-4},
}
SIZES = {"embed_dim": 48, "depth": 2, "num_heads": 3, "num_groups": 16, "group_size": 8}


def tiny_model() -> nn.Module:
    return create_model("point_mae", num_classes=5, encoder_widths=(16, 32, 64), **SIZES)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_schedule_is_the_published_one(golden: Path, name: str) -> None:
    expected = np.load(golden / "schedule_augment.npz")[name]
    cfg = OptimConfig(lag_epochs=1, **SCHEDULES[name])
    rates = [learning_rate(epoch, cfg) for epoch in range(len(expected))]
    # the same formula in float64; one rounding of the sum of two numbers below 1e-3 stays under 1e-15
    np.testing.assert_allclose(rates, expected, rtol=0, atol=1e-15)


def test_without_lag_the_first_epoch_starts_the_warm_up_and_none_is_spent_twice() -> None:
    cfg = OptimConfig()
    assert learning_rate(0, cfg) == cfg.lr_warmup
    assert learning_rate(1, cfg) > cfg.lr_warmup
    assert learning_rate(10, cfg) < cfg.lr  # the cosine is not shifted by the warm-up
    assert learning_rate(cfg.epochs, cfg) == cfg.lr_min


def test_without_warm_up_the_first_rate_is_the_full_one() -> None:
    assert learning_rate(0, OptimConfig(warmup_epochs=0)) == 5e-4


@pytest.mark.parametrize("epoch", [0, 7, 10, 150])
def test_steps_run_along_the_curve_of_the_epochs(epoch: int) -> None:
    cfg = OptimConfig(step_unit="step")
    assert rate_at(epoch, 0, 4, cfg) == learning_rate(epoch, cfg)
    assert rate_at(epoch, 2, 4, cfg) == learning_rate(epoch + 0.5, cfg)
    assert rate_at(epoch, 2, 4, OptimConfig()) == learning_rate(epoch, OptimConfig())


def test_weight_decay_spares_biases_norms_and_the_class_token_only() -> None:
    model = tiny_model()
    decayed, spared = (set(group["names"]) for group in parameter_groups(model, 0.05))
    expected = {
        name
        for name, value in model.named_parameters()
        if value.ndim == 1 or name.endswith(".bias") or name == "prefix.token"
    }
    assert spared == expected
    assert "prefix.pos" in decayed  # decays in the published recipe: neither 1-D nor a token by name


@pytest.mark.parametrize("method", list_adapters())
def test_the_optimizer_holds_exactly_the_trained_parameters_once(method: str) -> None:
    model = attach_adapter(tiny_model(), {"method": method, **FITTING.get(method, {})})
    optimizer = build_optimizer(model, OptimConfig())
    held = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    trained = {id(parameter) for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(held) == len(trained)
    assert {id(parameter) for parameter in held} == trained


def test_the_class_token_of_an_adapter_is_spared_too() -> None:
    model = attach_adapter(tiny_model(), {"method": "lora"})
    groups = {group["weight_decay"]: group["names"] for group in parameter_groups(model, 0.05)}
    assert any(name.endswith("prefix.token") for name in groups[0.0])
    assert any(name.endswith("prefix.pos") for name in groups[0.05])


def test_a_model_without_trained_parameters_is_refused() -> None:
    with pytest.raises(ValueError, match="No parameter is trained"):
        build_optimizer(nn.Linear(2, 2).requires_grad_(False), OptimConfig())


def test_the_moving_average_follows_the_formula_and_gives_the_weights_back() -> None:
    model = nn.Linear(3, 2)
    average = WeightAverage(model, decay=0.75)
    expected = model.weight.detach().clone()
    with torch.no_grad():
        for _ in range(3):
            model.weight += 1.0
            average.update()
            expected = 0.75 * expected + 0.25 * model.weight
    live = model.weight.detach().clone()
    with average.applied():
        # lerp computes a + (1 - d)(b - a), the formula above in another order of float32 operations
        torch.testing.assert_close(model.weight.detach(), expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(model.weight, live)


def test_a_moving_average_of_decay_zero_follows_nothing() -> None:
    model = nn.Linear(3, 2)
    average = WeightAverage(model, decay=0.0)
    average.update()
    assert average.average == {}


@pytest.mark.parametrize("fused", [True, False])
def test_a_step_is_done_where_loss_and_gradient_are_finite_and_leaves_no_trace_elsewhere(fused: bool) -> None:
    def moved(guarded: bool, *bad: tuple[float, float]) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        parameter, unused = nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(1))
        optimizer = torch.optim.AdamW([parameter, unused], lr=0.1, fused=fused, foreach=not fused)
        for loss, factor in ((1.0, 1.0), *bad, (2.0, 1.0)):
            ours = torch.randn(3, 2, generator=generator) if factor == 1.0 else torch.full((3, 2), factor)
            parameter.grad = ours
            if guarded:
                step_if_finite(optimizer, torch.tensor(loss), gradient_norm([parameter, unused]))
            else:
                optimizer.step()
        return [parameter.detach(), *optimizer.state[parameter].values()]

    expected = moved(False)
    found = moved(True, (float("nan"), 0.5), (1.0, float("inf")), (float("inf"), float("nan")))
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
