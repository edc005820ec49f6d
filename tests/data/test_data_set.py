import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pcl_clora.data import (
    MODELNET40_CLASSES,
    ArrayDataset,
    DataConfig,
    PointDataset,
    Sample,
    build_dataset,
    list_datasets,
    parse_data_config,
    register_dataset,
    split_validation,
    stack_samples,
)
from pcl_clora.io import DataError


def make(count=6, num_points=5):
    points = np.arange(count * num_points * 3, dtype=np.float32).reshape(count, num_points, 3)
    return ArrayDataset(points, torch.arange(count) % 2, ("a", "b"), [f"file#{row}" for row in range(count)])


def test_array_data_set_follows_the_protocol():
    assert isinstance(make(), PointDataset)


def test_a_batch_is_the_samples_in_the_order_asked_for():
    dataset = make()
    batch = dataset.read_batch([4, 0, 4])
    assert torch.equal(batch.points, torch.stack([dataset[4].points, dataset[0].points, dataset[4].points]))
    assert (batch.label.tolist(), batch.index.tolist()) == ([0, 0, 0], [4, 0, 4])


def test_changing_what_was_read_does_not_change_the_data_set():
    dataset = make()
    dataset[2].points.zero_()
    dataset.read_batch([2]).points.zero_()
    assert dataset[2].points.any()


def test_a_read_only_array_is_read_without_a_warning(recwarn):
    points = np.ones((2, 4, 3), np.float32)
    points.setflags(write=False)
    dataset = ArrayDataset(points, torch.zeros(2), ("a",))
    dataset[0].points.zero_()
    dataset.read_batch(torch.tensor([1])).points.zero_()
    assert not recwarn.list
    assert points.all()


def test_iterating_over_a_data_set_ends():
    assert [sample.index for sample in make()] == [0, 1, 2, 3, 4, 5]


def test_a_negative_index_counts_from_the_end():
    assert make()[-1].path == "file#5"


def test_an_index_out_of_range_is_an_index_error():
    with pytest.raises(IndexError, match="6 samples"):
        make()[6]


@pytest.mark.parametrize(
    "points", [np.zeros((2, 5, 2), np.float32), np.zeros((2, 5, 3)), np.zeros((3, 5, 3), np.float32)]
)
def test_arrays_of_a_wrong_shape_or_type_are_refused(points):
    with pytest.raises(ValueError, match=r"float32|labels"):
        ArrayDataset(points, torch.zeros(2), ("a",))


def test_stacking_keeps_part_labels_and_categories():
    samples = [Sample(torch.zeros(4, 3), 1, k, "", torch.arange(4), 7) for k in range(2)]
    batch = stack_samples(samples)
    assert batch.part_labels.shape == (2, 4)
    assert batch.category.tolist() == [7, 7]


def test_stacking_leaves_part_labels_out_where_one_sample_has_none():
    samples = [Sample(torch.zeros(4, 3), 1, 0, "", torch.arange(4)), Sample(torch.zeros(4, 3), 1, 1)]
    assert stack_samples(samples).part_labels is None


@pytest.mark.parametrize("sizes", [(), (3, 4)])
def test_clouds_of_different_sizes_cannot_be_stacked(sizes):
    with pytest.raises(ValueError, match=r"data\.num_points"):
        stack_samples([Sample(torch.zeros(size, 3), 0, k) for k, size in enumerate(sizes)])


def test_moving_a_batch_keeps_what_it_lacks():
    moved = make().read_batch([0, 1]).to("cpu")
    assert moved.part_labels is None
    assert len(moved) == 2


@settings(max_examples=50, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    fraction=st.floats(0.01, 0.99),
    seed=st.integers(0, 1000),
)
def test_validation_split_takes_its_share_of_every_class(sizes, fraction, seed):
    labels = torch.cat([torch.full((size,), label) for label, size in enumerate(sizes)])
    train, held_out = split_validation(labels, fraction, seed)
    assert sorted(train.tolist() + held_out.tolist()) == list(range(len(labels)))
    found = torch.bincount(labels[held_out], minlength=len(sizes)).tolist()
    assert found == [min(max(round(fraction * size), 1), size - 1) for size in sizes]


def test_validation_split_depends_on_the_seed_alone():
    labels = torch.arange(200) % 4
    first, again, other = (split_validation(labels, 0.2, seed)[1] for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1])
def test_a_fraction_out_of_range_is_refused(fraction):
    with pytest.raises(ValueError, match=str(fraction)):
        split_validation(torch.zeros(4), fraction, 0)


def test_modelnet40_has_its_forty_classes_in_alphabetical_order():
    assert len(MODELNET40_CLASSES) == 40
    assert list(MODELNET40_CLASSES) == sorted(MODELNET40_CLASSES)
    assert MODELNET40_CLASSES[14] == "dresser"


def test_every_data_set_is_listed():
    assert {"modelnet40_hdf5", "modelnet40_txt", "folder", "procedural"} <= set(list_datasets())


def test_a_data_set_registered_twice_is_refused():
    with pytest.raises(ValueError, match=r"procedural.*already"):
        register_dataset("procedural", DataConfig, make)


def test_an_unknown_data_set_names_the_nearest_one():
    with pytest.raises(ValueError, match="modelnet40_hdf5"):
        parse_data_config({"name": "modelnet_hdf5"})


def test_an_unknown_setting_names_the_nearest_one():
    with pytest.raises(ValueError, match="num_points"):
        parse_data_config({"name": "procedural", "num_point": 3})


def test_an_unknown_split_names_the_known_ones():
    with pytest.raises(ValueError, match=r"'val'.*train, test"):
        build_dataset({"name": "procedural"}, "val")


def test_a_pool_smaller_than_the_cloud_is_refused():
    with pytest.raises(ValueError, match="pool_points=100"):
        parse_data_config({"name": "procedural", "num_points": 128, "pool_points": 100})


NEEDED = {"fewshot": {"source": {"name": "procedural"}}}  # settings without a default
CONFIGS = {name: parse_data_config({"name": name, **NEEDED.get(name, {})}) for name in list_datasets()}


@pytest.mark.parametrize("name", [name for name, config in CONFIGS.items() if config.reads_files])
def test_a_data_set_of_files_never_reads_the_present_folder_unasked(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ValueError, match=rf"data\.root: is empty, but the data set {name} reads files; set it"
    ):
        build_dataset({"name": name}, "train")


@pytest.mark.parametrize("name", CONFIGS)
def test_settings_of_every_data_set_survive_a_round_trip(name):
    assert parse_data_config(CONFIGS[name].model_dump(mode="json")) == CONFIGS[name]


@pytest.mark.parametrize("name", ["folder", "modelnet40_hdf5", "shapenetpart_txt", "shapenetpart_hdf5"])
def test_a_file_in_place_of_the_folder_is_called_a_file(name, tmp_path):
    (tmp_path / "clouds").write_text("no folder")

    with pytest.raises(DataError, match=r"clouds: is a file, not a folder"):
        build_dataset(parse_data_config({"name": name, "root": str(tmp_path / "clouds")}), "train")
    with pytest.raises(DataError, match=r"gone: there is no such folder"):
        build_dataset(parse_data_config({"name": name, "root": str(tmp_path / "gone")}), "train")
