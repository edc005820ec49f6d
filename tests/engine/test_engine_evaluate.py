"""Evaluation: deterministic, independent of the batch size, without gradients, and what votes mean."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcl_clora.adapters import attach_adapter
from pcl_clora.data import ArrayDataset, Batch, PointLoader, fps_resample, resample
from pcl_clora.data.input_rule import ThinnedDataset, thin
from pcl_clora.engine import evaluate
from pcl_clora.engine.randomness import make_generator
from pcl_clora.models import build_model
from tests.support.engine_cases import tiny_config


class Recorder(nn.Module):
    """Remembers what it is given; its logits depend on every coordinate."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([[1.0, -2.0], [0.5, 1.0], [-1.0, 0.3]]))
        self.seen: list[Tensor] = []
        self.modes: list[tuple[bool, bool]] = []

    def forward(self, points: Tensor) -> Tensor:
        self.seen.append(points.clone())
        self.modes.append((self.training, torch.is_grad_enabled()))
        return (points * torch.arange(1.0, points.shape[1] + 1)[:, None]).mean(dim=1) @ self.weight


@pytest.fixture
def clouds() -> ArrayDataset:
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(10, 40, 3, generator=generator)
    return ArrayDataset(points.numpy(), torch.randint(2, (10,), generator=generator), ["a", "b"])


def test_loss_and_accuracy_are_those_of_all_clouds_together(clouds: ArrayDataset) -> None:
    model = Recorder()
    result = evaluate(model, PointLoader(clouds, 4), num_classes=2, num_points=40, keep_logits=True)
    with torch.no_grad():
        logits = Recorder()(clouds.read_batch(range(10)).points)
    assert result.indices is not None
    assert result.indices.tolist() == list(range(10))
    torch.testing.assert_close(result.logits, logits)
    assert result.oa == float((logits.argmax(1) == clouds.labels).double().mean())
    assert result.loss == pytest.approx(float(F.cross_entropy(logits, clouds.labels)), rel=1e-6)
    assert result.num_clouds == 10


def test_a_real_model_gives_the_same_answers_in_batches_of_any_size() -> None:
    model = build_model(tiny_config().model)
    generator = torch.Generator().manual_seed(0)
    clouds = ArrayDataset(
        torch.randn(7, 64, 3, generator=generator).numpy(), torch.arange(7) % 3, ["a", "b", "c"]
    )
    one, seven = (
        evaluate(model, PointLoader(clouds, size), num_classes=3, num_points=64, keep_logits=True)
        for size in (1, 7)
    )
    # matrix products of other shapes add in another order
    torch.testing.assert_close(one.logits, seven.logits, rtol=1e-4, atol=1e-5)


def test_the_model_runs_in_evaluation_mode_without_gradients_and_gets_its_mode_back(
    clouds: ArrayDataset,
) -> None:
    model = Recorder()
    evaluate(model, PointLoader(clouds, 10), num_classes=2, num_points=40)
    assert model.modes == [(False, False)]
    assert model.training


def test_frozen_normalisation_stays_frozen_after_an_evaluation(clouds: ArrayDataset) -> None:
    cfg = tiny_config()
    model = attach_adapter(build_model(cfg.model), {"method": "linear_probe"}).train()
    before = {name: module.training for name, module in model.named_modules()}
    evaluate(model, PointLoader(clouds, 10), num_classes=3, num_points=40)
    assert {name: module.training for name, module in model.named_modules()} == before
    assert not all(before.values())


def test_without_votes_test_points_are_chosen_by_farthest_points_and_no_chance(clouds: ArrayDataset) -> None:
    model = Recorder()
    state = torch.get_rng_state()
    evaluate(model, PointLoader(clouds, 10), num_classes=2, num_points=16)
    assert torch.equal(model.seen[0], fps_resample(clouds.read_batch(range(10)).points, 16))
    assert torch.equal(torch.get_rng_state(), state)


def test_votes_average_the_logits_of_seeded_resamplings(clouds: ArrayDataset) -> None:
    model = Recorder()
    loader = PointLoader(clouds, 10)
    result = evaluate(
        model,
        loader,
        num_classes=2,
        num_points=16,
        votes=3,
        seed=5,
        keep_logits=True,
        vote_augment="rotate_y",
    )
    assert len(model.seen) == 3
    with torch.no_grad():
        logits = torch.stack([Recorder()(points) for points in model.seen]).mean(0)
    torch.testing.assert_close(result.logits, logits)
    again = evaluate(
        model,
        loader,
        num_classes=2,
        num_points=16,
        votes=3,
        seed=5,
        keep_logits=True,
        vote_augment="rotate_y",
    )
    assert torch.equal(result.logits, again.logits)  # type: ignore[arg-type]


def test_the_points_of_a_vote_do_not_depend_on_the_batch_size(clouds: ArrayDataset) -> None:
    small, large = Recorder(), Recorder()
    evaluate(small, PointLoader(clouds, 3), num_classes=2, num_points=16, votes=2)
    evaluate(large, PointLoader(clouds, 10), num_classes=2, num_points=16, votes=2)
    first_vote = resample(clouds.read_batch(range(10)).points, 16, make_generator(0, "vote", 0))
    assert torch.equal(large.seen[0], first_vote)
    assert torch.equal(torch.cat(small.seen[0::2]), first_vote)


def test_thinned_clouds_are_computed_once_and_stay_the_same(
    clouds: ArrayDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def spy(batch: Batch, num_points: int) -> Batch:
        calls.append(len(batch))
        return thin(batch, num_points)

    monkeypatch.setattr("pcl_clora.data.input_rule.thin", spy)
    thinned = ThinnedDataset(clouds, 16)
    expected = fps_resample(clouds.read_batch(range(10)).points, 16)
    first = [thinned.read_batch([0, 1, 2]), thinned.read_batch([3, 4])]
    again = thinned.read_batch([4, 0, 2])
    assert calls == [3, 2]
    assert torch.equal(torch.cat([batch.points for batch in first]), expected[:5])
    assert torch.equal(again.points, expected[[4, 0, 2]])
    assert again.index.tolist() == [4, 0, 2]
    assert torch.equal(again.label, clouds.labels[[4, 0, 2]])
    again.points.zero_()
    assert torch.equal(thinned.read_batch([4]).points, expected[4:5])


def test_bfloat16_evaluation_stays_near_full_precision(tmp_path: Path) -> None:
    model = build_model(tiny_config().model)
    generator = torch.Generator().manual_seed(0)
    clouds = ArrayDataset(
        torch.randn(6, 64, 3, generator=generator).numpy(), torch.arange(6) % 3, ["a", "b", "c"]
    )
    full, half = (
        evaluate(model, PointLoader(clouds, 6), num_classes=3, num_points=64, amp=amp, keep_logits=True)
        for amp in (False, True)
    )
    assert half.logits is not None
    assert half.logits.dtype == torch.float32
    assert not torch.equal(half.logits, full.logits)  # type: ignore[arg-type]
    # eight bits of mantissa through a few layers, logits of size one
    torch.testing.assert_close(half.logits, full.logits, rtol=0.1, atol=0.1)
