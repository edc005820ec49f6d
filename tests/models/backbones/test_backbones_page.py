"""The page about backbones says what the code says."""

import re
from pathlib import Path

import pytest
import torch

from pcl_clora.adapters import attach_adapter
from pcl_clora.engine import load_run_config
from pcl_clora.models import build_model, list_models
from tests.support.model_cases import count, meta_model

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "backbones.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^\| `(\w+)` \|[^|]*\| ([\d,]+) \|", PAGE, re.MULTILINE))
TENSORS = dict(re.findall(r"^\| `(\w+)` \| (\d+) \|", PAGE, re.MULTILINE))


def test_every_backbone_for_clouds_has_a_row():
    assert sorted(ROWS) == [name for name in list_models() if name != "timm"]


@pytest.mark.parametrize("name", ROWS)
def test_parameters_are_those_of_the_network(name):
    assert count(meta_model(name, num_classes=15))[0] == int(ROWS[name].replace(",", ""))


def test_no_row_of_a_table_is_there_twice():
    rows = re.findall(r"^\| `(\w+)` \| \d+ \|", PAGE, re.MULTILINE)
    assert sorted(rows) == sorted(TENSORS)


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_of_pretraining_forms_are_those_of_the_network(name):
    assert count(meta_model(name, task="pretraining", num_groups=64))[1] == int(TENSORS[name])


@pytest.mark.parametrize("name", [name for name in ROWS if name not in ("point_mae", "point_mae_tiny")])
def test_every_backbone_has_a_config_with_the_published_sizes(name):
    cfg = load_run_config(ROOT / "cfgs" / "backbones" / f"{name}_clora.yaml")
    assert (cfg.model.name, cfg.data.num_points, cfg.model.num_groups) == (name, 2048, 128)
    with torch.device("meta"):
        model = build_model(cfg.model)
        adapted = attach_adapter(build_model(cfg.model), cfg.adapter)
    assert count(model)[0] == int(ROWS[name].replace(",", ""))
    m, d = 2 * cfg.model.depth, cfg.model.embed_dim
    assert adapted.parameter_counts()["adapter"] == 8 * (2 * d * 8 + m * 8 * 8)  # E (2 d r + m r^2)
