"""Several adapters of one method as one: the weighted sum of their changes, exactly."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pcl_clora.adapters.base import AdapterMethod, AdapterStateError, Delta, TunerLayer
from pcl_clora.adapters.config import AdapterConfig
from pcl_clora.adapters.methods.lora import LoRAConfig
from pcl_clora.adapters.paths import at_or_inside, find_linears, tuner_layers
from pcl_clora.adapters.registry import build_method
from pcl_clora.errors import UserValueError
from pcl_clora.models.interface import ROLES, ModelInterface, Role

if TYPE_CHECKING:
    from pcl_clora.adapters.model import AdaptedModel

Factors = tuple[Tensor, Tensor]  # down (k, C_in) and up (C_out, k) of a change W' = W + up down, float64


def combine(model: AdaptedModel, weights: Mapping[str, float], name: str, head_of: str | None) -> None:
    """Attach the weighted sum of adapters to their model; see `AdaptedModel.combine_adapters`."""
    methods = {each: model.slot(each).method for each in weights}
    check_weights(weights, methods)
    donor = next(iter(weights)) if head_of is None else head_of
    if donor not in weights:
        raise UserValueError(f"head_of={donor!r} is not among the combined: {', '.join(weights)}.")
    slot, before = model.slot(donor), model.chosen
    states: dict[str, dict[str, Tensor]] = {}
    changes: list[tuple[float, dict[str, Factors]]] = []
    for each, factor in weights.items():
        with model.installed(each):
            states[each] = {key: value.clone() for key, value in model.adapter_state().items()}
            if not slot.method.linear:
                changes.append((factor, low_rank_changes(model.base, model.slot(each).key)))
    if slot.method.linear:
        config, low_rank = _same_settings(methods), dict[str, Tensor]()
    else:
        config, low_rank = as_lora(
            stacked(changes), whole_roles(model.base, model.interface), slot.method.config
        )
    method = build_method(config)
    method.from_file = True  # a sum of ranks may be more than a layer is wide
    makes_head = "head" in config.train and hasattr(model.base, "make_classifier")
    model.add_adapter(name, method, num_classes=slot.num_classes if makes_head else None)
    try:
        model.load_adapter_state(_sum(model, states, weights, donor, low_rank))
    except UserValueError:
        model.remove_adapter(name)
        model.set_active(before)
        raise


def _same_settings(methods: Mapping[str, AdapterMethod]) -> AdapterConfig:
    first = next(iter(methods.values())).config
    if any(method.config != first for method in methods.values()):
        raise UserValueError(f"Adapters of {first.method} can be combined only with the same settings.")
    # As released, ssf starts at random; the form that starts at nothing has the same tensors.
    return first.model_copy(update={"mode": "corrected"}) if hasattr(first, "mode") else first


def _sum(
    model: AdaptedModel,
    states: Mapping[str, Mapping[str, Tensor]],
    weights: Mapping[str, float],
    donor: str,
    low_rank: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Make the tensors of the new adapter, which is active and changes nothing yet."""
    neutral, parts = model.adapter_state(), model.interface.parts
    if low_rank:
        own = {key: value for key, value in states[donor].items() if key.startswith("model.")}
        return {**{key: torch.zeros_like(value) for key, value in neutral.items()}, **own, **low_rank}
    kept = tuple(f"model.{path}" for part in ("head", "tokens") for path in parts.get(part, ()))
    own = {key: value for key, value in states[donor].items() if at_or_inside(key, kept)}
    return {**weighted(states, weights, neutral, kept), **own}


def check_weights(weights: Mapping[str, float], methods: Mapping[str, AdapterMethod]) -> None:
    """Refuse what cannot be combined.

    Args:
        weights: name of an adapter -> its factor.
        methods: the same names -> method.

    Raises:
        ValueError: if there is none, a factor is not finite, or the adapters are of several methods.
        AdapterStateError: if the method does not merge, so that its change is no sum.
    """
    if not weights:
        raise UserValueError('Nothing to combine: give names and factors, such as {"a": 0.7, "b": 0.3}.')
    for name, factor in weights.items():
        if isinstance(factor, bool) or not isinstance(factor, int | float) or not math.isfinite(factor):
            raise UserValueError(f"The factor of adapter {name!r} is {factor!r}; give a finite number.")
    kinds = {name: method.config.method for name, method in methods.items()}
    if len(set(kinds.values())) > 1:
        listed = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
        raise UserValueError(f"Only adapters of one method can be combined, not {listed}.")
    first = next(iter(methods.values()))
    if not first.mergeable:
        raise AdapterStateError(
            f"{first.config.method} does not fold into weights, so its adapters have no sum; route "
            "samples to each with model(points, adapters=[...]) instead."
        )


def low_rank_changes(base: nn.Module, key: str) -> dict[str, Factors]:
    """Write the changes of one adapter as low-rank updates of the layers' weights: path -> factors.

    Args:
        base: the backbone with the adapter in place.
        key: of the adapter in the layers.

    Raises:
        AdapterStateError: if a change is none, for example one of a bias.
    """
    changes = {}
    for path, tuner in tuner_layers(base).items():
        if key not in tuner.deltas:
            continue
        changes[path] = low_rank_change(tuner, key, path)
    return changes


@torch.no_grad()
def low_rank_change(tuner: TunerLayer, key: str, path: str) -> Factors:
    """Write the change of one layer as a low-rank update, float64, on the CPU."""
    delta, layer = tuner.deltas[key], tuner.base_layer
    if not isinstance(delta, Delta) or not isinstance(layer, nn.Linear):
        raise AdapterStateError(
            f"The change at {path} is one of a {type(layer).__name__}, not of a linear layer, so it is no "
            "low-rank update."
        )
    return delta.low_rank(layer.weight.to("cpu", torch.float64))


def whole_roles(base: nn.Module, interface: ModelInterface) -> dict[str, tuple[Role, int]]:
    """Say which role and block a whole layer plays: path -> (role, index of the block)."""
    places: dict[str, tuple[Role, int]] = {}
    for role in (role for role in ROLES if role in interface.linears):  # no slices of a fused layer
        for site in find_linears(base, interface, role):
            places[site.path] = (role, site.block)
    return places


def as_lora(
    changes: Mapping[str, Factors], places: Mapping[str, tuple[Role, int]], like: AdapterConfig
) -> tuple[LoRAConfig, dict[str, Tensor]]:
    """Write low-rank updates as one LoRA adapter whose scale is 1.

    All places get the largest rank; what a place does not use is zero.

    Args:
        changes: path of a layer -> factors.
        places: path -> role and block, see `whole_roles`.
        like: what it trains besides is what these settings say.

    Returns:
        (settings, tensors by the names of its file).
    """
    rank = max(down.shape[0] for down, _ in changes.values())
    roles = tuple(dict.fromkeys(places[path][0] for path in changes))
    blocks = tuple(sorted({places[path][1] for path in changes}))
    all_blocks = {block for _, block in places.values()}
    config = LoRAConfig(
        rank=rank,
        alpha=float(rank),
        targets=roles,
        blocks=() if set(blocks) == all_blocks else blocks,
        train=like.train,
        freeze=like.freeze,
    )
    state = {}
    for path, (role, block) in places.items():
        if role not in roles or block not in blocks:
            continue
        if path in changes:
            down, up = changes[path]
            missing = rank - down.shape[0]
            state[f"layers.{path}.updates.{role}.down"] = nn.functional.pad(down, (0, 0, 0, missing))
            state[f"layers.{path}.updates.{role}.up"] = nn.functional.pad(up, (0, missing))
    return config, state


def stacked(parts: Sequence[tuple[float, Mapping[str, Factors]]]) -> dict[str, Factors]:
    """Add up low-rank updates with factors by putting them side by side; nothing is rounded but the factor.

    Args:
        parts: pairs of (factor, path -> factors of one adapter).
    """
    paths = dict.fromkeys(path for _, changes in parts for path in changes)
    result = {}
    for path in paths:
        here = [(factor, *changes[path]) for factor, changes in parts if path in changes]
        downs, ups = [down for _, down, _ in here], [factor * up for factor, _, up in here]
        result[path] = (torch.cat(downs), torch.cat(ups, dim=1))
    return result


def weighted(
    states: Mapping[str, Mapping[str, Tensor]],
    weights: Mapping[str, float],
    neutral: Mapping[str, Tensor],
    kept: tuple[str, ...],
) -> dict[str, Tensor]:
    """Add up states of a method whose change is linear in its tensors: neutral + sum of w (state - neutral).

    Args:
        states: name of an adapter -> its tensors by the names of its file.
        weights: name -> factor.
        neutral: the same tensors of an adapter that changes nothing.
        kept: names, and what is inside them, that are left as in `neutral`.
    """
    result = {}
    for key, start in neutral.items():
        if at_or_inside(key, kept) or not start.is_floating_point():
            result[key] = start
            continue
        exact = start.to(torch.float64)
        change = sum(
            (factor * (states[name][key].to(torch.float64) - exact) for name, factor in weights.items()),
            torch.zeros_like(exact),
        )
        result[key] = (exact + change).to(start)
    return result
