"""Backward passes compute no gradient that nothing asks for: where nothing below trains, they stop."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from pcl_clora.adapters import attach_adapter
from pcl_clora.models import create_model
from pcl_clora.models.layers import product
from tests.support.model_cases import SIZES

DEPTH = 4
PRODUCTS = ("aten::mm", "aten::addmm", "pcl_clora::linear", "pcl_clora::linear_weight_gradient")
STAG = {"method": "stag", "start": 2, "per_graph": 2, "per_down": 4, "rank": 8, "neighbors": 4}


class Products(TorchDispatchMode):
    """Counts matrix products, and backward passes of attention."""

    def __init__(self):
        super().__init__()
        self.products, self.attentions = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.name()
        self.products += name in PRODUCTS
        self.attentions += "scaled_dot_product" in name and name.endswith("backward")
        return func(*args, **(kwargs or {}))


def backward_of(settings, route):
    """Run a step; how many products and attentions its backward pass had, and what the blocks put out."""
    torch.manual_seed(0)
    base = create_model("point_mae", num_classes=5, **{**SIZES, "depth": DEPTH, "drop_path": 0.0})
    model = attach_adapter(base, settings).train()
    inside = []
    for block in model.base.blocks:
        block.register_forward_hook(lambda module, given, out: inside.append(out.requires_grad))
    points = torch.rand(3, 64, 3, generator=torch.Generator().manual_seed(1))
    with product.use_route(route):
        loss = model(points).square().mean()
        with Products() as seen:
            loss.backward()
    return seen, inside


@pytest.fixture(params=["torch", "onednn"])
def route(request):
    if request.param == "onednn" and not product.has_onednn():
        pytest.skip("this torch has no product of oneDNN")
    return request.param


def test_a_linear_probe_runs_the_backbone_without_a_graph(route):
    seen, inside = backward_of({"method": "linear_probe"}, route)
    assert not any(inside)
    assert seen.attentions == 0
    assert seen.products == 3 + 2  # weights of three layers of the head, inputs of two


def test_the_side_path_of_stag_asks_for_no_gradient_in_front_of_where_it_comes_back(route):
    seen, inside = backward_of(STAG, route)
    assert inside == [False, False, True, True]
    assert seen.attentions == 1  # that of the last block: the third one reads what nothing trained
    down, graph, head, block = DEPTH, 2 * 4, 3, 4  # layers that are run behind what trains
    weights, inputs = (
        down + graph + head,
        1 + graph + head + block,
    )  # the last projection down alone reads such
    assert seen.products == weights + inputs


def test_what_trains_in_the_first_block_has_gradients_from_there_on(route):
    seen, inside = backward_of({"method": "lora"}, route)
    assert all(inside)
    assert seen.attentions == DEPTH
