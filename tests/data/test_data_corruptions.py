"""Corruptions: drawn from a seed, as strong as their severity says, and as the published formulas."""

import math

import pytest
import torch
from scipy.interpolate import RBFInterpolator

from pcl_clora.data.corruptions import (
    FAMILIES,
    SEVERITIES,
    _free_form,
    _spline,
    _visible,
    corrupt,
    list_corruptions,
)
from pcl_clora.data.transforms import normalize_unit_sphere

MOVES = [
    "modelnet40_c.uniform",
    "modelnet40_c.gaussian",
    "modelnet40_c.rotation",
    "modelnet40_c.shear",
    "modelnet40_c.distortion",
    "modelnet40_c.distortion_rbf",
    "modelnet40_c.distortion_rbf_inv",
    "pointcloud_c.scale",
    "pointcloud_c.jitter",
    "pointcloud_c.rotate",
    "sweep.rotate_y",
    "sweep.rotate_so3",
]


def cube_cloud(num_points=512, seed=0, dtype=torch.float32):
    """A cloud that touches all sides of the cube -1..1, so that fitting it into the cube changes nothing."""
    points = torch.rand(num_points, 3, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 2 - 1
    points[0], points[1] = -1, 1
    return points


def ball_cloud(num_points=512, seed=0):
    return normalize_unit_sphere(torch.randn(num_points, 3, generator=torch.Generator().manual_seed(seed)))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_the_families_have_the_published_number_of_corruptions():
    assert [len(list_corruptions(family)) for family in FAMILIES] == [15, 7, 3]


@pytest.mark.parametrize("name", list_corruptions())
def test_the_same_seed_gives_the_same_cloud_and_another_seed_another(name):
    points = ball_cloud()
    before = points.clone()
    first = corrupt(points, name, 3, seeded(1))
    assert torch.equal(first, corrupt(points, name, 3, seeded(1)))
    assert not torch.equal(first, corrupt(points, name, 3, seeded(2)))
    assert torch.equal(points, before)
    assert first.dtype == points.dtype
    assert torch.isfinite(first).all()


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("name", list_corruptions())
def test_the_number_of_points_does_not_depend_on_cloud_or_seed(name, severity):
    sizes = {len(corrupt(ball_cloud(300, seed), name, severity, seeded(seed))) for seed in range(3)}
    assert len(sizes) == 1


@pytest.mark.parametrize("name", MOVES)
def test_a_higher_severity_moves_points_farther(name):
    points = ball_cloud() if name.startswith(("pointcloud_c", "sweep")) else cube_cloud()

    def mean_shift(severity):
        moved = [corrupt(points, name, severity, seeded(seed)) - points for seed in range(20)]
        return float(torch.stack(moved).norm(dim=-1).mean())

    assert mean_shift(1) < mean_shift(3) < mean_shift(5)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("modelnet40_c.cutout", [1024 - 30 * n for n in (2, 3, 5, 7, 10)]),
        ("modelnet40_c.density", [1024 - 75 * n for n in (1, 2, 3, 4, 5)]),
        ("modelnet40_c.background", [1024 + 1024 // n for n in (45, 40, 35, 30, 20)]),
        ("modelnet40_c.upsampling", [1024 + 1024 // n for n in (5, 4, 3, 2, 1)]),
        ("pointcloud_c.drop_global", [768, 640, 512, 384, 256]),
        ("pointcloud_c.drop_local", [1024 - 100 * n for n in (1, 2, 3, 4, 5)]),
        ("pointcloud_c.add_global", [1024 + 10 * n for n in (1, 2, 3, 4, 5)]),
        ("pointcloud_c.add_local", [1024 + 100 * n for n in (1, 2, 3, 4, 5)]),
    ],
)
def test_at_1024_points_the_counts_are_the_published_ones(name, sizes):
    points = ball_cloud(1024)
    assert [len(corrupt(points, name, severity, seeded())) for severity in SEVERITIES] == sizes


@pytest.mark.parametrize("name", ["modelnet40_c.cutout", "modelnet40_c.density", "pointcloud_c.drop_local"])
def test_what_is_removed_lies_together(name):
    points = ball_cloud(1024)
    left = corrupt(points, name, 1, seeded())
    is_left = (points[:, None] == left[None]).all(-1).any(1)
    removed = points[~is_left]
    assert is_left.sum() == len(left)  # what is left was not moved
    nearest = torch.cdist(removed, removed).topk(4, largest=False).values[:, -1].mean()
    anywhere = points[torch.randperm(1024, generator=seeded())[: len(removed)]]
    assert nearest < torch.cdist(anywhere, anywhere).topk(4, largest=False).values[:, -1].mean()


@pytest.mark.parametrize("name", ["pointcloud_c.rotate", "sweep.rotate_y", "sweep.rotate_so3"])
def test_rotations_keep_all_distances(name):
    points = ball_cloud(100)
    turned = corrupt(points, name, 5, seeded())
    distances = [torch.cdist(cloud.double(), cloud.double()) for cloud in (points, turned)]
    torch.testing.assert_close(*distances, atol=1e-5, rtol=0)


def test_the_sweep_about_y_keeps_heights():
    points = ball_cloud()
    torch.testing.assert_close(corrupt(points, "sweep.rotate_y", 5, seeded())[:, 1], points[:, 1])


@pytest.mark.parametrize(("inverse", "kernel"), [(False, "multiquadric"), (True, "inverse_multiquadric")])
def test_the_spline_distortions_are_those_of_scipy(inverse, kernel):
    points = cube_cloud(200, dtype=torch.float64)
    axis = torch.linspace(-1, 1, 5, dtype=torch.float64)
    control = torch.cartesian_prod(axis, axis, axis)
    alpha, gamma = (torch.rand((2, 125), generator=seeded(4)) * 2 * math.pi - math.pi).double()
    way = torch.stack([alpha.cos() * gamma.sin(), alpha.sin() * gamma.sin(), gamma.cos()], dim=1)
    oracle = RBFInterpolator(control, control + 0.075 * way, kernel=kernel, epsilon=2.0, degree=1)
    expected = torch.from_numpy(oracle(points))
    expected = expected - (expected.amin(0) + expected.amax(0)) / 2
    expected = expected * 2 / (expected.amax(0) - expected.amin(0)).max()
    torch.testing.assert_close(_spline(points, 3, seeded(4), inverse=inverse), expected, atol=1e-6, rtol=0)


def test_free_form_deformation_is_the_bernstein_sum():
    points = cube_cloud(64, dtype=torch.float64)
    shift = (torch.rand((5, 5, 5, 3), generator=seeded(7)) * 2 - 1).double() * 0.3
    expected = points.clone()
    for row, place in enumerate(((points + 1) / 2).tolist()):
        for i in range(5):
            for j in range(5):
                for k in range(5):
                    weight = math.prod(
                        math.comb(4, n) * t**n * (1 - t) ** (4 - n)
                        for n, t in zip((i, j, k), place, strict=True)
                    )
                    expected[row] += 2 * weight * shift[i, j, k]
    expected = expected - (expected.amin(0) + expected.amax(0)) / 2
    expected = expected * 2 / (expected.amax(0) - expected.amin(0)).max()
    torch.testing.assert_close(_free_form(points, 3, seeded(7)), expected, atol=1e-6, rtol=0)


def test_of_a_sphere_the_near_side_is_seen_and_the_far_side_is_not():
    points = torch.nn.functional.normalize(torch.randn(4000, 3, generator=seeded()), dim=1)
    viewpoint = torch.tensor([0.0, 0.0, 2.5])
    seen = _visible(points, viewpoint)
    assert seen[points[:, 2] > 0.7].float().mean() > 0.99
    assert seen[points[:, 2] < -0.2].float().mean() < 0.05


@pytest.mark.parametrize(
    ("points", "name", "severity", "message"),
    [
        (ball_cloud(), "modelnet40_c.uniformm", 1, r"did you mean.*modelnet40_c\.uniform"),
        (ball_cloud(), "pointcloud_c.scale", 0, "severity=0; corruptions have severities 1 to 5"),
        (ball_cloud()[:63], "pointcloud_c.scale", 1, "at least 64 points"),
        (ball_cloud()[None], "pointcloud_c.scale", 1, r"need \(N, 3\)"),
    ],
)
def test_wrong_arguments_are_refused(points, name, severity, message):
    with pytest.raises(ValueError, match=f"(?i){message}"):
        corrupt(points, name, severity, seeded())
