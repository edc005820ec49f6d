"""The page about backbones says what the code says."""

import re
from pathlib import Path

import pytest

from pcl_clora.models import list_models
from tests.models.model_cases import count, meta_model

PAGE = (Path(__file__).parents[2] / "docs" / "backbones.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| `(\w+)` \|[^|]*\| ([\d,]+) \|", PAGE, re.MULTILINE))
TENSORS = dict(re.findall(r"^\| `(\w+)` \| (\d+) \|", PAGE, re.MULTILINE))


def test_every_backbone_for_clouds_has_a_row():
    assert sorted(ROWS) == [name for name in list_models() if name != "timm"]


@pytest.mark.parametrize("name", ROWS)
def test_parameters_are_those_of_the_network(name):
    assert count(meta_model(name, num_classes=15))[0] == int(ROWS[name].replace(",", ""))


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_of_pretraining_forms_are_those_of_the_network(name):
    assert count(meta_model(name, task="pretraining", num_groups=64))[1] == int(TENSORS[name])
