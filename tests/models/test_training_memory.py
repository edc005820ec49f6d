"""What a training step keeps for its backward pass, on the full-size Point-MAE."""

import pytest
import torch
import torch.nn.functional as F

from pcl_clora.adapters import attach_adapter
from pcl_clora.models import create_model

CLOUDS = 8


def saved_mib(model, points):
    """Run forward with the loss; MiB a cloud that are kept, each storage once, weights not counted."""
    held = [*model.parameters(), *model.buffers()]
    own = {tensor.untyped_storage().data_ptr() for tensor in held}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage  # held, so that no address is used twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = F.cross_entropy(model(points), torch.zeros(len(points), dtype=torch.int64))
        sum(model.extra_losses().values(), start=loss)
    return sum(storage.nbytes() for storage in kept.values()) / 2**20 / len(points)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "checkpointed", "limit"),
    [
        ("clora", False, 30),
        ("lora", False, 30),
        ("clora", True, 3),
        ("lora", True, 3),
        ("linear_probe", False, 0.1),
    ],
)
def test_a_step_keeps_few_activations(method, checkpointed, limit):
    torch.manual_seed(0)
    model = create_model("point_mae", num_classes=40, num_groups=128)
    adapted = attach_adapter(model, {"method": method}).train()
    model.set_grad_checkpointing(checkpointed)
    assert saved_mib(adapted, torch.randn(CLOUDS, 2048, 3)) < limit
