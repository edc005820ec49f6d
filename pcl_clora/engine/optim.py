"""AdamW groups and the warm-up cosine of the published fine-tuning recipe."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from pcl_clora.engine.config import OptimConfig
from pcl_clora.errors import UserValueError


def learning_rate(epoch: float, cfg: OptimConfig) -> float:
    """Compute the learning rate of an epoch: a linear warm-up, then half a cosine.

    The published loops set the rate of epoch e from e - 1 (epochs 0 and 1 both run at lr_warmup) and run one
    epoch more than they say; `lag_epochs=1` reproduces their numbers.

    Args:
        epoch: 0-based; a fraction gives the curve between epochs.
        cfg: epochs, lr, lr_min, warmup_epochs, lr_warmup and lag_epochs are used.

    Returns:
        The rate; lr_min from `epochs` on.

    Source: Loshchilov and Hutter, SGDR, ICLR 2017; warm-up without shifting the cosine, as the released
        recipes.
    """
    at = max(epoch - cfg.lag_epochs, 0)
    if at < cfg.warmup_epochs:
        return cfg.lr_warmup + at * (cfg.lr - cfg.lr_warmup) / cfg.warmup_epochs
    if at >= cfg.epochs:
        return cfg.lr_min
    return cfg.lr_min + 0.5 * (cfg.lr - cfg.lr_min) * (1 + math.cos(math.pi * at / cfg.epochs))


def rate_at(epoch: int, batch: int, num_batches: int, cfg: OptimConfig) -> float:
    """Compute the learning rate of a step: that of its epoch, or with step_unit "step" of its own place."""
    return learning_rate(epoch if cfg.step_unit == "epoch" else epoch + batch / num_batches, cfg)


def decays(name: str, parameter: torch.Tensor, spared: Iterable[str] = ()) -> bool:
    """Tell whether weight decay applies to a parameter.

    Args:
        name: dotted name.
        parameter: the tensor; 1-D tensors (norms, biases) are spared, and so are 0-D ones.
        spared: further names; a wrapper's prefix before them does not matter.
    """
    if parameter.ndim <= 1 or name.endswith(".bias"):
        return False
    if "token" in ".".join(name.split(".")[-2:]):
        return False
    return not any(name == other or name.endswith("." + other) for other in spared)


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """List the parameters that training changes, by name; a shared one once."""
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Sort the trained parameters into one group with weight decay and one without.

    Args:
        model: parameters with requires_grad=False are left out; `no_weight_decay()`, where the model or the
            model inside an adapted model has it, names more that are spared.
        weight_decay: of the first group.

    Returns:
        Up to two groups with "params", "names" and "weight_decay"; an empty one is left out.

    Raises:
        ValueError: if nothing is trained.
    """
    listed = getattr(model, "no_weight_decay", None)
    spared: set[str] = listed() if callable(listed) else set()
    groups: dict[bool, dict[str, Any]] = {
        True: {"params": [], "names": [], "weight_decay": weight_decay},
        False: {"params": [], "names": [], "weight_decay": 0.0},
    }
    for name, parameter in trained_parameters(model).items():
        group = groups[decays(name, parameter, spared)]
        group["params"].append(parameter)
        group["names"].append(name)
    chosen = [group for group in groups.values() if group["params"]]
    if not chosen:
        raise UserValueError(
            "No parameter is trained (no requires_grad); look at the adapter's trainable plan."
        )
    return chosen


def build_optimizer(model: nn.Module, cfg: OptimConfig) -> torch.optim.AdamW:
    """Make AdamW over the trained parameters.

    Where torch has one, a fused kernel does the whole update: a quarter of the time on two CPU cores.
    """
    groups = parameter_groups(model, cfg.weight_decay)
    params = [{key: value for key, value in group.items() if key != "names"} for group in groups]
    fused = all(p.device.type in ("cpu", "cuda") for group in params for p in group["params"])
    return torch.optim.AdamW(params, lr=learning_rate(0, cfg), fused=fused, foreach=not fused)


def gradient_norm(parameters: Sequence[nn.Parameter]) -> torch.Tensor:
    """Return the norm of all gradients together, (), without waiting for the device."""
    return nn.utils.get_total_norm(
        [parameter.grad for parameter in parameters if parameter.grad is not None], foreach=True
    )


def step_if_finite(optimizer: torch.optim.Optimizer, loss: torch.Tensor, norm: torch.Tensor) -> None:
    """Do a step of an optimiser, or none and leave its state alone where loss or norm is not finite.

    The fused kernel decides that on the device, so that nobody waits; elsewhere both values are read.

    Args:
        optimizer: see `build_optimizer`.
        loss: ().
        norm: () of the gradient.
    """
    is_fine = loss.detach().isfinite() & norm.isfinite()
    if optimizer.defaults["fused"]:
        optimizer.found_inf = (~is_fine).float()  # type: ignore[attr-defined]
    elif not is_fine:
        return
    optimizer.step()
