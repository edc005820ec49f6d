"""ReCon: keys of its files, its plain sense, its own promises; golden outputs are in test_as_released.py."""

import json

import pytest
import torch

from pcl_clora.adapters import attach_adapter
from pcl_clora.models import create_model, load_weights
from pcl_clora.models.backbones.recon.network import ContrastBlock
from pcl_clora.models.interface import Backbone, Tokens, get_interface
from pcl_clora.report import count_cost
from tests.support import formulas
from tests.support.model_cases import (
    TINY,
    count,
    meta_model,
)


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("name", "keys", "matched", "missing", "unexpected"),
    [
        ("recon", "recon_pretrain", 306, 16, 57),
        ("recon", "recon_cls_scan", 322, 0, 0),
        ("recon_plain", "recon_pretrain", 158, 16, 205),
        ("act", "act_cls", 158, 16, 16),  # its head is for 40 classes and is left out as a whole
    ],
)
def test_official_key_lists_match_as_the_official_loaders_do(
    shared, name, keys, matched, missing, unexpected
):
    entries = json.loads((shared / "reference" / "keys" / f"{keys}.json").read_text())["keys"]
    state = {key: torch.zeros(entry["shape"]) for key, entry in entries.items()}
    report = load_weights(create_model(name, num_classes=15), state)
    assert (len(report.matched), len(report.missing), len(report.unexpected)) == (
        matched,
        missing,
        unexpected,
    )


@pytest.mark.parametrize(
    ("name", "classes", "expected"),
    [
        ("recon", 40, (43_577_640, 322)),
        ("recon", 15, (43_571_215, 322)),
        ("recon_plain", 15, (22_093_327, 174)),
        ("act", 40, (22_099_752, 174)),
    ],
)
def test_parameter_count_is_the_published_one(name, classes, expected):
    assert count(meta_model(name, num_classes=classes)) == expected


@pytest.mark.slow
def test_the_layers_of_the_published_form_multiply_as_often_as_published():
    macs = count_cost(create_model("recon", num_classes=40, num_groups=64), 1024)["macs"]
    assert round(macs["published"] / 1e9, 3) == 2.650


def test_the_block_follows_its_formula(generator):
    torch.manual_seed(0)
    block = ContrastBlock(24, 3, 4.0, 0.0).double().eval()
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    x, pos = torch.randn(2, 2, 11, 24, generator=generator).double()
    ours = block(x, pos, Tokens(x, pos, torch.zeros(2, 8, 3), 3))
    w = formulas.Weights(block.state_dict())
    theirs = torch.stack([formulas.contrast_block(w, one, 3) for one in x + pos])
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)


@pytest.mark.parametrize("detach", [False, True])
def test_the_tokens_send_gradients_into_the_patches_only_in_fine_tuning(generator, detach):
    block = ContrastBlock(24, 3, 4.0, 0.0, detach=detach)
    x = torch.randn(1, 7, 24, generator=generator, requires_grad=True)
    block(x, torch.zeros_like(x), Tokens(x, x, x, 3))[:, :3].sum().backward()
    assert bool((x.grad[:, 3:] == 0).all()) is detach


def test_the_contrast_branch_has_roles():
    model = create_model("recon", num_classes=5, **TINY)
    interface = get_interface(model)
    assert isinstance(model, Backbone)
    assert {r for r in interface.roles() if r.startswith("contrast")} == {
        "contrast_q", "contrast_kv", "contrast_proj", "contrast_fc1", "contrast_fc2",
    }  # fmt: skip
    site = interface.sites("contrast_kv")[2]
    assert (site.path, site.rows) == ("blocks.2.attn_contrast.kv", (0, -1))
    assert model.get_submodule(site.path).out_features == 96
    assert model.no_weight_decay() == {"prefix.cls.token", "prefix.img.token", "prefix.text.token"}


@pytest.mark.parametrize(
    ("roles", "size"),
    [
        (["contrast_q", "contrast_kv"], 3 * 2 * (48 + 48 + 48 + 96)),  # blocks x rank x (in + out)
        (["contrast_proj", "contrast_fc1", "contrast_fc2"], 3 * 2 * (96 + 240 + 240)),
    ],
)
def test_lora_adapts_the_contrast_branch(roles, size, points):
    base = create_model("recon", num_classes=5, **TINY).eval()
    expected = base(points)
    model = attach_adapter(base, {"method": "lora", "rank": 2, "targets": roles})
    assert model.parameter_counts()["adapter"] == size
    assert torch.equal(model(points), expected)
    model(points).sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)


def test_the_plain_sense_has_no_contrast_branch():
    interface = get_interface(create_model("recon_plain", num_classes=5, **TINY))
    assert not [role for role in interface.roles() if role.startswith("contrast")]


def test_reset_classifier_keeps_the_four_pooled_features(points):
    model = create_model("recon", num_classes=5, **TINY).eval()
    model.reset_classifier(7)
    assert model(points).shape == (2, 7)
    assert model.head[0].in_features == 4 * 48
