import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from pcl_clora.data import (
    AUGMENTATIONS,
    fps_resample,
    isotropic,
    make_augment,
    normalize_unit_sphere,
    resample,
    rotate_so3,
    rotate_y,
    scale_shift,
)
from pcl_clora.data.transforms import (
    apply_rotation_y,
    apply_scale_shift,
    pool_size,
    quaternion_matrix,
    take_pool,
)

EXACT = {"atol": 1e-6, "rtol": 0}  # a few float32 roundings of numbers up to 2


@pytest.fixture
def augment_golden(golden):
    return {
        key: torch.from_numpy(np.array(value))
        for key, value in np.load(golden / "schedule_augment.npz").items()
    }


@pytest.fixture
def published(augment_golden):
    """The global generator of numpy, seeded as the published code did for the golden file."""
    return np.random.RandomState(int(augment_golden["aug_seed"]))


def test_scale_and_shift_give_the_published_clouds(augment_golden, published):
    drawn = [(published.uniform(2 / 3, 3 / 2, 3), published.uniform(-0.2, 0.2, 3)) for _ in range(3)]
    scale, shift = (
        torch.tensor(np.stack(numbers), dtype=torch.float32) for numbers in zip(*drawn, strict=True)
    )
    found = apply_scale_shift(augment_golden["aug_points"], scale, shift)
    torch.testing.assert_close(found, augment_golden["aug_scale_translate"], **EXACT)


def test_rotation_gives_the_published_clouds(augment_golden, published):
    angle = torch.tensor([published.uniform() * 2 * np.pi for _ in range(3)], dtype=torch.float32)
    found = apply_rotation_y(augment_golden["aug_points"], angle)
    torch.testing.assert_close(found, augment_golden["aug_rotate_y"], **EXACT)


def test_part_segmentation_scaling_gives_the_published_clouds(augment_golden, published):
    scale = torch.tensor(published.uniform(0.8, 1.25, (3, 1)), dtype=torch.float32)
    shift = torch.tensor(published.uniform(-0.1, 0.1, (3, 3)), dtype=torch.float32)
    found = apply_scale_shift(augment_golden["aug_points"], scale, shift)
    torch.testing.assert_close(found, augment_golden["aug_seg_scale_shift"], **EXACT)


def test_normalising_gives_the_published_cloud(augment_golden):
    found = normalize_unit_sphere(augment_golden["normalize_in"][None])[0]
    torch.testing.assert_close(found, augment_golden["normalize_out"], **EXACT)


def test_resampling_gives_the_published_points(golden):
    file = np.load(golden / "ops_pointnet2.npz")
    points, choice = torch.from_numpy(file["resample_xyz"]), torch.from_numpy(file["resample_choice"]).long()
    found = take_pool(points, int(file["resample_point_all"]), choice, compat="pointnet2")
    assert torch.equal(found, torch.from_numpy(file["resample_out"]))


@pytest.mark.parametrize("preset", AUGMENTATIONS)
def test_an_augmentation_is_decided_by_its_generator(preset, points):
    augment = make_augment(preset)
    first, again = (augment(points, torch.Generator().manual_seed(5)) for _ in range(2))
    assert torch.equal(first, again)
    assert first.shape == points.shape
    assert first.dtype == points.dtype


@pytest.mark.parametrize("preset", [name for name in AUGMENTATIONS if name != "none"])
def test_an_augmentation_treats_every_cloud_differently(preset, points, generator):
    twins = points[:1].repeat(2, 1, 1)
    before = twins.clone()
    result = make_augment(preset)(twins, generator)
    assert not torch.allclose(result[0], result[1], atol=1e-2)
    assert torch.equal(twins, before)


def test_no_augmentation_changes_nothing(points, generator):
    assert torch.equal(make_augment("none")(points, generator), points)


def test_joined_augmentations_run_from_left_to_right(points):
    found = make_augment("rotate_y+isotropic")(points, torch.Generator().manual_seed(2))
    generator = torch.Generator().manual_seed(2)
    assert torch.equal(found, isotropic(rotate_y(points, generator), generator))


@pytest.mark.parametrize("preset", ["rotatey", "", "rotate_y+so4"])
def test_an_unknown_augmentation_names_those_that_exist(preset):
    with pytest.raises(ValueError, match="scale_shift"):
        make_augment(preset)


def test_scale_and_shift_stay_in_their_ranges(generator):
    corners = torch.tensor([[[0.0, 0, 0], [1, 1, 1]]]).repeat(500, 1, 1)
    result = scale_shift(corners, generator)
    shift, scale = result[:, 0], result[:, 1] - result[:, 0]
    assert -0.2 <= float(shift.min()) < -0.19
    assert 0.19 < float(shift.max()) <= 0.2
    # Differences of float32 numbers up to 1.7 are off by up to 2e-7.
    assert 2 / 3 - 1e-6 <= float(scale.min()) < 0.68
    assert 1.48 < float(scale.max()) <= 1.5 + 1e-6


@pytest.mark.parametrize("rotate", [rotate_y, rotate_so3])
def test_rotations_keep_lengths_and_handedness(rotate, generator):
    frame = torch.eye(3).repeat(20, 1, 1)
    result = rotate(frame, generator)
    torch.testing.assert_close(result @ result.mT, frame, **EXACT)
    torch.testing.assert_close(torch.linalg.det(result), torch.ones(20), **EXACT)


def test_rotation_about_y_keeps_heights(points, generator):
    assert torch.equal(rotate_y(points, generator)[..., 1], points[..., 1])


def test_rotations_of_space_point_everywhere(generator):
    ups = rotate_so3(torch.tensor([[[0.0, 1, 0]]]).repeat(4000, 1, 1), generator)[:, 0]
    # Mean of a coordinate on the sphere: 0 +- 0.009; mean square: 1/3 +- 0.005.
    assert ups.mean(dim=0).abs().max() < 0.04
    assert (ups.square().mean(dim=0) - 1 / 3).abs().max() < 0.025


def test_quaternions_become_the_matrices_that_scipy_has(generator):
    quaternion = torch.randn(10, 4, generator=generator, dtype=torch.float64)
    expected = Rotation.from_quat(quaternion.roll(-1, dims=1).numpy()).as_matrix()
    np.testing.assert_allclose(quaternion_matrix(quaternion).numpy(), expected, atol=1e-14)


@settings(max_examples=30, deadline=None)
@given(scale=st.floats(1e-3, 1e3), shift=st.floats(-10, 10), seed=st.integers(0, 99))
def test_normalised_clouds_touch_the_unit_sphere_around_their_mean(scale, shift, seed):
    cloud = torch.randn(2, 50, 3, generator=torch.Generator().manual_seed(seed)) * scale + shift * scale
    result = normalize_unit_sphere(cloud)
    # The mean of 50 float32 numbers up to 10 times the size of the cloud is off by about 1e-6 of it.
    assert result.mean(dim=1).abs().max() < 1e-5
    torch.testing.assert_close(result.norm(dim=-1).amax(dim=-1), torch.ones(2), atol=1e-5, rtol=0)


def test_a_cloud_of_one_place_becomes_zeros():
    assert torch.equal(normalize_unit_sphere(torch.full((1, 4, 3), 7.0)), torch.zeros(1, 4, 3))


@pytest.mark.parametrize(
    ("num_points", "available", "expected"),
    [
        (1024, 8192, 1200),
        (2048, 8192, 2400),
        (4096, 8192, 4800),
        (8192, 8192, 8192),
        (1024, 1100, 1100),
        (600, 9999, 700),
    ],
)
def test_pool_sizes_are_those_of_the_published_table(num_points, available, expected):
    assert pool_size(num_points, available) == expected


def test_resampling_makes_one_choice_for_the_whole_batch(points):
    twins = points[:1].repeat(2, 1, 1)
    result = resample(twins, 32, torch.Generator().manual_seed(0))
    assert torch.equal(result[0], result[1])
    assert len(torch.unique(result[0], dim=0)) == 32


def test_resampling_takes_from_the_far_points_only(points):
    from pcl_clora.ops import farthest_point_sample

    pool = farthest_point_sample(points, 40)
    result = resample(points, 32, torch.Generator().manual_seed(0), num_pool=40)
    allowed = {tuple(points[1, index].tolist()) for index in pool[1]}
    assert {tuple(point) for point in result[1].tolist()} <= allowed


def test_resampling_all_points_only_shuffles_them(points):
    result = resample(points, 128, torch.Generator().manual_seed(0))
    assert not torch.equal(result, points)
    assert torch.equal(result[0].sort(dim=0).values, points[0].sort(dim=0).values)


def test_test_resampling_is_farthest_point_sampling(points):
    from pcl_clora.ops import farthest_point_sample, gather_points

    expected = gather_points(points, farthest_point_sample(points, 20))
    assert torch.equal(fps_resample(points, 20), expected)


def test_test_resampling_of_all_points_gives_the_same_groups_as_farthest_point_sampling(points):
    from pcl_clora.ops import farthest_point_sample, gather_points, group_points

    reordered = gather_points(points, farthest_point_sample(points, 128))
    assert torch.equal(
        group_points(fps_resample(points, 128), 16, 8).center, group_points(reordered, 16, 8).center
    )


@pytest.mark.parametrize("num_points", [0, 129])
def test_more_points_than_there_are_cannot_be_taken(num_points, points, generator):
    with pytest.raises(ValueError, match=f"num_points={num_points}.*128"):
        resample(points, num_points, generator)
    with pytest.raises(ValueError, match=f"num_points={num_points}.*128"):
        fps_resample(points, num_points)


def test_a_pool_of_a_wrong_size_is_refused(points, generator):
    with pytest.raises(ValueError, match="num_pool=10"):
        resample(points, 32, generator, num_pool=10)


def test_points_without_a_batch_dimension_are_refused(points, generator):
    with pytest.raises(ValueError, match=r"\(128, 3\)"):
        scale_shift(points[0], generator)
