import numpy as np
import pytest
import torch

from pcl_clora.data import (
    PointDataset,
    build_dataset,
    build_validation,
    check_root,
    describe_root,
    parse_data_config,
)
from pcl_clora.io import DataError, write_points
from tests.support.data_layouts import clouds, make_folder

LAYOUTS = ("split/class", "class/split", "class")


def build(root, split="train", **settings):
    values = {"name": "folder", "root": str(root), "num_points": 40, **settings}
    return build_dataset(values, split)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_folders_are_classes_in_every_arrangement(tmp_path, layout):
    root = make_folder(tmp_path, layout)
    splits = [build(root, split, test_fraction=0.5) for split in ("train", "test")]
    assert all(isinstance(dataset, PointDataset) for dataset in splits)
    assert [dataset.class_names for dataset in splits] == [("ant", "bee")] * 2
    assert [torch.bincount(dataset.labels).tolist() for dataset in splits] == [[3, 3], [3, 3]]
    paths = {sample.path for dataset in splits for sample in dataset}
    assert len(paths) == 12
    assert all(("ant", "bee")[sample.label] in sample.path for sample in splits[0])


@pytest.mark.parametrize("layout", LAYOUTS[:2])
def test_files_stay_in_the_split_of_their_folder(tmp_path, layout):
    root = make_folder(tmp_path, layout)
    assert all("/test" in sample.path for sample in build(root, "test"))


def test_a_seeded_split_depends_on_the_seed(tmp_path):
    root = make_folder(tmp_path, "class", count=10)
    first, again, other = ([one.path for one in build(root, seed=seed)] for seed in (0, 0, 1))
    assert first == again != other


def test_a_cloud_of_the_right_size_is_read_as_it_is(tmp_path):
    sample = build(make_folder(tmp_path, "split/class"), normalize=False)[0]
    assert np.array_equal(sample.points.numpy(), clouds(0, 40, 3))


def test_a_choice_of_points_is_the_same_every_time_and_wherever_the_folder_is(tmp_path):
    here, there = (make_folder(tmp_path / name, "split/class") for name in ("here", "there"))
    first = build(here, num_points=25, normalize=False)[1].points
    assert torch.equal(first, build(there, num_points=25, normalize=False)[1].points)
    assert len(torch.unique(first, dim=0)) == 25
    assert not torch.equal(first, build(here, num_points=25, normalize=False, seed=1)[1].points)


def test_samples_and_batches_agree(tmp_path):
    dataset = build(make_folder(tmp_path, "split/class"), num_points=30, keep=False)
    batch = dataset.read_batch([3, 0])
    assert torch.equal(batch.points, torch.stack([dataset[3].points, dataset[0].points]))
    assert (batch.label.tolist(), batch.index.tolist()) == ([1, 0], [3, 0])


def test_kept_clouds_are_not_changed_by_those_who_read_them(tmp_path):
    dataset = build(make_folder(tmp_path, "split/class"))
    first = dataset[0].points.clone()
    dataset[0].points.zero_()
    dataset.read_batch([0]).points.zero_()
    assert torch.equal(dataset[0].points, first)


def test_too_few_points_are_an_error_unless_copies_are_wanted(tmp_path):
    root = make_folder(tmp_path, "split/class")
    with pytest.raises(DataError, match=r"train0\.npy: has 40 points, but 64 were asked for.*data\.repeat"):
        build(root, num_points=64)[0]
    filled = build(root, num_points=64, repeat=True, normalize=False)[0].points
    assert len(torch.unique(filled, dim=0)) == 40


def test_meshes_give_points_of_their_surface(tmp_path):
    folder = tmp_path / "train" / "square"
    folder.mkdir(parents=True)
    (folder / "a.off").write_text("OFF\n4 2 0\n0 0 0\n2 0 0\n2 0 2\n0 0 2\n3 0 1 2\n3 0 2 3\n")
    dataset = build(tmp_path, num_points=300, normalize=False)
    points = dataset[0].points
    assert torch.equal(points[:, 1], torch.zeros(300))
    assert points[:, [0, 2]].mean(dim=0).sub(1).abs().max() < 0.15  # standard deviation 0.033
    assert torch.equal(points, build(tmp_path, num_points=300, normalize=False)[0].points)


def test_a_mesh_without_area_is_an_error(tmp_path):
    folder = tmp_path / "train" / "dot"
    folder.mkdir(parents=True)
    (folder / "a.off").write_text("OFF 3 1 0\n0 0 0\n0 0 0\n0 0 0\n3 0 1 2\n")
    with pytest.raises(DataError, match=r"a\.off: the triangles of this mesh have no area"):
        build(tmp_path)[0]


def test_files_of_several_kinds_can_be_mixed(tmp_path):
    folder = tmp_path / "train" / "ant"
    folder.mkdir(parents=True)
    for suffix in (".npy", ".npz", ".txt", ".csv"):
        write_points(folder / f"a{suffix}", clouds(1, 40, 3))
    (folder / "notes.md").write_text("not points")
    (folder / ".hidden.npy").write_text("not points")
    batch = build(tmp_path).read_batch(range(4))
    assert len(build(tmp_path)) == 4
    torch.testing.assert_close(batch.points, batch.points[:1].expand(4, -1, -1), atol=1e-6, rtol=0)


def test_a_class_of_one_split_only_is_a_class_of_both(tmp_path):
    root = make_folder(tmp_path, "split/class")
    (root / "test" / "bee").rename(root / "test" / "cow")
    assert build(root).class_names == build(root, "test").class_names == ("ant", "bee", "cow")
    assert build(root, "test").labels.tolist() == [0, 0, 0, 2, 2, 2]


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_split_without_files_is_an_error(tmp_path, split):
    root = make_folder(tmp_path, "split/class")
    for file in (root / split).rglob("*.npy"):
        file.unlink()
    with pytest.raises(DataError, match=f"no files of the split '{split}'"):
        build(root, split)


@pytest.mark.parametrize("exists", [True, False])
def test_a_folder_without_point_files_says_what_was_expected(tmp_path, exists):
    root = tmp_path if exists else tmp_path / "nowhere"
    with pytest.raises(DataError, match=r"expected.*class.*data\.root"):
        build(root)


@pytest.mark.shared_data
def test_complete_official_text_files_are_read(shared):
    dataset = build(shared / "data" / "modelnet40_normal_resampled_full10k", num_points=1024)
    assert dataset.class_names == ("airplane", "chair", "guitar", "lamp", "person")
    assert dataset.read_batch(range(len(dataset))).points.shape[1:] == (1024, 3)


def put(root, *names, points=48):
    for number, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix in (".npy", ".xyz"):
            write_points(path, clouds(number, points, 3))
        else:
            path.write_bytes(b"# .PCD v0.7")
    return root


def test_a_class_may_be_called_like_a_split(tmp_path):
    root = put(tmp_path, *(f"{name}/{k}.npy" for name in ("box", "pole", "train") for k in range(3)))
    assert build(root).class_names == ("box", "pole", "train")


@pytest.mark.parametrize("name", ["val", "Valid", "validation"])
def test_a_folder_for_validation_is_a_split_of_its_own(tmp_path, name):
    root = put(
        tmp_path, *(f"{split}/{kind}/{split}.npy" for split in ("train", "test", name) for kind in "ab")
    )
    config = parse_data_config({"name": "folder", "root": str(root), "num_points": 40})
    validation = build_validation(config)
    assert config.has_validation
    assert sorted(sample.path for sample in validation) == [
        f"{root}/{name}/{kind}/{name}.npy" for kind in "ab"
    ]
    assert describe_root(root).num_samples == {"train": 2, "test": 2, "val": 2}


def test_without_such_a_folder_there_is_no_validation_split(tmp_path):
    config = parse_data_config({"name": "folder", "root": str(make_folder(tmp_path, "split/class"))})
    assert not config.has_validation


@pytest.mark.parametrize("layout", ["{kind}", "train/{kind}", "{kind}/train"])
def test_a_class_of_files_that_are_not_read_is_no_class_left_out(tmp_path, layout):
    good = layout.format(kind="ball")
    bad = layout.format(kind="pole")
    root = put(tmp_path, *(f"{good}/{k}.npy" for k in range(3)), *(f"{bad}/{k}.dae" for k in range(5)))
    put(tmp_path, *(f"{layout.format(kind='box')}/{k}.npy" for k in range(3)))
    if layout == "{kind}/train":  # the split folder has no cloud, so only its class is named
        bad = "pole"
    with pytest.raises(DataError, match=rf"{bad}: holds .*5 .*\.dae"):
        build(root)
    errors = [finding for finding in check_root(root) if finding.level == "error"]
    assert any("5" in finding.message and ".dae" in finding.message for finding in errors)


def test_files_one_folder_too_deep_are_named_by_training_and_by_the_check(tmp_path):
    root = put(tmp_path, "ball/0.npy", "ball/1.npy", "box/0.npy", "box/1.npy", "pole/scan1/0.npy")
    with pytest.raises(DataError, match=r"pole: holds no point files itself, but 1 in folders below it"):
        build(root)
    assert [finding.file for finding in check_root(root) if finding.level == "error"] == [str(root / "pole")]


def test_a_folder_of_pictures_is_left_out_and_named_once(tmp_path, caplog):
    root = put(tmp_path, "ball/0.npy", "ball/1.npy", "pictures/a.png", "ball/b.dae", "ball/deep/c.npy")
    assert build(root).class_names == ("ball",)
    build(root, "test")
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 3
    assert any("pictures: holds no point files (1 .png)" in text for text in told)
    assert any("ball: 1 files are not read (1 .dae); convert them" in text for text in told)
    assert any("ball: 1 point files lie one folder deeper; move them up" in text for text in told)
    assert len([finding for finding in check_root(root) if finding.level == "warning"]) == 3


def test_splits_without_folders_of_classes_are_not_taken_for_classes(tmp_path):
    root = put(tmp_path, "train/0.npy", "test/1.npy")
    with pytest.raises(DataError, match="test and train hold files but no folders of classes"):
        build(root)


def test_clouds_beside_the_splits_are_an_error(tmp_path):
    root = put(tmp_path, "train/a/0.npy", "test/a/1.npy", "extra/2.npy")
    with pytest.raises(DataError, match=r"extra: holds 1 files of clouds \(\.npy\) that belong to no split"):
        build(root)


def test_a_class_called_train_among_classes_with_splits(tmp_path):
    root = put(
        tmp_path, *(f"{kind}/{split}/0.npy" for kind in ("box", "train") for split in ("train", "test"))
    )
    assert build(root).class_names == ("box", "train")
    assert len(build(root, "test")) == 2
