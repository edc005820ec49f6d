"""The pose of a user's files: what formats say, what shapes say, mixed axes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pcl_clora.data import InputRule, generate_shape
from pcl_clora.fit.pose import choose_axis, find_pose, turned_share
from pcl_clora.models import create_model


@pytest.fixture(scope="module")
def backbone():
    return create_model("point_mae_tiny", weights="builtin")


def clouds(kinds=("chair", "lamp", "airplane"), each: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    points = [generate_shape(kind, k, 256).points for kind in kinds for k in range(each)]
    return torch.stack([torch.from_numpy(one) for one in points]), torch.arange(len(kinds)).repeat_interleave(
        each
    )


def find(points, labels, backbone, suffixes=(".npy",), **settings):
    files = [Path(f"{k}{suffixes[k % len(suffixes)]}") for k in range(len(points))]
    return find_pose(points, labels, files, backbone, **{"classes": True, **settings})


def test_files_that_stand_alike_are_not_mixed(backbone):
    found = find(*clouds(), backbone)
    assert not found.mixed
    assert set(found.accuracies) == {"x", "y", "z"}


@pytest.mark.parametrize("classes", [True, False])
def test_turned_files_among_upright_ones_are_mixed(backbone, classes):
    points, labels = clouds()
    points[::2] = InputRule(up="-z").turn(points[::2])
    found = find(points, labels, backbone, classes=classes)
    assert found.mixed
    assert "nearest to one of their class that is turned" in found.why


def test_balls_say_nothing_about_the_pose(backbone):
    points = torch.nn.functional.normalize(
        torch.randn(12, 256, 3, generator=torch.Generator().manual_seed(0)), dim=-1
    )
    assert not find(points, torch.zeros(12, dtype=torch.int64), backbone).mixed


def test_formats_that_say_the_axis_are_believed(backbone):
    points, labels = clouds(each=2)
    assert find(points, labels, backbone, (".las",)).up == "z"
    mixed = find(points, labels, backbone, (".las", ".glb"))
    assert (mixed.mixed, mixed.why) == (True, "the formats of the files say y and z")


def test_flat_scans_without_classes_point_up_along_their_flattest_axis(backbone):
    points = torch.rand(6, 256, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([9.0, 9.0, 1.0])
    found = find(points, torch.zeros(6, dtype=torch.int64), backbone, classes=False)
    assert (found.up, found.mixed) == ("z", False)


def test_the_share_counts_clouds_whose_likest_mate_is_turned():
    east, north = torch.eye(2)
    features = torch.stack([torch.stack([east, east, north]), torch.stack([north, north, east])])
    # The third has no mate that stands as it does; the others have one, and all are unlike themselves turned.
    assert turned_share(features, torch.zeros(3, dtype=torch.int64)) == (pytest.approx(1 / 3), 3)
    alike = torch.stack([torch.stack([east, north]), torch.stack([east, north])])  # turning changes nothing
    assert turned_share(alike, torch.zeros(2, dtype=torch.int64)) == (0.0, 0)


@pytest.mark.parametrize(("z", "up"), [(40, "z"), (12, "y")])
def test_another_axis_than_y_has_to_be_clearly_better(z, up):
    found = choose_axis({"y": torch.arange(40) < 10, "z": torch.arange(40) < z, "x": torch.arange(40) < 0})
    assert found.accuracies["z"] > found.accuracies["y"]
    assert (found.up, "no axis is clearly better" in found.why) == (up, up == "y")
