"""The same promises on a CUDA device."""

from __future__ import annotations

import pytest
import torch

from pcl_clora.adapters import attach_adapter, load_adapter
from tests.support import adapter_cases as cases

pytestmark = [pytest.mark.cuda, pytest.mark.parametrize("setting", cases.ON_PLAIN)]


def test_on_cuda_the_start_is_the_base_and_training_changes_only_what_is_saved(setting: str) -> None:
    base, points = cases.make_backbone("plain").cuda(), cases.make_points().cuda()
    expected = base(points)
    model = attach_adapter(base, cases.SETTINGS[setting])
    start, before = model(points), cases.snapshot(model)

    cases.train_steps(model)

    assert torch.equal(start, expected)
    assert cases.changed_names(model, before) == set(model.saved_names())


def test_an_adapter_saved_on_cuda_loads_on_the_cpu_onto_the_same_base(setting: str, tmp_path) -> None:
    model = attach_adapter(cases.make_backbone("plain").cuda(), cases.SETTINGS[setting])
    cases.train_steps(model)
    model.save_adapter(tmp_path / "adapter.safetensors")

    loaded = load_adapter(tmp_path / "adapter.safetensors", cases.make_backbone("plain"))

    # Kernels of two devices add in another order.
    torch.testing.assert_close(
        loaded(cases.make_points()), model(cases.make_points().cuda()).cpu(), rtol=1e-4, atol=1e-4
    )


def test_merging_works_on_cuda_too(setting: str) -> None:
    model = cases.shake(attach_adapter(cases.make_backbone("plain").cuda().double(), cases.SETTINGS[setting]))
    points = cases.make_points().cuda().double()
    expected = model(points)

    with model.merged():
        merged = model(points)

    torch.testing.assert_close(merged, expected, rtol=1e-10, atol=1e-10)
