"""What all tests share: the golden files, the optional shared folder, clouds made from a seed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from pcl_clora.models.layers import product
from tests.support.browsers import browser  # noqa: F401 - a fixture of all tests

GOLDEN = Path(__file__).parent / "golden"
SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault(
        product.ENVIRONMENT, product.route()
    )  # one for all processes: their bits are compared


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if "long" not in config.option.markexpr:  # `-m long` or `make test-long` asks for them
        left_out = [item for item in items if "long" in item.keywords]
        items[:] = [item for item in items if "long" not in item.keywords]
        config.hook.pytest_deselected(items=left_out)
    skip_shared = pytest.mark.skip(
        reason="needs the folder 'shared' beside the checkout (real data and full-size golden files)"
    )
    skip_cuda = pytest.mark.skip(reason="needs a CUDA device")
    for item in items:
        if "shared_data" in item.keywords and not SHARED.is_dir():
            item.add_marker(skip_shared)
        if "cuda" in item.keywords and not torch.cuda.is_available():
            item.add_marker(skip_cuda)


@pytest.fixture
def golden() -> Path:
    """Folder of the small golden files, part of the repository."""
    return GOLDEN


@pytest.fixture
def shared() -> Path:
    """Folder of real data and full-size golden files; tests that use it carry the marker shared_data."""
    return SHARED


@pytest.fixture
def generator() -> torch.Generator:
    """A fresh seeded generator."""
    return torch.Generator().manual_seed(0)


@pytest.fixture
def points(generator: torch.Generator) -> torch.Tensor:
    """(2, 128, 3) points, uniform in a box."""
    return torch.rand(2, 128, 3, generator=generator) * 2 - 1
