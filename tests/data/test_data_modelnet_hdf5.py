import h5py
import numpy as np
import pytest
import torch

from pcl_clora.config import ConfigError
from pcl_clora.data import build_dataset, build_validation, count_classes
from pcl_clora.io import DataError
from tests.support.data_layouts import CLASSES, clouds, make_hdf5


def build(root, split="train", **settings):
    return build_dataset({"name": "modelnet40_hdf5", "root": str(root), "num_points": 64, **settings}, split)


@pytest.fixture
def root(tmp_path):
    return make_hdf5(tmp_path / "modelnet40_ply_hdf5_2048")


@pytest.mark.parametrize("split", ["train", "test"])
def test_all_shapes_of_a_split_are_read_in_file_order(root, split):
    dataset = build(root, split)
    expected = clouds(len(split), len(dataset), 64, 3)
    assert np.array_equal(dataset.read_batch(range(len(dataset))).points.numpy(), expected)
    assert dataset.labels.tolist() == [0, 1, 2, 0, 1, 2, 0][: len(dataset)]
    assert dataset.class_names == CLASSES


def test_a_sample_says_where_it_comes_from(root):
    assert build(root)[5].path == f"{root / 'ply_data_train1.h5'}#0"


def test_fewer_points_are_the_first_ones(root):
    assert torch.equal(build(root, num_points=10)[3].points, build(root)[3].points[:10])


def test_a_pool_holds_more_points_than_the_model_sees(root):
    assert build(root, num_points=16, pool_points=32)[0].points.shape == (32, 3)


def test_files_are_found_without_lists_in_the_order_of_their_numbers(tmp_path):
    root = make_hdf5(tmp_path / "data", listing=False, id_lists=False)
    (root / "ply_data_train1.h5").rename(root / "ply_data_train10.h5")
    (root / "ply_data_train0.h5").rename(root / "ply_data_train9.h5")
    assert len(build(root)) == 7
    assert build(root)[0].path.endswith("ply_data_train9.h5#0")


def test_normalising_is_an_option(root):
    points = build(root, normalize=True).read_batch(range(7)).points
    torch.testing.assert_close(points.norm(dim=-1).amax(dim=-1), torch.ones(7), atol=1e-6, rtol=0)
    assert points.mean(dim=1).abs().max() < 1e-6


def test_labels_of_one_dimension_are_read(root):
    with h5py.File(root / "ply_data_test0.h5", "a") as file:
        del file["label"]
        file["label"] = np.array([2, 1, 0, 2])
    assert build(root, "test").labels.tolist() == [2, 1, 0, 2]


def test_missing_class_names_are_taken_from_modelnet40_with_a_warning(root, caplog):
    (root / "shape_names.txt").unlink()
    assert build(root).class_names[1] == "bathtub"
    assert "shape_names.txt is missing" in caplog.text


def damage_label(root):
    with h5py.File(root / "ply_data_train0.h5", "a") as file:
        file["label"][3] = 3


def damage_value(root):
    with h5py.File(root / "ply_data_train0.h5", "a") as file:
        file["data"][2, 5, 1] = np.nan


def damage_shape(root):
    with h5py.File(root / "ply_data_train0.h5", "a") as file:
        del file["data"]
        file["data"] = np.zeros((5, 64, 2), np.float32)


def damage_keys(root):
    with h5py.File(root / "ply_data_train0.h5", "a") as file:
        del file["label"]


def damage_count(root):
    with h5py.File(root / "ply_data_train0.h5", "a") as file:
        del file["label"]
        file["label"] = np.zeros((4, 1), np.uint8)


def label_of_no_axis(root):
    with h5py.File(root / "ply_data_train0.h5", "a") as file:
        del file["label"]
        file["label"] = 3


def points_as_text(root):
    with h5py.File(root / "ply_data_train0.h5", "a") as file:
        del file["data"]
        file["data"] = np.full((5, 64, 3), b"x")


def truncate(root):
    file = root / "ply_data_train0.h5"
    file.write_bytes(file.read_bytes()[:1500])


def many_classes(root):
    (root / "shape_names.txt").unlink()
    with h5py.File(root / "ply_data_train0.h5", "a") as file:
        file["label"][3] = 40


@pytest.mark.parametrize(
    ("damage", "file", "message"),
    [
        (damage_label, "ply_data_train0.h5", r"label 3 at row 3 .*expected 0\.\.2.*shape_names"),
        (damage_value, "ply_data_train0.h5", r"1 of 5 shapes.*not finite.*row 2.*get it again"),
        (damage_shape, "ply_data_train0.h5", r"\(5, 64, 2\), expected \(shapes, points, 3\)"),
        (damage_keys, "ply_data_train0.h5", r"has data, expected datasets 'data' and 'label'"),
        (damage_count, "ply_data_train0.h5", r"'label' is uint8 \(4, 1\), expected integers \(5, 1\)"),
        (label_of_no_axis, "ply_data_train0.h5", r"'label' is int64 \(\), expected integers"),
        (points_as_text, "ply_data_train0.h5", r"expected \(shapes, points, 3\), numbers"),
        (
            lambda root: (root / "shape_names.txt").write_bytes(b"\xe9"),
            "shape_names.txt",
            "is not text in utf-8",
        ),
        (truncate, "ply_data_train0.h5", r"may be truncated.*get it again"),
        (
            lambda root: (root / "ply_data_train1.h5").unlink(),
            "ply_data_train1.h5",
            r"train_files.txt lists it",
        ),
        (lambda root: (root / "train_files.txt").write_text("\n"), "", r"no ply_data_train\*\.h5"),
        (
            lambda root: (root / "shape_names.txt").write_text("a\na\n"),
            "shape_names.txt",
            "one distinct name a line",
        ),
        (many_classes, "shape_names.txt", r"labels go up to 40; write"),
    ],
)
def test_a_damaged_folder_names_file_expectation_and_remedy(root, damage, file, message):
    damage(root)
    with pytest.raises(DataError, match=message) as caught:
        build(root)
    assert caught.value.file == str(root / file)


def test_a_missing_folder_says_which_one_was_expected(tmp_path):
    with pytest.raises(DataError, match=r"nowhere.*no such folder.*data\.root"):
        build(tmp_path / "nowhere")


def test_more_points_than_stored_say_how_many_there_are(root):
    with pytest.raises(DataError, match=r"stores 64 points.*65 were asked for.*data\.num_points"):
        build(root, num_points=65)


@pytest.mark.slow
@pytest.mark.shared_data
@pytest.mark.parametrize(("split", "count"), [("train", 9843), ("test", 1234)])
def test_all_of_real_modelnet40_is_read(shared, split, count):
    from pcl_clora.data import MODELNET40_CLASSES

    root = shared / "data" / "modelnet40_ply_hdf5_1024"
    dataset = build(root, split, num_points=256)
    assert len(dataset) == count
    assert dataset.class_names == MODELNET40_CLASSES
    assert len(torch.unique(dataset.labels)) == 40
    with h5py.File(root / f"ply_data_{split}0.h5") as file:
        assert np.array_equal(dataset[7].points.numpy(), file["data"][7, :256])
        assert int(dataset.labels[7]) == int(file["label"][7, 0])


@pytest.mark.shared_data
def test_another_data_set_in_the_same_layout_is_read(shared):
    dataset = build(shared / "data" / "infomr_shapedb_hdf5_1024", "test", num_points=1024)
    assert (len(dataset), len(dataset.class_names)) == (296, 69)
    with h5py.File(shared / "data" / "infomr_shapedb_hdf5_1024" / "ply_data_test0.h5") as file:
        assert dataset.labels.tolist() == file["label"][:, 0].tolist()


def with_gaps(folder):
    """Four names, of which the second and the last have no clouds."""
    (folder / "shape_names.txt").write_text("a\nb\nc\nd\n")
    for split, labels in (("train", [0, 2, 2, 0, 0, 2]), ("test", [2, 0])):
        with h5py.File(folder / f"ply_data_{split}0.h5", "w") as file:
            file["data"] = np.random.default_rng(0).random((len(labels), 64, 3), dtype=np.float32)
            file["label"] = np.array(labels, dtype=np.uint8)[:, None]
    return folder


def test_names_without_training_clouds_are_no_classes_on_request(tmp_path):
    root = with_gaps(tmp_path)
    train = build(root, drop_empty_classes=True)
    test = build(root, "test", drop_empty_classes=True)
    assert train.class_names == test.class_names == ("a", "c")
    assert train.labels.tolist() == [0, 1, 1, 0, 0, 1]
    assert test.labels.tolist() == [1, 0]
    shots = build(root, drop_empty_classes=True, shots=2)
    assert sorted(shots.labels.tolist()) == [0, 0, 1, 1]


def test_shots_leave_empty_classes_out_where_they_are_allowed(tmp_path):
    root = with_gaps(tmp_path)
    with pytest.raises(DataError, match="2 of 4 have fewer"):
        build(root, shots=2)
    chosen = build(root, shots=2, allow_empty_classes=True)
    assert sorted(chosen.labels.tolist()) == [0, 0, 2, 2]


def test_a_test_cloud_of_a_dropped_class_is_refused(tmp_path):
    root = with_gaps(tmp_path)
    with h5py.File(root / "ply_data_test0.h5", "a") as file:
        file["label"][0] = 3
    with pytest.raises(DataError, match="'d', of which train has none"):
        build(root, "test", drop_empty_classes=True)


def test_the_classes_of_a_config_are_counted_from_labels(tmp_path):
    config = {"name": "modelnet40_hdf5", "root": str(with_gaps(tmp_path))}
    assert count_classes(config) == 4
    assert count_classes({**config, "drop_empty_classes": True}) == 2
    assert count_classes({**config, "root": str(tmp_path / "nowhere")}) is None


def test_validation_shots_are_training_clouds_that_are_no_shots(tmp_path):
    config = {"name": "modelnet40_hdf5", "root": str(with_gaps(tmp_path)), "num_points": 64}
    config |= {"drop_empty_classes": True, "shots": 2, "shots_seed": 3}
    train = build_dataset({**config, "val_shots": 1}, "train")
    validation = build_validation({**config, "val_shots": 1})
    assert validation.labels.tolist() in ([0, 1], [1, 0])
    seen = {tuple(sample.points.flatten().tolist()) for sample in train}
    assert not seen & {tuple(sample.points.flatten().tolist()) for sample in validation}
    with pytest.raises(ConfigError, match="val_shots=1 takes validation clouds"):
        build_validation({**config, "shots": 0, "val_shots": 1})
