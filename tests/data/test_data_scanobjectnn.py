import re
import shutil

import h5py
import numpy as np
import pytest
import torch

from pcl_clora.config import ConfigError
from pcl_clora.data import build_dataset, check_data, check_root, describe_root
from pcl_clora.data.readers.scanobjectnn import SCANOBJECTNN_CLASSES
from pcl_clora.io import DataError
from pcl_clora.io.raw_object import read_raw_object
from tests.support.scan_layouts import CLASSES, VARIANTS, make_raw, make_scan, raw_table, write_raw


def build(root, split="train", **settings):
    return build_dataset({"name": "scanobjectnn", "root": str(root), "num_points": 32, **settings}, split)


def build_raw(root, split="train", **settings):
    return build_dataset({"name": "scanobjectnn_raw", "root": str(root), "num_points": 16, **settings}, split)


def stored(root, folder, suffix, split, key):
    with h5py.File(root / folder / f"{split}_objectdataset{suffix}.h5") as file:
        return file[key][()]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("split", "name"), [("train", "training"), ("test", "test")])
def test_every_variant_gives_the_stored_clouds_labels_and_masks(tmp_path, variant, split, name):
    dataset = build(make_scan(tmp_path), split, variant=variant)
    place = (*VARIANTS[variant], name)
    batch = dataset.read_batch(range(len(dataset)))
    np.testing.assert_array_equal(batch.points, stored(tmp_path, *place, "data"))
    np.testing.assert_array_equal(batch.label, stored(tmp_path, *place, "label"))
    np.testing.assert_array_equal(batch.mask, stored(tmp_path, *place, "mask") != -1)
    assert dataset.class_names == CLASSES


def test_masks_say_which_points_belong_to_the_object(tmp_path):
    sample = build(make_scan(tmp_path))[3]
    assert sample.mask.dtype == torch.bool
    assert sample.mask.tolist() == [True] * 24 + [False] * 8
    assert sample.path.endswith("training_objectdataset_augmentedrot_scale75.h5#3")


def test_fewer_points_are_the_first_ones_with_their_masks(tmp_path):
    whole, part = build(make_scan(tmp_path)), build(tmp_path, num_points=20)
    assert torch.equal(part[1].points, whole[1].points[:20])
    assert torch.equal(part[1].mask, whole[1].mask[:20])


def test_the_folder_may_be_that_of_the_official_archive(tmp_path):
    inner = build(make_scan(tmp_path / "a", inner="h5_files"))
    outer = build(make_scan(tmp_path / "b"))
    assert torch.equal(inner[0].points, outer[0].points)


def test_background_is_left_out_where_it_is_asked_for(tmp_path):
    dataset = build(make_scan(tmp_path), variant="obj_bg", background=False)
    assert torch.equal(dataset[2].points, build(tmp_path, variant="obj_only")[2].points)


def test_class_names_come_from_the_config_then_the_folder_then_the_official_list(tmp_path):
    make_scan(tmp_path)
    assert build(tmp_path, class_names=["x", "y", "z"]).class_names == ("x", "y", "z")
    (tmp_path / "shape_names.txt").unlink()
    assert build(tmp_path).class_names == SCANOBJECTNN_CLASSES


def test_a_file_without_masks_is_read_without(tmp_path):
    file = make_scan(tmp_path) / "main_split_nobg" / "test_objectdataset.h5"
    with h5py.File(file, "a") as handle:
        del handle["mask"]
    assert build(tmp_path, "test", variant="obj_only")[0].mask is None
    assert build(tmp_path, "test", variant="obj_only").read_batch([0]).mask is None


def damage_mask(file):
    with h5py.File(file, "a") as handle:
        del handle["mask"]
        handle["mask"] = np.zeros((7, 31), np.int32)


def damage_columns(file):
    with h5py.File(file, "a") as handle:
        del handle["data"]
        handle["data"] = np.zeros((7, 32, 4), np.float32)


def damage_label(file):
    with h5py.File(file, "a") as handle:
        handle["label"][2] = 3


def truncate(file):
    file.write_bytes(file.read_bytes()[:900])


DAMAGES = [
    (truncate, "may be truncated"),
    (lambda file: file.unlink(), "missing"),
    (damage_mask, r"'mask' is int32 \(7, 31\), expected numbers \(7, 32\)"),
    (damage_columns, r"'data' has shape \(7, 32, 4\)"),
    (damage_label, r"label 3 at row 2 .*expected 0\.\.2"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_a_damaged_file_is_named_by_the_reader_and_by_the_check(tmp_path, damage, message):
    file = make_scan(tmp_path) / "main_split" / "training_objectdataset_augmentedrot_scale75.h5"
    damage(file)
    with pytest.raises(DataError, match=message) as caught:
        build(tmp_path)
    found = [one for one in check_root(tmp_path) if one.level == "error"]
    assert file.name in caught.value.file
    assert any(re.search(message, str(one)) for one in found), found


def test_the_check_lists_all_problems_at_once(tmp_path):
    make_scan(tmp_path)
    truncate(tmp_path / "main_split" / "training_objectdataset.h5")
    damage_label(tmp_path / "main_split" / "training_objectdataset_augmentedrot_scale75.h5")
    (tmp_path / "main_split_nobg" / "test_objectdataset.h5").unlink()
    errors = [one for one in check_root(tmp_path) if one.level == "error"]
    assert len({one.file for one in errors}) == 3, errors


def test_the_check_of_settings_looks_at_their_variant_only(tmp_path):
    truncate(make_scan(tmp_path) / "main_split" / "training_objectdataset.h5")
    settings = {"name": "scanobjectnn", "root": str(tmp_path), "num_points": 32}
    assert {one.level for one in check_data(settings)} <= {"info"}
    assert check_data({**settings, "variant": "obj_bg"})[0].level == "error"


def test_an_absent_variant_is_named_with_those_that_are_there(tmp_path):
    with pytest.raises(
        DataError, match="pb_t25_r needs it; here are: main_split/obj_bg, main_split/pb_t50_rs"
    ):
        build(make_scan(tmp_path), variant="pb_t25_r")


def test_a_folder_is_recognised_with_its_variants(tmp_path):
    info = describe_root(make_scan(tmp_path))
    assert (info.layout, info.num_samples, info.num_points) == ("scanobjectnn", {"train": 7, "test": 4}, 32)
    assert info.variants == ("obj_bg", "obj_only", "pb_t50_rs")
    assert info.settings == {"variant": "pb_t50_rs"}


def test_test_clouds_that_are_in_train_are_found(tmp_path):
    folder = make_scan(tmp_path) / "main_split_nobg"
    with h5py.File(folder / "training_objectdataset.h5") as file:
        cloud = file["data"][1]
    with h5py.File(folder / "test_objectdataset.h5", "a") as file:
        file["data"][2] = cloud
    assert any("the same as" in one.message for one in check_root(tmp_path) if one.level == "warning")


# ---- raw objects


def test_a_raw_object_is_its_most_frequent_label_that_is_no_wall_or_floor(tmp_path):
    table = raw_table(0, 60)
    write_raw(tmp_path / "a.bin", table)
    raw = read_raw_object(tmp_path / "a.bin")
    np.testing.assert_array_equal(raw.points, table[:, :3])
    np.testing.assert_array_equal(raw.mask, table[:, 10] == 12)


def test_the_list_decides_split_and_label(tmp_path):
    make_raw(tmp_path)
    assert [len(build_raw(tmp_path, split)) for split in ("train", "test")] == [3, 3]
    assert build_raw(tmp_path, "test").labels.tolist() == [0, 1, 2]
    assert build_raw(tmp_path, "test")[1].path.endswith("bee/001_00001.bin")


def test_raw_clouds_are_a_choice_of_points_in_the_unit_sphere(tmp_path):
    sample = build_raw(make_raw(tmp_path))[0]
    table = raw_table(0, 60)[:, :3].astype(np.float64)
    centred = table - table.mean(0)
    expected = centred / np.linalg.norm(centred, axis=1).max()
    nearest = np.abs(sample.points.numpy()[:, None] - expected[None]).max(-1).min(1)
    assert nearest.max() < 1e-6
    assert len(np.unique(sample.points.numpy(), axis=0)) == 16


def test_raw_clouds_without_background_hold_the_object_only(tmp_path):
    dataset = build_raw(make_raw(tmp_path), background=False, num_points=36, normalize=False)
    table = raw_table(0, 60)
    kept = {tuple(row) for row in table[table[:, 10] == 12][:, :3].tolist()}
    assert {tuple(row) for row in dataset[0].points.tolist()} <= kept
    assert dataset[0].mask.all()


def test_raw_clouds_are_the_same_every_time_and_others_with_another_seed(tmp_path):
    make_raw(tmp_path)
    first, again, other = build_raw(tmp_path)[1], build_raw(tmp_path)[1], build_raw(tmp_path, seed=1)[1]
    assert torch.equal(first.points, again.points)
    assert not torch.equal(first.points, other.points)


def test_a_raw_folder_is_recognised_and_found_sound(tmp_path):
    info = describe_root(make_raw(tmp_path))
    assert (info.layout, info.num_samples) == ("scanobjectnn_raw", {"train": 3, "test": 3})
    assert [one.level for one in check_root(tmp_path)] == ["info"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-4]), "truncated or has other columns"),
        (lambda file: write_raw(file, raw_table(0, 60)[:, :10]), "truncated or has other columns"),
        (lambda file: file.write_bytes(b""), "0 bytes"),
        (lambda file: file.unlink(), "missing"),
        (lambda file: write_raw(file, np.full((60, 11), np.nan)), "not finite"),
    ],
)
def test_a_damaged_raw_file_is_named(tmp_path, damage, message):
    file = make_raw(tmp_path) / "object_dataset" / "bee" / "001_00000.bin"
    damage(file)
    with pytest.raises(DataError, match=message) as caught:
        build_raw(tmp_path)[1]
    assert file.name in caught.value.file
    errors = [one for one in check_root(tmp_path) if one.level == "error"]
    assert [one.file for one in errors] == [str(file)]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("000_00000.bin\t7\n", "label 7, expected 0..2"),
        ("000_00000.bin 0 x\n", "line 1 is '000_00000.bin 0 x'"),
        ("000_00000.bin zero\n", "expected a file, a label"),
    ],
)
def test_a_wrong_line_of_the_list_is_named(tmp_path, text, message):
    (make_raw(tmp_path) / "main_split.txt").write_text(text)
    with pytest.raises(DataError, match=re.escape(message)):
        build_raw(tmp_path)


def test_a_file_that_is_listed_twice_is_found(tmp_path):
    listing = make_raw(tmp_path) / "main_split.txt"
    listing.write_text(listing.read_text() + "000_00000.bin\t0\tt\n")
    errors = [one for one in check_root(tmp_path) if one.level == "error"]
    assert [(one.file, "2 times" in one.message) for one in errors] == [(str(listing), True)]


def test_a_missing_list_is_named_with_the_remedy(tmp_path):
    (make_raw(tmp_path) / "main_split.txt").unlink()
    with pytest.raises(DataError, match=r"split list is missing.*data\.split_file"):
        build_raw(tmp_path)
    assert "split list is missing" in check_root(tmp_path)[0].message


def test_a_raw_object_without_any_object_point_is_refused_without_background(tmp_path):
    table = raw_table(0, 60)
    table[:, 10] = 1
    write_raw(make_raw(tmp_path) / "object_dataset" / "ant" / "000_00000.bin", table)
    assert not build_raw(tmp_path)[0].mask.any()
    with pytest.raises(DataError, match="no point is labelled"):
        build_raw(tmp_path, background=False)[0]


# ---- real data in the layout


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("name", "train", "test", "classes"), [("dales500", 299, 100, 5), ("lsood", 434, 145, 4)]
)
def test_real_lidar_objects_are_read_by_the_same_reader(shared, name, train, test, classes):
    root = shared / "data" / f"lidar_{name}_scanobjectnn_layout"
    settings = {"num_points": 2048, "variant": "obj_only"}
    data = {split: build(root, split, **settings) for split in ("train", "test")}
    assert {split: len(one) for split, one in data.items()} == {"train": train, "test": test}
    assert len(data["train"].class_names) == classes
    assert data["test"][0].mask.all()
    assert check_root(root) == []


@pytest.mark.shared_data
def test_the_official_class_list_is_ours(shared):
    listed = (shared / "data" / "scanobjectnn_metadata" / "shape_names_ext.txt").read_text().split()
    assert tuple(listed) == SCANOBJECTNN_CLASSES


@pytest.mark.shared_data
def test_the_official_split_list_is_read(shared, tmp_path):
    shutil.copy(shared / "data" / "scanobjectnn_metadata" / "main_split.txt", tmp_path)
    info = describe_root(make_raw_folder(tmp_path))
    assert info.num_samples == {"train": 2315, "test": 587}


def make_raw_folder(root):
    write_raw(root / "object_dataset" / "bag" / "014_00018.bin", raw_table(0, 60))
    return root


def test_an_unknown_variant_is_refused():
    with pytest.raises(ConfigError, match="variant"):
        build_dataset({"name": "scanobjectnn", "root": "x", "variant": "hard"}, "train")
