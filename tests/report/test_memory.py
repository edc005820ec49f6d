import torch
from torch import nn

from pcl_clora.report.memory import LiveTensors, mib, peak_bytes, storage_bytes


def test_peak_is_what_is_alive_at_once():
    def run() -> torch.Tensor:
        a = torch.ones(1000)  # 4,000 bytes
        b = a + a  # 8,000
        del a
        c = b * 2  # 8,000
        del b
        d = torch.ones(500)  # 4,000 + 2,000
        return c + torch.cat([d, d])  # 4,000 + 2,000 + 4,000 + 4,000

    assert peak_bytes(run) == 14_000


def test_weights_and_input_are_not_counted_but_results_are():
    layer, x = nn.Linear(100, 50), torch.ones(10, 100)
    with torch.no_grad():
        assert peak_bytes(lambda: layer(x), [*layer.parameters(), x]) == 10 * 50 * 4


def test_views_and_in_place_operations_cost_nothing():
    x = torch.ones(100)
    assert peak_bytes(lambda: x.view(10, 10).mul_(2).t(), [x]) == 0


def test_activations_kept_for_the_backward_pass_are_alive():
    x = torch.ones(1000, requires_grad=True)

    def run(steps: int) -> int:
        def chain() -> None:
            y = x
            for _ in range(steps):
                y = y.sin()
            assert y.shape == (1000,)

        return peak_bytes(chain, [x])

    assert run(5) == 5 * 4000
    with torch.no_grad():
        assert run(5) == 2 * 4000


def test_released_tensors_are_forgotten():
    with LiveTensors() as mode:
        y = torch.ones(1000)
        del y
    assert (mode.live_bytes, mode.peak_bytes) == (0, 4000)


def test_a_shared_storage_has_its_bytes_once():
    x = torch.ones(256, 1024)
    assert mib(storage_bytes([x, x.t(), x[0]])) == 1.0
