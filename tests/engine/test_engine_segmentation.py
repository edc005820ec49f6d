"""Part segmentation in the engine: metrics against golden and naive ones, training, choosing, resuming."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pcl_clora.config import ConfigError
from pcl_clora.data import SHAPENETPART, Batch, PartTaxonomy, PointLoader, build_dataset
from pcl_clora.data.input_rule import ThinnedDataset, draw_points, thin
from pcl_clora.engine import (
    PartSegmentationTask,
    SegmentationMeter,
    Trainer,
    TrainingInterrupted,
    evaluate,
    load_run,
    make_task,
)
from pcl_clora.engine.metrics.calibration import ReliabilityMeter
from pcl_clora.report import make_table, write_report
from tests.support.engine_cases import SEGMENTATION, final_weights, lines_without_times, tiny_config

TAXONOMY = PartTaxonomy.counted({"lamp": ["foot", "shade"], "mug": ["body", "handle", "rim"]})


def seg_config(*changes: dict[str, Any]) -> Any:
    data = build_dataset(tiny_config().data, "test")
    sizes = {"model": {"num_parts": data.taxonomy.num_parts}}  # type: ignore[attr-defined]
    return tiny_config(SEGMENTATION, sizes, *changes)


# Metrics


def test_metrics_equal_those_of_the_official_code(golden: Path) -> None:
    archive = np.load(golden / "metrics.npz")
    meter = SegmentationMeter(SHAPENETPART)
    category = torch.tensor([SHAPENETPART.categories.index(str(name)) for name in archive["seg_category"]])
    logits = torch.from_numpy(archive["seg_logits"]).float()
    target = torch.from_numpy(archive["seg_target"])
    np.testing.assert_array_equal(meter.predict(logits, category), archive["seg_pred"])
    for part in torch.arange(40).split(16):
        meter.update(logits[part], target[part], category[part])
    metrics = meter.metrics()
    assert metrics.accuracy == pytest.approx(float(archive["seg_accuracy"]), abs=1e-12)
    assert metrics.instance_miou == pytest.approx(float(archive["seg_instance_miou"]), abs=1e-12)
    assert metrics.class_miou == pytest.approx(float(archive["seg_class_miou"]), abs=1e-12)
    assert metrics.part_accuracy == pytest.approx(float(archive["seg_class_avg_accuracy"]), abs=1e-12)
    np.testing.assert_allclose(metrics.per_category, archive["seg_per_category"], atol=1e-8)
    assert metrics.num_clouds == 40


def naive(predicted: Tensor, target: Tensor, category: Tensor) -> dict[str, Any]:
    """Every cloud and part by itself, with sets of points."""
    ious: list[dict[int, float]] = []
    for cloud, kind in enumerate(category.tolist()):
        of_part = {}
        for part in TAXONOMY.ids[kind]:
            said = {i for i, p in enumerate(predicted[cloud].tolist()) if p == part}
            true = {i for i, p in enumerate(target[cloud].tolist()) if p == part}
            of_part[part] = len(said & true) / len(said | true) if said | true else 1.0
        ious.append(of_part)
    means = [float(np.mean(list(one.values()))) for one in ious]
    of_kind = {k: [m for m, c in zip(means, category.tolist(), strict=True) if c == k] for k in (0, 1)}
    return {
        "instance": float(np.mean(means)),
        "class": float(np.mean([np.mean(values) for values in of_kind.values() if values])),
        "per_part": [
            float(np.mean(values)) if (values := [one[part] for one in ious if part in one]) else np.nan
            for part in range(5)
        ],
    }


@pytest.mark.parametrize("kinds", [(0, 1, 1, 0, 1), (1, 1)])
def test_metrics_equal_a_naive_computation(kinds: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(len(kinds))
    category = torch.tensor(kinds)
    first = torch.tensor([TAXONOMY.ids[kind][0] for kind in kinds])[:, None]
    spread = torch.tensor([len(TAXONOMY.ids[kind]) for kind in kinds])[:, None]
    target, predicted = (
        first + (torch.rand(len(kinds), 9, generator=generator) ** 2 * spread).long() for _ in range(2)
    )
    meter = SegmentationMeter(TAXONOMY)
    meter.update(predicted, target, category)
    metrics, expected = meter.metrics(), naive(predicted, target, category)
    assert metrics.instance_miou == pytest.approx(expected["instance"])
    assert metrics.class_miou == pytest.approx(expected["class"])
    np.testing.assert_allclose(metrics.per_part, expected["per_part"])
    assert metrics.accuracy == pytest.approx(float((predicted == target).double().mean()))


def test_parts_are_confused_as_scikit_learn_counts_it() -> None:
    oracle = pytest.importorskip("sklearn.metrics")
    generator = torch.Generator().manual_seed(3)
    target, predicted = (2 + torch.randint(3, (6, 20), generator=generator) for _ in range(2))
    meter = SegmentationMeter(TAXONOMY)
    for part in torch.arange(6).split(4):
        meter.update(predicted[part], target[part], torch.ones(len(part), dtype=torch.int64))
    metrics = meter.metrics()
    expected = oracle.confusion_matrix(target.flatten(), predicted.flatten(), labels=range(5))
    assert metrics.confusion.dtype == torch.int64
    assert metrics.confusion.tolist() == expected.tolist()
    assert metrics.as_json(TAXONOMY.categories)["confusion"] == expected.tolist()


def test_sums_of_a_version_without_confusions_are_taken_over() -> None:
    meter, fresh = SegmentationMeter(TAXONOMY), SegmentationMeter(TAXONOMY)
    body = torch.full((1, 4), 2)
    meter.update(body, body, torch.tensor([1]))
    fresh.load({name: value for name, value in meter.state().items() if name != "confusion"})
    assert fresh.metrics().instance_miou == 1.0
    with pytest.raises(KeyError, match="hits"):
        fresh.load({"confusion": meter.state()["confusion"]} | dict(list(meter.state().items())[:4]))


def test_confidences_of_points_are_those_among_the_parts_of_the_category() -> None:
    metrics = pytest.importorskip("torchmetrics.functional.classification")
    generator = torch.Generator().manual_seed(4)
    logits = 3 * torch.randn(4, 50, 5, generator=generator)
    labels = 2 + torch.randint(3, (4, 50), generator=generator)
    batch = Batch(
        points=torch.zeros(4, 50, 3),
        label=torch.ones(4, dtype=torch.int64),
        index=torch.arange(4),
        category=torch.ones(4, dtype=torch.int64),
        part_labels=labels,
    )
    meter = ReliabilityMeter("points")
    meter.update(*PartSegmentationTask(TAXONOMY).confidence(logits, batch))
    found = meter.reliability()
    oracle = metrics.multiclass_calibration_error(
        logits[..., 2:].softmax(-1).flatten(0, 1), labels.flatten() - 2, num_classes=3, n_bins=15
    )
    assert found.ece == pytest.approx(float(oracle), abs=1e-6)
    assert sum(found.count) == 200


def test_a_part_that_nobody_names_counts_as_found() -> None:
    meter = SegmentationMeter(TAXONOMY)
    body = torch.full((1, 4), 2)
    meter.update(body, body, torch.tensor([1]))
    assert meter.metrics().instance_miou == 1.0


def test_the_prediction_never_leaves_the_category() -> None:
    logits = torch.zeros(1, 3, 5)
    logits[..., 0] = 9.0  # a part of the other category
    logits[..., 3] = 1.0
    assert SegmentationMeter(TAXONOMY).predict(logits, torch.tensor([1])).tolist() == [[3, 3, 3]]


def test_an_empty_meter_is_refused() -> None:
    with pytest.raises(ValueError, match="No cloud was evaluated"):
        SegmentationMeter(TAXONOMY).metrics()


def test_sums_of_two_processes_give_the_metrics_of_all_clouds() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, target = torch.rand(6, 8, 5, generator=generator), torch.randint(2, (6, 8), generator=generator)
    category = torch.zeros(6, dtype=torch.int64)
    whole, first, second = (SegmentationMeter(TAXONOMY) for _ in range(3))
    whole.update(logits, target, category)
    first.update(logits[:2], target[:2], category[:2])
    second.update(logits[2:], target[2:], category[2:])
    added = SegmentationMeter(TAXONOMY)
    added.load({name: value + second.state()[name] for name, value in first.state().items()})
    assert added.metrics().instance_miou == pytest.approx(whole.metrics().instance_miou, abs=1e-12)
    assert added.metrics().accuracy == whole.metrics().accuracy


# Points and labels stay together


class FirstCoordinate(nn.Module):
    """Says part 1 where x > 0, whatever the order of the points; remembers what it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.seen: list[Tensor] = []

    def forward(self, points: Tensor, category: Tensor) -> Tensor:
        self.seen.append(points.clone())
        x = points[..., 0] * self.scale
        return torch.stack([-x, x, x * 0, x * 0, x * 0], dim=-1)


class Halves:
    """Clouds whose part label is decided by the sign of x."""

    class_names = TAXONOMY.categories
    taxonomy = TAXONOMY

    def __init__(self, count: int = 5, size: int = 40) -> None:
        generator = torch.Generator().manual_seed(7)
        self.points = torch.randn(count, size, 3, generator=generator)
        self.labels = torch.zeros(count, dtype=torch.int64)

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("read in batches")

    def read_batch(self, indices: Any) -> Batch:
        index = torch.as_tensor(indices)
        points = self.points[index]
        parts = (points[..., 0] > 0).long()
        return Batch(points, self.labels[index], index, parts, self.labels[index])


@pytest.mark.parametrize("num_points", [40, 16])
@pytest.mark.parametrize("votes", [1, 3])
def test_labels_stay_with_their_points_in_evaluation(num_points: int, votes: int) -> None:
    task = PartSegmentationTask(TAXONOMY)
    model = FirstCoordinate()
    result = evaluate(
        model, PointLoader(Halves(), 2), task=task, num_points=num_points, votes=votes, keep_logits=True
    )
    assert result.instance_miou == 1.0
    assert result.logits.shape == (5, num_points, 5)
    assert len({tuple(points[0].flatten().tolist()) for points in model.seen[:votes]}) == votes


def test_labels_stay_with_their_points_in_training_and_thinning() -> None:
    batch = Halves().read_batch(range(5))
    drawn = draw_points(batch, 24, torch.Generator().manual_seed(0))
    thinned = ThinnedDataset(Halves(), 24)
    first, again = thinned.read_batch([0, 3]), thinned.read_batch([3])
    for one in (drawn, thin(batch, 24), first, again):
        assert one.points.shape[1] == 24
        assert one.part_labels is not None
        assert torch.equal(one.part_labels, (one.points[..., 0] > 0).long())
    assert torch.equal(again.points, first.points[1:])


def test_the_loss_is_that_of_the_points_over_all_parts() -> None:
    task, batch = PartSegmentationTask(TAXONOMY), Halves().read_batch([0, 1])
    logits = torch.randn(2, 40, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    picked = logits.log_softmax(-1).gather(-1, batch.part_labels[..., None])  # type: ignore[index]
    assert float(task.loss(logits, batch, {}, 0.0).total) == pytest.approx(-float(picked.mean()), rel=1e-6)
    assert float(task.loss_sum(logits, batch)) == pytest.approx(-2 * float(picked.mean()), rel=1e-9)


# Runs


@pytest.mark.slow
@pytest.mark.parametrize("method", ["clora", "full"])
def test_a_run_learns_and_its_files_give_the_same_numbers(tmp_path: Path, method: str) -> None:
    adapter = {"adapter": {"method": method}, "optim": {"epochs": 6, "lr": 5e-3}}
    result = Trainer(seg_config(adapter), run_dir=tmp_path).fit()
    lines = [line for line in lines_without_times(tmp_path) if line["kind"] == "epoch"]
    assert lines[-1]["loss"] < 0.9 * lines[0]["loss"]
    assert lines[-1]["instance_miou"] > lines[0]["instance_miou"]
    cfg, model = load_run(tmp_path)
    test = build_dataset(cfg.data, "test")
    again = evaluate(model, PointLoader(test, 8), task=make_task(cfg.model, test), num_points=64)
    assert again.instance_miou == pytest.approx(result.metrics.instance_miou, abs=1e-6)
    content = json.loads((tmp_path / "result.json").read_text())
    assert content["task"] == "part_segmentation"
    assert set(content["metrics"]["per_category"]) == {"bottle", "chair", "table"}
    table = make_table([tmp_path])
    assert table.header[1:3] == ("inst. mIoU", "class mIoU")
    page = write_report(tmp_path).read_text()
    assert "## Categories, hardest first" in page
    assert "Instance mIoU" in page


EVERYTHING: dict[str, Any] = {
    "adapter": {"method": "clora", "rank": 2, "num_spaces": 2},
    "data": {"pool_points": 72},
    "protocol": {"select": "validation", "val_fraction": 0.2, "votes": 2},
    "optim": {"epochs": 2, "batch_size": 12, "double_step": True},
}


@pytest.mark.slow
@pytest.mark.parametrize("stop_after", [1, 3])
def test_a_run_that_was_stopped_goes_on_with_the_same_bits(tmp_path: Path, stop_after: int) -> None:
    cfg = seg_config(EVERYTHING)
    Trainer(cfg, run_dir=tmp_path / "whole").fit()

    def stop(event: Any) -> None:
        if event["kind"] == "train" and event["step"] == stop_after:
            trainer._stop.requested = True

    trainer = Trainer(cfg, run_dir=tmp_path / "parts", on_event=stop)
    with pytest.raises(TrainingInterrupted):
        trainer.fit()
    Trainer(cfg, run_dir=tmp_path / "parts").fit()
    one, two = final_weights(tmp_path / "whole"), final_weights(tmp_path / "parts")
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert lines_without_times(tmp_path / "whole") == lines_without_times(tmp_path / "parts")


def test_the_best_epoch_is_chosen_by_instance_miou_on_validation(tmp_path: Path) -> None:
    cfg = seg_config({"protocol": {"select": "validation", "val_fraction": 0.2}, "optim": {"epochs": 2}})
    result = Trainer(cfg, run_dir=tmp_path).fit().result
    chosen = [line for line in lines_without_times(tmp_path) if line.get("purpose") == "select"]
    assert result["best"]["selected_on"] == "validation"
    assert result["best"]["instance_miou"] == max(line["instance_miou"] for line in chosen)


@pytest.mark.parametrize(("double", "norms"), [(False, 1), (True, 2)])
def test_double_step_steps_before_and_after_clipping(tmp_path: Path, double: bool, norms: int) -> None:
    cfg = seg_config(
        {
            "optim": {
                "epochs": 1,
                "batch_size": 60,
                "double_step": double,
                "clip_norm": 1e-3,
                "warmup_epochs": 0,
            }
        }
    )
    seen: list[float] = []
    trainer = Trainer(cfg, run_dir=tmp_path)
    real = torch.optim.AdamW.step

    def step(optimizer: Any, *args: Any) -> Any:
        grads = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        seen.append(float(nn.utils.get_total_norm(grads)))
        return real(optimizer, *args)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", step)
        trainer.fit()
    assert len(seen) == norms
    assert seen[-1] == pytest.approx(1e-3, rel=1e-2)
    assert seen[0] > 1e-2 if double else True


@pytest.mark.slow
@pytest.mark.shared_data
def test_the_slice_of_shapenetpart_trains_and_evaluates(tmp_path: Path, shared: Path) -> None:
    root = shared / "data" / "shapenetcore_partanno_segmentation_benchmark_v0_normal"
    data = {"name": "shapenetpart_txt", "root": str(root), "num_points": 512, "allow_empty_classes": True}
    sizes = {"model": {"num_parts": 50, "num_categories": 16}, "data": data, "optim": {"batch_size": 4}}
    cfg = tiny_config(SEGMENTATION, sizes, {"optim": {"epochs": 2}})
    metrics = Trainer(cfg, run_dir=tmp_path).fit().metrics
    occurring = {
        name for name, count in zip(metrics.taxonomy.categories, metrics.clouds, strict=True) if count
    }
    assert occurring == {"Cap", "Table"}
    assert metrics.num_clouds == 12
    assert 0 < metrics.instance_miou < 1


# What is refused


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"model": {"num_parts": 4}}, r"model.num_parts=4, but the data set has \d+ parts; set"),
        ({"model": {"num_categories": 5}}, "model.num_categories=5, but the data set has 3 categories"),
    ],
)
def test_a_head_for_another_taxonomy_is_refused(tmp_path: Path, change: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        Trainer(seg_config(change), run_dir=tmp_path).fit()


def test_a_data_set_without_parts_is_refused() -> None:
    class NoParts:
        class_names = ("a",)
        labels = torch.zeros(1, dtype=torch.int64)

    with pytest.raises(ConfigError, match="needs a data set with part labels"):
        make_task(seg_config().model, NoParts())  # type: ignore[arg-type]


def test_test_categories_without_training_clouds_are_refused() -> None:
    train, test = Halves(), Halves()
    test.labels = torch.ones(5, dtype=torch.int64)
    with pytest.raises(ConfigError, match="1 categories of test have no training clouds: mug"):
        PartSegmentationTask(TAXONOMY).check_splits(train, test)
