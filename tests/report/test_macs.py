import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pcl_clora.engine.modes import evaluation_mode
from pcl_clora.models import create_model, published_form
from pcl_clora.models.layers.transformer import Attention
from pcl_clora.report.macs import count_executed, count_layers
from tests.support.report_cases import make_tiny


def cloud(num_points: int) -> torch.Tensor:
    return torch.rand(1, num_points, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_points", "num_groups", "num_classes", "published", "with_attention"),
    [(2048, 128, 15, 4.761, 4.914), (1024, 64, 40, 2.391, 2.430)],
)
def test_full_size_point_mae_counts_as_in_the_papers(
    num_points, num_groups, num_classes, published, with_attention
):
    model = create_model("point_mae", num_classes=num_classes, num_groups=num_groups)
    with published_form(model):
        layers = count_layers(model, cloud(num_points))
        executed = count_executed(model, cloud(num_points))
    assert round(sum(layers.values()) / 1e9, 3) == published
    assert round(executed.macs / 1e9, 3) == with_attention
    assert executed.layer_macs == sum(layers.values())  # two counters that know nothing of each other


@pytest.mark.slow
def test_the_rewritten_encoder_needs_4_24_g():
    model = create_model("point_mae", num_classes=15)
    assert round(count_executed(model, cloud(2048)).layer_macs / 1e9, 2) == 4.24


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv1d(3, 8, 1),
        nn.Conv1d(4, 8, 3, stride=2, padding=1, groups=2, bias=False),
        nn.Conv2d(3, 6, (3, 2), dilation=2),
        nn.ConvTranspose1d(4, 6, 3, stride=2, groups=2),
        nn.Linear(7, 5),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_layer_counts_agree_with_torch_flops(layer):
    shape = {nn.Linear: (2, 3, 7), nn.Conv2d: (1, 3, 9, 9)}.get(type(layer))
    inputs = torch.rand(shape or (1, layer.in_channels, 16))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        layer(inputs)
    assert 2 * sum(count_layers(nn.Sequential(layer), inputs).values()) == counter.get_total_flops()


def test_a_layer_used_twice_counts_twice():
    layer = nn.Linear(4, 4)
    assert count_layers(nn.Sequential(layer, layer), torch.rand(1, 4)) == {"0": 32}


def test_attention_is_two_products_of_tokens_with_tokens():
    tokens, dim = 10, 12
    count = count_executed(Attention(dim, 3), torch.rand(1, tokens, dim))
    assert count.attention_macs == 2 * tokens * tokens * dim
    assert count.layer_macs == tokens * dim * 4 * dim


def test_sampling_and_neighbour_search_are_counted_apart():
    model = make_tiny()
    count = count_executed(model, cloud(64))
    assert count.grouping_flops["group_points"] > 0
    assert count.macs == sum(
        n for name, n in count.modules.items() if name in ("patch_embed", "pos_embed", "head")
    ) + sum(count.modules[f"blocks.{i}"] for i in range(3))


def test_executed_count_does_not_depend_on_the_cloud():
    model = make_tiny()
    other = torch.rand(1, 64, 3) * 9
    assert count_executed(model, cloud(64)) == count_executed(model, other)


def test_evaluation_gives_every_module_its_own_mode_back():
    model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2)).train()
    model[1].eval()
    with evaluation_mode(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == [True, True, False]
