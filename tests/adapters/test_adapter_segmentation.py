"""Adapters on part segmentation attach as in classification; the head is all behind the transformer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pcl_clora.adapters import (
    AdaptedModel,
    AdapterStateError,
    attach_adapter,
    list_adapters,
    load_adapter,
)
from pcl_clora.models import create_model
from tests.support.engine_cases import FITTING

SMALL = {
    "task": "part_segmentation",
    "num_parts": 7,
    "num_categories": 3,
    "embed_dim": 24,
    "depth": 3,
    "num_heads": 2,
    "num_groups": 12,
    "group_size": 8,
    "encoder_widths": (8, 16, 32),
    "propagation_widths": (20, 24),
    "segmentation_widths": (16, 12),
    "label_width": 6,
}
OWN = {"point_bert": {"encoder_dim": 16, "num_upsampled": (48, 24)}, "pointgpt_s": {"generator_depth": 1}}
PAIRS = [(name, method) for name in ("point_mae", "recon") for method in ("clora", "lora", "full")]
PAIRS += [
    ("point_bert", "clora"),
    ("pointgpt_s", "clora"),
    ("pointgpt_s", "full"),
    ("point_mae", "linear_probe"),
]
PAIRS += [("point_mae", name) for name in ("bitfit", "ssf", "dora", "vera", "fact", "arc")]
PAIRS += [(name, "ssf") for name in ("pointgpt_s", "recon", "point_bert")]
PAIRS += [("pointgpt_s", "bitfit"), ("pointgpt_s", "fact")]
PAIRS += [(name, "adapter") for name in ("point_mae", "pointgpt_s", "recon")]
PAIRS += [
    (name, method)
    for name in ("point_mae", "pointgpt_s", "recon")
    for method in ("vpt", "clora_geo", "pointgst", "point_peft")
]
PAIRS += [(name, "dapt") for name in ("point_mae", "pointgpt_s", "recon")]
STARTS_ELSEWHERE = ("vpt", "dapt", "point_peft")  # prompts, scales or adapters that are random at first
pytestmark = pytest.mark.parametrize(("name", "method"), PAIRS)


def settings(method: str) -> dict[str, object]:
    return {"method": method, **FITTING.get(method, {})}


def make_base(name: str) -> nn.Module:
    torch.manual_seed(2)  # at which no ReLU of dapt is closed for all tokens, as some are at 0
    return create_model(name, **{**SMALL, **OWN.get(name, {})}).eval()


def inputs() -> tuple[Tensor, Tensor]:
    points = torch.rand(4, 64, 3, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return points, torch.tensor([2, 0, 1, 0])


def train(model: AdaptedModel, steps: int = 3) -> AdaptedModel:
    model.train()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        (model(*inputs()).square().mean() + sum(model.extra_losses().values())).backward()
        optimizer.step()
    return model.eval()


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def test_before_the_first_step_it_computes_what_the_base_computes(name: str, method: str) -> None:
    base = make_base(name)
    expected = base(*inputs())
    same = torch.equal(attach_adapter(base, settings(method))(*inputs()), expected)
    assert same == (method not in STARTS_ELSEWHERE)


def test_training_changes_exactly_what_is_planned_and_saved(name: str, method: str) -> None:
    model = attach_adapter(make_base(name), settings(method))
    before = snapshot(model)
    train(model)
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == set(model.saved_names())
    head = {f"base.head.{key}" for key, _ in model.base.head.named_parameters()}
    assert head <= changed


def test_a_saved_adapter_gives_the_same_logits_on_the_same_base(
    name: str, method: str, tmp_path: Path
) -> None:
    model = train(attach_adapter(make_base(name), settings(method)))
    model.save_adapter(tmp_path / "adapter.safetensors")
    again = load_adapter(tmp_path / "adapter.safetensors", make_base(name)).eval()
    assert torch.equal(again(*inputs()), model(*inputs()))


def test_merging_changes_only_rounding(name: str, method: str) -> None:
    model = train(attach_adapter(make_base(name), settings(method)))
    expected = model(*inputs())
    if method in list_adapters(mergeable=False):
        with pytest.raises(AdapterStateError, match="cannot be merged"):
            model.merge()
        assert torch.equal(model(*inputs()), expected)
        return
    model.merge()
    torch.testing.assert_close(model(*inputs()), expected, atol=2e-5, rtol=1e-4)
    model.unmerge()
    assert torch.equal(model(*inputs()), expected)


def test_a_head_of_another_taxonomy_belongs_to_the_active_adapter(name: str, method: str) -> None:
    model = attach_adapter(make_base(name), settings(method))
    points, category = inputs()

    model.reset_classifier(5, num_categories=2)

    assert model(points, category.clamp_max(1)).shape == (4, 64, 5)
    model.set_active(None)
    assert model(points, category).shape == (4, 64, 7)


def test_another_adapter_has_a_head_with_parts_of_its_own(name: str, method: str) -> None:
    model = attach_adapter(make_base(name), settings(method), "first")
    first = model(*inputs())
    attach_adapter(model, {"method": "lora"}, "second", num_classes=9)
    assert model(*inputs()).shape == (4, 64, 9)
    model.set_active("first")
    assert torch.equal(model(*inputs()), first)
