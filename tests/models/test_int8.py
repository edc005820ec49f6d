"""int8 inference: close to float32, refused where it is not faster, ranges that another runtime can use."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from pcl_clora.adapters import attach_adapter
from pcl_clora.errors import UserValueError
from pcl_clora.models import create_model
from pcl_clora.models.layers import int8
from pcl_clora.models.layers.int8 import Int8Linear, int8_layers, observing_copy, quantise
from pcl_clora.models.layers.product import Linear
from tests.support.model_cases import TINY

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.skipif(
    "fbgemm" not in torch.backends.quantized.supported_engines, reason="this torch has no int8 product"
)


def drawn(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def network(**settings):
    torch.manual_seed(0)
    model = create_model("point_mae", **{**TINY, **settings}, num_classes=5).eval()
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm1d)):
        nn.init.uniform_(norm.running_var, 0.5, 1.5)
    return model


def clouds(seed=0):
    return drawn(6, 96, 3, seed=seed) / 3


@pytest.mark.parametrize("vnni", [True, False])
@pytest.mark.parametrize("activation", ["none", "relu", "gelu"])
def test_a_layer_is_that_of_rounded_weights_and_inputs(monkeypatch, vnni, activation):
    if vnni and not int8.has_vnni():
        pytest.skip("this processor has no VNNI")
    monkeypatch.setattr(int8, "has_vnni", lambda: vnni)
    layer, x = Linear(64, 48), drawn(5, 7, 64)
    small = Int8Linear(layer)
    exact = small(x, activation)
    low, high = small.range
    assert (low, high) == (float(x.min()), float(x.max()))
    small.freeze()
    levels = 255 if vnni else 127
    step = (high - low) / levels
    zero = round(-low / step)
    seen = ((x.double() / step).round() + zero).clamp(0, levels).sub(zero) * step
    scale = layer.weight.detach().abs().amax(1, keepdim=True).double() / 127
    weight = (layer.weight.detach().double() / scale).round() * scale
    expected = seen @ weight.t() + layer.bias.detach().double()
    expected = {"none": expected, "relu": expected.relu(), "gelu": nn.functional.gelu(expected)}[activation]
    found = small(x, activation)
    assert found.shape == (5, 7, 48)
    assert (
        float((found - expected).abs().max()) < step * float(scale.max()) * 127
    )  # rounding of a half, either way
    assert float((found - exact).abs().max()) < 0.1


@pytest.mark.parametrize("task", ["classification", "part_segmentation"])
def test_a_network_in_int8_is_close_and_float32_stays_as_it_was(task):
    parts = {"task": task, "num_parts": 6, "num_categories": 2} if task != "classification" else {}
    small_head = {"propagation_widths": (20, 24), "segmentation_widths": (16, 12), "label_width": 6}
    model = network(**parts, **(small_head if parts else {}))
    batch = (clouds(), torch.arange(6) % 2) if parts else (clouds(),)
    with torch.inference_mode():
        before = model(*batch)
        made = quantise(model, [batch], anyway=True)
        assert torch.equal(model(*batch), before)
        assert torch.equal(made.model(*batch), made.model(*batch))
        assert float((made.model(*batch) - before).abs().max() / before.abs().max()) == pytest.approx(
            made.difference
        )
    assert 0 < made.difference < 0.1
    assert made.agreement > 0.9
    assert set(made.ranges) == {
        *(
            f"blocks.{block}.{name}"
            for block in range(3)
            for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
        ),
        *(f"patch_embed.{name}" for name in ("linear2", "pooled", "own", "linear4")),
    }
    assert all(low <= 0 <= high and low < high for low, high in made.ranges.values())


def test_before_they_are_frozen_layers_compute_in_float32():
    model, points = network(), clouds()
    with torch.inference_mode():
        assert torch.allclose(observing_copy(model)(points), model(points), rtol=1e-5, atol=1e-6)


def test_every_batch_widens_the_ranges():
    model = network()
    one = quantise(model, [(clouds(),)], anyway=True).ranges
    both = quantise(model, [(clouds(),), (2 * clouds(1),)], anyway=True).ranges
    assert all(both[name][0] <= one[name][0] and both[name][1] >= one[name][1] for name in one)
    assert both != one


def test_where_int8_is_slower_it_is_refused_with_what_was_measured(monkeypatch):
    monkeypatch.setattr(int8, "measured_gain", lambda: 0.83)
    with pytest.raises(UserValueError, match=r"0\.83 times as fast as a float32 one"):
        quantise(network(), [(clouds(),)])
    assert quantise(network(), [(clouds(),)], anyway=True).gain == 0.83


def test_a_network_with_adapters_or_without_blocks_or_clouds_is_refused():
    adapted = attach_adapter(network(), {"method": "lora"})
    for model in (adapted, adapted.base, nn.Linear(3, 3)):
        with pytest.raises(UserValueError, match="merge"):
            quantise(model, [(clouds(),)], anyway=True)
    with pytest.raises(UserValueError, match="clouds to calibrate on"):
        quantise(network(), [], anyway=True)
    assert int8_layers(network()) == {}


def test_a_merged_adapter_goes_into_int8():
    merged = attach_adapter(network(), {"method": "clora", "rank": 2, "num_spaces": 2}).merge_and_unload()
    assert quantise(merged, [(clouds(),)], anyway=True).difference < 0.1


def test_what_torch_cannot_do_is_said(monkeypatch):
    def fails(self):
        raise RuntimeError("Didn't find engine\nmore")

    monkeypatch.setattr(Int8Linear, "freeze", fails)
    with pytest.raises(UserValueError, match="has no int8 product on this processor"):
        quantise(network(), [(clouds(),)])


def test_the_gain_is_measured():
    engine = torch.backends.quantized.engine
    assert 0.05 < int8.measured_gain(64) < 50
    assert torch.backends.quantized.engine == engine


@pytest.mark.slow  # a process of its own, in which FBGEMM is held to AVX2
def test_sums_that_are_16_bits_wide_do_not_overflow():
    program = (
        "import torch; from pcl_clora.models.layers import int8\n"
        "from pcl_clora.models.layers.product import Affine\n"
        "x = torch.ones(64, 128); weight = torch.ones(32, 128)\n"
        "layer = int8.Int8Linear(Affine(weight)); layer(x); layer.freeze()\n"
        "print(int8.has_vnni(), float((layer(x) / 128 - 1).abs().max()) < 0.02)"
    )
    environment = {**os.environ, "FBGEMM_ENABLE_INSTRUCTIONS": "AVX2", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert done.stdout.split() == ["False", "True"], done.stderr
