"""Methods that need only linear layers and norms, on an image transformer that timm made."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pcl_clora.adapters import attach_adapter
from pcl_clora.models import create_model
from tests.support import adapter_cases as cases

MERGEABLE = ["arc", "bitfit", "clora", "dora", "fact", "lora", "ssf", "vera"]
SETTINGS: list[dict[str, Any]] = [{"method": name} for name in MERGEABLE] + [
    {"method": "lora", "init": "pissa", "rank": 4, "rank_pattern": {"v": 2}},
    {"method": "fact", "form": "tk", "blocks": [-1]},
    {"method": "adapter", "form": "houlsby"},
    {"method": "adapter", "form": "pfeiffer"},
]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def base() -> nn.Module:
    pytest.importorskip("timm", reason="the library makes the transformer; pip install timm")
    torch.manual_seed(0)
    sizes = {"image_size": 16, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
    return create_model("timm/vit_tiny_patch16_224", num_classes=4, **sizes).double().eval()


def images() -> Tensor:
    return torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_it_starts_as_the_base_and_merges_into_it(base: nn.Module, settings: dict[str, Any]) -> None:
    model = attach_adapter(copy.deepcopy(base), settings)
    start = model(images())
    cases.shake(model)
    trained = model(images())

    assert torch.equal(start, base(images()))
    assert not torch.allclose(trained, start)
    if settings["method"] != "adapter":
        with model.merged():
            torch.testing.assert_close(model(images()), trained, rtol=1e-10, atol=1e-10)


def test_the_parallel_form_is_refused_because_its_blocks_run_in_one_step(base: nn.Module) -> None:
    with pytest.raises(TypeError, match="does not run in two steps"):
        attach_adapter(copy.deepcopy(base), {"method": "adapter"})
