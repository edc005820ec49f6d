"""What clora_geo costs: its products, one search of neighbours a cloud, one gradient a channel."""

from __future__ import annotations

import pytest
import torch

from pcl_clora import ops
from pcl_clora.adapters import attach_adapter
from pcl_clora.adapters.sequence import largest_of_neighbors
from pcl_clora.models import create_model
from pcl_clora.report.macs import count_executed
from tests.support import adapter_cases as cases


@pytest.mark.parametrize("groups", [64, 128])
def test_it_adds_less_than_three_percent_to_the_products_of_full_size_point_mae(groups: int) -> None:
    counts = {}
    for method in ("clora", "clora_geo", "linear_probe"):
        with torch.device("meta"):
            base = create_model("point_mae", num_classes=40, num_groups=groups)
            cloud = torch.empty(1, 16 * groups, 3)
        counts[method] = count_executed(attach_adapter(base.eval(), {"method": method}), cloud).macs
    added = counts["clora_geo"] - counts["clora"]

    assert added == 12 * (2 * groups * 384 * 64 + 64 * 8 * 384)  # t and its way back; Q' U once a block
    assert added < 0.03 * counts["linear_probe"]


def test_neighbours_are_searched_once_a_cloud(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, search = [], ops.knn

    def counted(*inputs, **named):
        calls.append(inputs[0].shape)
        return search(*inputs, **named)

    monkeypatch.setattr(ops, "knn", counted)
    model = attach_adapter(cases.make_backbone("point_mae"), {"method": "clora_geo", "neighbors": 5})
    model(cases.make_points(3))

    assert calls == [(3, 16, 3)]  # three blocks look at them


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_the_maximum_over_neighbours_sends_its_gradient_to_the_first_of_the_largest(dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    t = torch.randint(-3, 4, (2, 5, 4), generator=generator).to(dtype).requires_grad_()  # with ties
    near = torch.stack([torch.randperm(5, generator=generator)[:3] for _ in range(10)]).view(2, 5, 3)
    weight = torch.randn(2, 5, 4, generator=generator).to(dtype)
    rows = (near + torch.arange(2)[:, None, None] * 5).flatten()

    found = largest_of_neighbors(t, rows)
    (found * weight).sum().backward()
    with torch.no_grad():
        bare = largest_of_neighbors(t, rows)

    expected, gradient = torch.empty(2, 5, 4, dtype=dtype), torch.zeros(2, 5, 4, dtype=torch.float64)
    for cloud in range(2):
        for patch in range(5):
            for channel in range(4):
                values = [float(t.detach()[cloud, q, channel]) for q in near[cloud, patch]]
                first = near[cloud, patch][values.index(max(values))]
                expected[cloud, patch, channel] = max(values)
                gradient[cloud, first, channel] += float(weight[cloud, patch, channel])
    assert torch.equal(found, expected)
    assert torch.equal(bare, expected)
    tolerance = 1e-2 if dtype == torch.bfloat16 else 1e-6
    torch.testing.assert_close(t.grad.double(), gradient, rtol=tolerance, atol=3 * tolerance)
