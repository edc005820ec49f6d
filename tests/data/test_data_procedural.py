import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pcl_clora.data import (
    PROCEDURAL_CLASSES,
    PROCEDURAL_PARTS,
    PointDataset,
    build_dataset,
    generate_shape,
)
from pcl_clora.data.generated.procedural import ProceduralConfig, generate_mesh
from pcl_clora.data.shapes import Draw

# Written down by another process. Coordinates count to three decimals: sines may differ in the last bit from
# one processor to the next. A change of this number changes the data of everyone: the changelog says so.
FINGERPRINT = "ff6c4dec587f4ef8"


def build(split="train", **values):
    sizes = {"num_points": 64, "train_size": 80, "test_size": 40}
    return build_dataset({"name": "procedural", **sizes, **values}, split)


def test_there_are_enough_classes_with_distinct_parts():
    assert len(PROCEDURAL_CLASSES) >= 20
    assert list(PROCEDURAL_CLASSES) == sorted(PROCEDURAL_CLASSES)
    assert all(2 <= len(parts) == len(set(parts)) for parts in PROCEDURAL_PARTS.values())


def test_shapes_are_the_same_in_every_process_on_every_machine_and_in_every_version():
    digest = hashlib.sha256()
    for name in PROCEDURAL_CLASSES:
        for index in (0, 7, 1_000_000):
            points, parts = generate_shape(name, index, 128, seed=3)
            digest.update(np.round(points.astype(np.float64) * 1000).astype("<i2").tobytes())
            digest.update(parts.astype("u1").tobytes())
    assert digest.hexdigest()[:16] == FINGERPRINT


@pytest.mark.parametrize("name", PROCEDURAL_CLASSES)
def test_shapes_fill_the_unit_sphere_around_their_mean(name):
    points, parts = generate_shape(name, 5, 500)
    assert points.dtype == np.float32
    assert points.shape == (500, 3)
    assert parts.dtype == np.int64
    assert np.abs(points.mean(axis=0)).max() < 1e-6
    assert np.linalg.norm(points, axis=1).max() == pytest.approx(1.0, abs=1e-6)
    assert 0 <= parts.min() <= parts.max() < len(PROCEDURAL_PARTS[name])


@settings(max_examples=80, deadline=None)
@given(
    name=st.sampled_from(PROCEDURAL_CLASSES),
    index=st.integers(0, 2**40),
    seed=st.integers(0, 2**40),
    deform=st.floats(0, 2),
    pose=st.sampled_from(["small", "y", "so3"]),
)
def test_every_shape_is_finite_and_has_room(name, index, seed, deform, pose):
    points, _ = generate_shape(name, index, 64, seed=seed, deform=deform, pose=pose)
    assert np.isfinite(points).all()
    assert np.linalg.matrix_rank(points - points.mean(axis=0), tol=1e-3) == 3


@pytest.mark.parametrize("change", [{"index": 4}, {"seed": 1}, {"split": "test"}, {"class_name": "stool"}])
def test_index_seed_split_and_class_each_give_another_shape(change):
    values = {"class_name": "chair", "index": 3, "num_points": 64, "seed": 0, "split": "train"}
    first, again, other = (generate_shape(**each) for each in (values, values, {**values, **change}))
    assert np.array_equal(first.points, again.points)
    assert not np.isin(first.points, other.points).any()


def test_chairs_differ_from_one_another_in_proportion():
    sizes = np.stack([np.ptp(generate_mesh("chair", Draw(k)).vertices, axis=0) for k in range(40)])
    assert (sizes.std(axis=0) / sizes.mean(axis=0)).min() > 0.08


def test_without_deformation_the_shape_is_as_it_was_built():
    box = generate_mesh("cabinet", Draw("plain"), deform=0)
    bent = generate_mesh("cabinet", Draw("plain"))
    assert box.vertices.shape == bent.vertices.shape
    assert not np.allclose(box.vertices, bent.vertices)
    np.testing.assert_allclose(box.vertices.min(axis=0), -box.vertices.max(axis=0), atol=1e-12)


def test_small_poses_keep_y_up():
    tops = []
    for index in range(30):
        points, parts = generate_shape("table", index, 400, noise=0.0)
        top = PROCEDURAL_PARTS["table"].index("top")
        tops.append(points[parts == top, 1].mean() - points[parts != top, 1].mean())
    assert min(tops) > 0.1


def spread_of_directions(pose):
    """Second moments of where the top of a rocket points, over many shapes."""
    nose = PROCEDURAL_PARTS["rocket"].index("nose")
    tips = []
    for index in range(300):
        points, parts = generate_shape("rocket", index, 60, pose=pose, deform=0.0, noise=0.0)
        tip = points[parts == nose].mean(axis=0)
        tips.append(tip / np.linalg.norm(tip))
    return np.square(tips).mean(axis=0)


def test_free_poses_point_everywhere():
    assert np.abs(spread_of_directions("so3") - 1 / 3).max() < 0.07  # standard deviation 0.017


def test_poses_about_y_keep_y_up():
    assert spread_of_directions("y")[1] > 0.95


def test_noise_lifts_points_off_the_surface():
    def roughness(noise):
        points, _ = generate_shape("bowl", 3, 2000, noise=noise, deform=0.0)
        nearest = np.sort(np.linalg.norm(points[:200, None] - points[None, :], axis=-1), axis=1)[:, 1:4]
        return nearest.mean()

    assert roughness(0.1) > roughness(0.0) * 1.2


# Which part lies farther out along an axis: (class, axis, part, other part).
PLACES = [
    ("chair", 1, "back", "seat"), ("chair", 1, "seat", "leg"), ("lamp", 0, "shade", "pole"),
    ("mug", 0, "handle", "body"), ("rocket", 1, "nose", "nozzle"), ("bottle", 1, "neck", "body"),
    ("guitar", 1, "head", "body"), ("cup", 1, "bowl", "base"), ("umbrella", 1, "canopy", "handle"),
    ("laptop", 1, "screen", "keyboard"), ("airplane", 0, "wing", "fuselage"), ("plant", 1, "leaf", "pot"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "axis", "part", "other"), PLACES)
def test_parts_lie_where_they_belong(name, axis, part, other):
    labels = PROCEDURAL_PARTS[name]
    for index in range(12):
        points, parts = generate_shape(name, index, 1500, noise=0.0)
        outer, inner = (points[parts == labels.index(each), axis] for each in (part, other))
        if axis == 0:
            outer, inner = np.abs(outer), np.abs(inner)
        assert outer.max() > inner.max(), f"shape {index}"


def test_the_data_set_follows_the_protocol():
    dataset = build()
    assert isinstance(dataset, PointDataset)
    assert len(dataset) == 80
    assert dataset.class_names == PROCEDURAL_CLASSES
    assert torch.bincount(dataset.labels).tolist() == [2] * 40


@pytest.mark.parametrize("keep", [True, False])
def test_samples_and_batches_agree(keep):
    dataset = build(keep=keep, classes=("sofa", "mug", "key"))
    batch = dataset.read_batch([4, 70, 4])
    samples = [dataset[4], dataset[70], dataset[-76]]
    assert torch.equal(batch.points, torch.stack([sample.points for sample in samples]))
    assert torch.equal(batch.part_labels, torch.stack([sample.part_labels for sample in samples]))
    assert (
        batch.label.tolist() == batch.category.tolist() == [sample.label for sample in samples] == [1, 1, 1]
    )
    assert samples[1].path == "procedural:0/train/mug/23"


def test_keeping_shapes_changes_nothing_but_time():
    kept, fresh = build(keep=True).materialize(), build(keep=False)
    assert torch.equal(kept.read_batch(range(80)).points, fresh.read_batch(range(80)).points)


def test_kept_shapes_are_not_changed_by_those_who_read_them():
    dataset = build()
    first = dataset[3].points.clone()
    dataset[3].points.zero_()
    dataset.read_batch([3]).points.zero_()
    assert torch.equal(dataset[3].points, first)


def test_a_shape_does_not_depend_on_the_classes_beside_it():
    few, all_classes = build(classes=("vase", "chair")), build()
    chair = PROCEDURAL_CLASSES.index("chair")
    assert torch.equal(few[3].points, all_classes[40 + chair].points)


def test_part_labels_count_through_the_chosen_classes():
    dataset = build(classes=("mug", "knife", "table"))
    assert dataset.part_names[:5] == ("mug/body", "mug/handle", "knife/blade", "knife/guard", "knife/handle")
    assert dataset.part_names[5:] == ("table/top", "table/leg", "table/shelf")
    assert dataset.part_ranges == (range(0, 2), range(2, 5), range(5, 8))
    samples = [dataset[0], dataset[1], dataset[2]]
    assert all(set(one.part_labels.tolist()) <= set(dataset.part_ranges[one.category]) for one in samples)


def test_train_and_test_share_no_shape():
    train, test = build().read_batch(range(40)), build("test").read_batch(range(40))
    assert not torch.isin(train.points, test.points).any()


def test_a_data_set_can_be_of_any_size_without_being_made():
    assert len(build(train_size=10_000_000, keep=False)) == 10_000_000


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"classes": ["chairs"]}, "'chair'"),
        ({"classes": []}, "at least one"),
        ({"classes": ["mug", "mug"]}, "twice"),
        ({"pose": "z"}, "small"),
        ({"noise": 0.5}, "0.2"),
    ],
)
def test_wrong_settings_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        ProceduralConfig(**values)


def test_all_classes_have_a_short_name():
    assert ProceduralConfig(classes="all").classes == PROCEDURAL_CLASSES


def test_an_unknown_class_names_the_nearest_one():
    with pytest.raises(ValueError, match="airplane"):
        generate_shape("aeroplane", 0)


@pytest.mark.slow
def test_shapes_tell_their_class():
    """A nearest neighbour on coarse occupancy beats chance by far: classes differ by shape, not by chance."""

    def grids(split, size):
        batch = build(split, train_size=size, test_size=size, num_points=256).read_batch(range(size))
        cell = ((batch.points + 1) * 4).long().clamp(0, 7)
        flat = cell[..., 0] * 64 + cell[..., 1] * 8 + cell[..., 2]
        grid = torch.zeros(size, 512).scatter_add_(1, flat, torch.ones_like(flat, dtype=torch.float32)).sqrt()
        return grid, batch.label

    (train, train_label), (test, test_label) = grids("train", 800), grids("test", 200)
    found = train_label[torch.cdist(test, train).argmin(dim=1)]
    assert (found == test_label).float().mean() > 0.6  # chance: 0.025
