"""What every adapted layer is doing at the moment."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from pcl_clora.adapters.paths import tuner_layers
from pcl_clora.adapters.slot import Slot


@dataclass(frozen=True)
class LayerStatus:
    """One layer that carries adapters.

    Attributes:
        name: dotted path in the backbone.
        module_type: class of the layer underneath.
        available: adapters that have a delta here.
        active: the one that runs; None if the bare layer runs.
        merged: the one that is folded into the weight; None if none is.
        trainable: adapter -> parameters of its delta that require gradients, of those that it has.
        dtypes: dtypes of the deltas' parameters, by adapter.
        devices: their devices, by adapter.
    """

    name: str
    module_type: str
    available: tuple[str, ...]
    active: str | None
    merged: str | None
    trainable: dict[str, tuple[int, int]]
    dtypes: dict[str, tuple[str, ...]]
    devices: dict[str, tuple[str, ...]]


def layer_status(base: nn.Module, slots: list[Slot]) -> list[LayerStatus]:
    """Describe every layer that carries deltas, in the order of the backbone.

    What layers share (a method's own tensors) is in no layer; `parameter_counts` has it.
    """
    rows = []
    for path, tuner in tuner_layers(base).items():
        here = {
            slot.name: list(tuner.deltas[slot.key].parameters()) for slot in slots if slot.key in tuner.deltas
        }
        active = next((slot.name for slot in slots if slot.key == tuner.active), None)
        rows.append(
            LayerStatus(
                path,
                type(tuner.base_layer).__name__,
                tuple(here),
                active,
                active if tuner.is_merged else None,
                {
                    name: (sum(p.numel() for p in own if p.requires_grad), sum(p.numel() for p in own))
                    for name, own in here.items()
                },
                {name: tuple(sorted({str(p.dtype) for p in own})) for name, own in here.items()},
                {name: tuple(sorted({str(p.device) for p in own})) for name, own in here.items()},
            )
        )
    return rows
