"""What version 0.1.0 wrote: adapter files, state_dicts and checkpoints of every method and sharing."""

from __future__ import annotations

import gzip
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from pcl_clora.adapters import AdaptedModel, attach_adapter, load_adapter, read_adapter
from pcl_clora.engine.ema import WeightAverage
from pcl_clora.engine.metrics.classification import ConfusionMatrix
from pcl_clora.engine.run.checkpoint import load_checkpoint
from pcl_clora.engine.run.snapshot import Snapshot
from pcl_clora.engine.run.state import RunState
from pcl_clora.io import load_tensors, save_tensors
from tests.support import adapter_cases as cases

GOLDEN = Path(__file__).parents[1] / "golden" / "adapters"
NAMES = ("clora_global", "clora_per_role", "clora_all", "clora_none", "lora", "linear_probe", "full")
POINTS = (torch.arange(192, dtype=torch.float32).view(2, 32, 3) * 37 % 101 - 50) / 64


def make_base() -> nn.Module:
    """The backbone of the files: tensors that are the same on every machine."""
    base = cases.PlainTransformer(num_classes=3, dim=8, depth=1)
    with torch.no_grad():
        for index, value in enumerate(base.state_dict().values()):
            if value.is_floating_point():
                steps = torch.arange(value.numel(), dtype=torch.float32)
                value.copy_((((steps * 7 + 13 * index) % 61 - 30) / 128).view(value.shape))
        base.embed_norm.running_var.fill_(1.0)
    return base.eval()


def logits_of(name: str) -> tuple[dict[str, Tensor], Tensor]:
    state = load_file(GOLDEN / f"{name}_state.safetensors")
    return state, state.pop("logits")


@pytest.mark.parametrize("name", NAMES)
def test_an_old_adapter_file_gives_the_logits_it_gave(name: str) -> None:
    file = GOLDEN / f"{name}.safetensors"

    model = load_adapter(file, make_base())

    # another processor may add in another order
    torch.testing.assert_close(model(POINTS), logits_of(name)[1], rtol=1e-5, atol=1e-5)
    assert read_adapter(file)[0].extra == {"seed": 3, "normalisation": "unit sphere"}


@pytest.mark.parametrize("name", NAMES)
def test_an_old_adapter_file_written_again_has_the_same_names_and_bits(name: str, tmp_path: Path) -> None:
    old = load_file(GOLDEN / f"{name}.safetensors")

    load_adapter(GOLDEN / f"{name}.safetensors", make_base(), "class").save_adapter(
        tmp_path / "a.safetensors"
    )

    new = load_file(tmp_path / "a.safetensors")
    assert new.keys() == old.keys()
    assert all(torch.equal(new[key], old[key]) for key in old)


def test_an_old_file_of_a_rank_above_the_width_loads(tmp_path: Path) -> None:
    tensors, header = load_tensors(GOLDEN / "lora.safetensors")
    rank, settings = 20, header["adapter"]  # the layers of the file have 8 features
    for key in [name for name in tensors if name.endswith((".down", ".up"))]:
        axis = 0 if key.endswith(".down") else 1
        shape = [rank if place == axis else size for place, size in enumerate(tensors[key].shape)]
        tensors[key] = torch.arange(math.prod(shape), dtype=torch.float32).view(shape) % 7 / 64
    wide = {**header, "adapter": {**settings, "rank": rank, "alpha": rank}}
    save_tensors(tmp_path / "wide.safetensors", tensors, wide)

    model = load_adapter(tmp_path / "wide.safetensors", make_base())

    logits = model(POINTS)
    with model.merged():
        torch.testing.assert_close(model(POINTS), logits, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(logits, make_base()(POINTS))
    with pytest.raises(ValueError, match="rank=20 is more than"):
        attach_adapter(make_base(), model.config)


def attach(name: str) -> AdaptedModel:
    return attach_adapter(make_base(), read_adapter(GOLDEN / f"{name}.safetensors")[0].adapter)


@pytest.mark.parametrize("name", NAMES)
def test_an_old_state_dict_loads(name: str) -> None:
    state, logits = logits_of(name)
    model = attach(name)

    model.load_state_dict(state)

    torch.testing.assert_close(model(POINTS), logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_a_run_goes_on_from_an_old_checkpoint(name: str, tmp_path: Path) -> None:
    file = tmp_path / "checkpoint.safetensors"
    file.write_bytes(gzip.decompress((GOLDEN / f"{name}_checkpoint.safetensors.gz").read_bytes()))
    model = attach(name)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    average = WeightAverage(model, 0.5)
    snapshot = Snapshot(model, optimizer, average, RunState(ConfusionMatrix(3)), {"a": 1}, {})

    with torch.random.fork_rng(devices=[]):
        snapshot.restore(load_checkpoint(file))

    torch.testing.assert_close(model(POINTS), logits_of(name)[1], rtol=1e-5, atol=1e-5)
    assert all(
        not torch.equal(average.average[name], p) for name, p in model.named_parameters() if p.requires_grad
    )
