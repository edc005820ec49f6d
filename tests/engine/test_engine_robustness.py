"""Robustness: what is measured, from which seed, and how errors are averaged."""

import pytest
import torch

from pcl_clora.data import ProceduralConfig, build_dataset
from pcl_clora.data.corruptions import SEVERITIES, list_corruptions
from pcl_clora.engine.robustness import CorruptedDataset, RobustnessResult, evaluate_robustness
from pcl_clora.models import create_model
from pcl_clora.report.robustness import robustness_markdown


@pytest.fixture
def clouds():
    return build_dataset(
        ProceduralConfig(name="procedural", classes=("chair", "sofa", "mug"), test_size=9, num_points=128),
        "test",
    )


@pytest.fixture
def model():
    torch.manual_seed(0)
    return create_model(
        "point_mae",
        num_classes=3,
        embed_dim=24,
        depth=1,
        num_heads=2,
        num_groups=8,
        group_size=4,
        encoder_widths=(8, 16, 32),
    ).eval()


def test_a_corrupted_cloud_depends_on_seed_severity_and_index_only(clouds):
    def make(**changed):
        settings = {"name": "pointcloud_c.jitter", "severity": 2, "num_points": 64, "seed": 5} | changed
        return CorruptedDataset(clouds, **settings)

    points = make().read_batch([3, 1]).points
    assert torch.equal(points[0], make()[3].points)
    assert not torch.equal(points[0], make(seed=6)[3].points)
    assert not torch.equal(points[0], make(severity=3)[3].points)
    assert points.shape == (2, 64, 3)
    assert make().read_batch([3, 1]).label.tolist() == clouds.labels[[3, 1]].tolist()


def test_all_corruptions_are_measured_at_all_severities(clouds, model):
    told = []
    result = evaluate_robustness(
        model,
        clouds,
        num_classes=3,
        num_points=128,
        batch_size=4,
        on_step=lambda name, severity, accuracy: told.append((name, severity)),
    )
    assert tuple(result.accuracy) == list_corruptions()
    assert told == [(name, severity) for name in list_corruptions() for severity in SEVERITIES]
    assert all(0 <= value <= 1 for values in result.accuracy.values() for value in values)
    with torch.no_grad():
        right = (model(clouds.read_batch(range(9)).points).argmax(1) == clouds.labels).float().mean()
    assert result.clean == pytest.approx(float(right))
    assert RobustnessResult.from_json(result.as_json()) == result


def test_what_leaves_too_few_points_for_the_model_is_left_out_with_the_reason(clouds, model):
    told = []
    result = evaluate_robustness(
        model,
        clouds,
        num_classes=3,
        num_points=64,
        batch_size=4,
        corruptions=["sweep.drop", "sweep.rotate_y"],
        on_step=lambda *step: told.append(step),
    )
    assert told[4] == ("sweep.drop", 5, None)
    assert [value is None for value in result.accuracy["sweep.drop"]] == [False] * 4 + [True]
    assert None not in result.accuracy["sweep.rotate_y"]
    assert "A cloud of 6 points is too small for num_groups=8" in result.left_out["sweep.drop, 5"]
    assert 0 <= result.mean_error("sweep") <= 1
    assert RobustnessResult.from_json(result.as_json()) == result
    page = robustness_markdown(result, result)
    assert "* left out: sweep.drop, 5: A cloud of 6 points" in page
    assert "| - |" in page


def test_a_model_that_refuses_the_clouds_as_they_are_is_told_at_once(clouds, model):
    with pytest.raises(ValueError, match="A cloud of 64 points is too small"):
        evaluate_robustness(
            create_model("point_mae_tiny", num_classes=3, num_groups=80).eval(),
            clouds,
            num_classes=3,
            num_points=64,
            batch_size=4,
        )


def result_of(clean, *errors):
    names = ("pointcloud_c.scale", "pointcloud_c.jitter")
    accuracy = {name: tuple(1 - error for error in row) for name, row in zip(names, errors, strict=True)}
    return RobustnessResult(clean, accuracy, seed=0, num_points=64, num_clouds=10)


def test_mean_errors_are_those_of_the_papers():
    mine = result_of(0.9, (0.1, 0.2, 0.3, 0.4, 0.5), (0.2, 0.2, 0.2, 0.2, 0.2))
    theirs = result_of(0.8, (0.2, 0.4, 0.6, 0.8, 1.0), (0.4, 0.4, 0.4, 0.4, 0.4))
    assert mine.mean_error("pointcloud_c") == pytest.approx(0.25)
    relative, added = mine.relative_error("pointcloud_c", theirs)
    assert relative == pytest.approx((1.5 / 3.0 + 1.0 / 2.0) / 2)
    assert added == pytest.approx(((1.5 - 0.5) / (3.0 - 1.0) + (1.0 - 0.5) / (2.0 - 1.0)) / 2)
    assert mine.families() == ("pointcloud_c",)


def test_what_is_no_result_is_refused():
    with pytest.raises(ValueError, match="no result of a robustness test"):
        RobustnessResult.from_json({"oa": {}})
