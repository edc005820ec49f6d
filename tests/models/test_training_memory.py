"""What a training step keeps for its backward pass, on the full-size Point-MAE."""

import pytest
import torch
import torch.nn.functional as F

from pcl_clora.adapters import attach_adapter
from pcl_clora.bench.parts import saved_bytes
from pcl_clora.models import create_model

CLOUDS = 8


def saved_mib(model, points):
    """Run forward with the loss; MiB a cloud that are kept."""

    def run():
        loss = F.cross_entropy(model(points), torch.zeros(len(points), dtype=torch.int64))
        return sum(model.extra_losses().values(), start=loss)

    held = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return saved_bytes(run, held) / 2**20 / len(points)


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
