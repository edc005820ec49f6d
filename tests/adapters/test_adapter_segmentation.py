"""Heads of part segmentation: every adapter has its own, of another taxonomy if it says so."""

from __future__ import annotations

import pytest
import torch

from pcl_clora.adapters import attach_adapter
from tests.support import adapter_places as places
from tests.support.adapter_places import Place

PLACES = [Place(name, "part_segmentation") for name in ("point_mae", "recon", "point_bert", "pointgpt_s")]
pytestmark = [
    pytest.mark.parametrize("place", PLACES, ids=str),
    pytest.mark.parametrize("setting", ["clora", "full", "dapt"]),
]


def test_a_head_of_another_taxonomy_belongs_to_the_active_adapter(place: Place, setting: str) -> None:
    model = attach_adapter(places.make(place), places.settings_of(place, setting))
    points, category = places.inputs(place)

    model.reset_classifier(5, num_categories=2)

    assert model(points, category.clamp_max(1)).shape == (4, 96, 5)
    model.set_active(None)
    assert model(points, category).shape == (4, 96, 7)


def test_another_adapter_has_a_head_with_parts_of_its_own(place: Place, setting: str) -> None:
    model = attach_adapter(places.make(place), places.settings_of(place, setting), "first")
    first = model(*places.inputs(place))
    attach_adapter(model, {"method": "lora"}, "second", num_classes=9)
    assert model(*places.inputs(place)).shape == (4, 96, 9)
    model.set_active("first")
    assert torch.equal(model(*places.inputs(place)), first)
