"""ACT: Point-MAE's architecture under its own name, filled by ACT's files."""

import json

import numpy as np
import pytest
import torch

from pcl_clora.models import create_model, load_weights
from pcl_clora.models.backbones.point_mae.network import PointMAE
from tests.support.model_cases import TINY, assert_checkpoint_gives


@pytest.mark.shared_data
def test_an_official_pretrained_file_gives_the_golden_logits(shared, golden):
    archive = np.load(golden / "pointmae_cls_tiny.npz")
    file = shared / "fixtures" / "ckpt_act_pretrain_tiny.pth"
    report = assert_checkpoint_gives("act", file, archive, rest=("cls_head",))
    assert {name.split(".")[0] for name in report.missing} == {"head"}  # the file holds the class token


@pytest.mark.shared_data
def test_official_pretrained_keys_match_as_the_official_loader_does(shared):
    entries = json.loads((shared / "reference" / "keys" / "act_encoder.json").read_text())["keys"]
    state = {key: torch.zeros(entry["shape"]) for key, entry in entries.items()}
    report = load_weights(create_model("act", num_classes=15), state)
    assert (len(report.matched), len(report.missing), len(report.unexpected)) == (158, 16, 6)


def test_the_network_is_point_maes(points):
    act, point_mae = (create_model(name, num_classes=5, **TINY).eval() for name in ("act", "point_mae"))
    assert isinstance(act, PointMAE)
    act.load_state_dict(point_mae.state_dict())
    assert torch.equal(act(points), point_mae(points))
