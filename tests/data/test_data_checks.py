import json
import re
import shutil
from dataclasses import asdict
from pathlib import Path

import h5py
import numpy as np
import pytest
import yaml

from pcl_clora.data import (
    Finding,
    build_dataset,
    check_data,
    check_manifest,
    check_root,
    describe_root,
    parse_data_config,
)
from pcl_clora.io import DataError, sha256_file
from tests.support.data_layouts import CLASSES, make_folder, make_hdf5, make_text

MAKERS = {
    "modelnet40_hdf5": make_hdf5,
    "modelnet40_txt": make_text,
    "folder": lambda root: make_folder(root, "split/class"),
}
MANIFESTS = Path(__file__).resolve().parents[2] / "data" / "manifests"


def errors(root):
    return [finding for finding in check_root(root) if finding.level == "error"]


@pytest.mark.parametrize("layout", MAKERS)
def test_a_layout_is_recognised_and_described(tmp_path, layout):
    info = describe_root(MAKERS[layout](tmp_path))
    assert info.layout == layout
    assert info.num_samples == ({"train": 6, "test": 6} if layout == "folder" else {"train": 7, "test": 4})
    assert info.class_names == (("ant", "bee") if layout == "folder" else CLASSES)
    assert layout in str(info)


@pytest.mark.parametrize("layout", MAKERS)
def test_a_sound_folder_has_no_errors_and_no_warnings(tmp_path, layout):
    assert {finding.level for finding in check_root(MAKERS[layout](tmp_path))} <= {"info"}


def test_a_finding_prints_on_one_line_and_becomes_json():
    finding = Finding("error", "a/b.h5", "is torn; get it again.")
    assert str(finding) == "error: a/b.h5: is torn; get it again."
    assert json.loads(json.dumps(asdict(finding)))["level"] == "error"


def assert_found(root, level, file, message):
    found = [each for each in check_root(root) if (each.level, each.file) == (level, str(root / file))]
    assert any(re.search(message, each.message) for each in found), check_root(root)


def edit(name, key, change):
    def damage(root):
        with h5py.File(root / name, "a") as file:
            values = file[key][()]
            change(values)
            file[key][...] = values

    return damage


def cut(name, size):
    def damage(root):
        (root / name).write_bytes((root / name).read_bytes()[:size])

    return damage


def remove(name):
    return lambda root: (root / name).unlink()


def write(name, text):
    return lambda root: (root / name).write_text(text)


def repeat_test_cloud(root):
    with h5py.File(root / "ply_data_train1.h5") as file:
        cloud = file["data"][1]
    edit("ply_data_test0.h5", "data", lambda values: values.__setitem__(2, cloud))(root)


def nothing_of_class_two_in_train(root):
    for number in (0, 1):
        name = f"ply_data_train{number}.h5"
        edit(name, "label", lambda values: np.putmask(values, values == 2, 1))(root)
        (root / f"ply_data_train_{number}_id2file.json").unlink()


@pytest.mark.parametrize(
    ("damage", "level", "file", "message"),
    [
        (
            remove("ply_data_train1.h5"),
            "error",
            "ply_data_train1.h5",
            "missing, but train_files.txt lists it; get",
        ),
        (remove("shape_names.txt"), "warning", "shape_names.txt", "write the file"),
        (write("shape_names.txt", "a\na\n"), "error", "shape_names.txt", "one distinct name a line"),
        (cut("ply_data_test0.h5", 1000), "error", "ply_data_test0.h5", "may be truncated"),
        (
            edit("ply_data_test0.h5", "label", lambda v: v.fill(9)),
            "error",
            "ply_data_test0.h5",
            r"label 9 at row 0",
        ),
        (
            edit("ply_data_train0.h5", "data", lambda v: v[3].fill(np.inf)),
            "error",
            "ply_data_train0.h5",
            "1 shapes hold values that are not finite, the first in row 3; get it again",
        ),
        (
            edit("ply_data_train0.h5", "data", lambda v: v[2].fill(0.5)),
            "error",
            "ply_data_train0.h5",
            "all points of 1 shapes coincide, the first in row 2",
        ),
        (
            edit("ply_data_train0.h5", "label", lambda v: v.__setitem__(4, 2)),
            "error",
            "ply_data_train0.h5",
            r"row 4: label 2 is 'tv_stand', expected 'night_stand' by ply_data_train_0_id2file.json",
        ),
        (
            write("ply_data_test_0_id2file.json", "[1"),
            "error",
            "ply_data_test_0_id2file.json",
            "not a json list",
        ),
        (
            write("ply_data_test_0_id2file.json", '["a/b"]'),
            "error",
            "ply_data_test_0_id2file.json",
            "names 1 shapes",
        ),
        (
            repeat_test_cloud,
            "warning",
            "ply_data_test0.h5#2",
            r"same as .*ply_data_train1\.h5#1 of train \(1 such",
        ),
        (nothing_of_class_two_in_train, "warning", "", "1 classes of test have no clouds in train: tv_stand"),
        (write("shape_names.txt", "\n".join([*CLASSES, "x"])), "info", "", "1 classes have no clouds: x"),
        (
            edit("ply_data_test0.h5", "data", lambda v: v.__imul__(5)),
            "info",
            "ply_data_test0.h5",
            "data.normalize",
        ),
    ],
)
def test_a_damaged_hdf5_folder_gives_a_finding(tmp_path, damage, level, file, message):
    root = make_hdf5(tmp_path / "data")
    damage(root)
    assert_found(root, level, file, message)


def move_to_other_class(root):
    (root / "night_stand" / "night_stand_0002.txt").rename(root / "airplane" / "night_stand_0002.txt")


def list_in_both(root):
    with (root / "modelnet40_test.txt").open("a") as file:
        file.write("airplane_0001\n")


def copy_to_test(root):
    shutil.copy(root / "airplane" / "airplane_0004.txt", root / "airplane" / "airplane_0008.txt")


def spoil(name, change):
    def damage(root):
        file = root / name
        file.write_text("\n".join(change(file.read_text().splitlines())))

    return damage


FIRST = "airplane/airplane_0001.txt"


@pytest.mark.parametrize(
    ("damage", "level", "file", "message"),
    [
        (remove(FIRST), "error", FIRST, r"missing, the list names 'airplane_0001'; get it again"),
        (
            move_to_other_class,
            "error",
            "airplane/night_stand_0002.txt",
            "expected in 'night_stand'; move it there",
        ),
        (remove("modelnet40_test.txt"), "error", "modelnet40_test.txt", "the list is missing"),
        (
            list_in_both,
            "error",
            "modelnet40_test.txt",
            "in the lists of train and test, the first is 'airplane_0001'",
        ),
        (copy_to_test, "warning", "airplane/airplane_0008.txt", r"same as .*airplane_0004\.txt of train"),
        (write(FIRST, ""), "error", FIRST, "holds no points"),
        (
            spoil(FIRST, lambda lines: [*lines[:5], "nan," + lines[5].split(",", 1)[1]]),
            "error",
            FIRST,
            "first is point 5",
        ),
        (
            spoil(FIRST, lambda lines: [*lines[:5], lines[5].rpartition(",")[0]]),
            "error",
            FIRST,
            "6 numbers that the first one has",
        ),
        (
            spoil(FIRST, lambda lines: [line + ",1" for line in lines]),
            "warning",
            FIRST,
            "7 columns, expected 6",
        ),
        (
            spoil("modelnet40_train.txt", lambda lines: [*lines, "glider_0001"]),
            "error",
            "modelnet40_train.txt",
            "1 ids are of no class in modelnet40_shape_names.txt, the first is 'glider_0001'",
        ),
        (
            spoil("modelnet40_train.txt", lambda lines: [*lines, lines[0]]),
            "error",
            "modelnet40_train.txt",
            "listed twice, the first is 'airplane_0001'",
        ),
        (lambda root: None, "info", "", "lists 7 train, 4 test, the official release 9843 train, 2468 test"),
    ],
)
def test_a_damaged_text_folder_gives_a_finding(tmp_path, damage, level, file, message):
    root = make_text(tmp_path / "data")
    damage(root)
    assert_found(root, level, file, message)


def copy_across(root):
    shutil.copy(root / "train" / "ant" / "train0.npy", root / "test" / "ant" / "test1.npy")


@pytest.mark.parametrize(
    ("damage", "level", "file", "message"),
    [
        (cut("train/ant/train1.npy", 100), "error", "train/ant/train1.npy", "not a complete npy file"),
        (copy_across, "warning", "test/ant/test1.npy", r"same as .*train0\.npy of train"),
        (lambda root: shutil.rmtree(root / "test"), "error", "test", "no files of the split 'test'"),
        (lambda root: (root / "test" / "bee").rename(root / "test" / "cow"), "warning", "", "in train: cow"),
        (lambda root: None, "info", "test/ant/test0.npy", "the smallest cloud has 40 points"),
    ],
)
def test_a_damaged_folder_of_files_gives_a_finding(tmp_path, damage, level, file, message):
    root = make_folder(tmp_path / "data", "split/class")
    damage(root)
    assert_found(root, level, file, message)


def test_errors_come_first(tmp_path):
    root = make_hdf5(tmp_path)
    repeat_test_cloud(root)
    remove("ply_data_train0.h5")(root)
    levels = [finding.level for finding in check_root(root)]
    assert levels == sorted(levels, key=("error", "warning", "info").index)
    assert levels[0] == "error"


def test_every_damage_is_reported_not_only_the_first(tmp_path):
    root = make_hdf5(tmp_path)
    cut("ply_data_train0.h5", 1000)(root)
    cut("ply_data_test0.h5", 1000)(root)
    assert len(errors(root)) == 2


def test_an_error_of_the_reader_is_always_found_by_the_check(tmp_path):
    root = make_hdf5(tmp_path)
    edit("ply_data_train0.h5", "label", lambda values: values.fill(7))(root)
    with pytest.raises(DataError) as caught:
        build_dataset({"name": "modelnet40_hdf5", "root": str(root), "num_points": 8}, "train")
    assert caught.value.file in {finding.file for finding in errors(root)}


@pytest.mark.parametrize("exists", [True, False])
def test_a_folder_of_no_known_layout_is_an_error(tmp_path, exists):
    root = tmp_path if exists else tmp_path / "nowhere"
    (finding,) = check_root(root)
    assert finding.level == "error"
    assert "expected" in finding.message or "check the path" in finding.message
    with pytest.raises(DataError):
        describe_root(root)


def test_checking_a_config_looks_at_its_folder(tmp_path):
    root = make_hdf5(tmp_path)
    config = {"name": "modelnet40_hdf5", "root": str(root), "num_points": 64}
    assert not [finding for finding in check_data(config) if finding.level == "error"]
    assert check_data(config) == check_data(parse_data_config(config)) == check_data(root)


def test_checking_a_config_compares_the_number_of_points(tmp_path):
    config = {"name": "modelnet40_hdf5", "root": str(make_hdf5(tmp_path)), "num_points": 65}
    assert "stores 64 points a cloud, but 65 are asked for" in check_data(config)[0].message


def test_a_config_without_a_folder_is_an_error():
    (finding,) = check_data({"name": "modelnet40_hdf5"})
    assert (finding.level, finding.file) == ("error", "data.root")


def test_procedural_shapes_need_no_files():
    assert check_data({"name": "procedural"}) == []


@pytest.fixture
def manifest(tmp_path):
    root = make_hdf5(tmp_path / "data")
    file = root / "shape_names.txt"
    entries = [
        {"path": "shape_names.txt", "bytes": file.stat().st_size, "sha256": sha256_file(file)},
        {"path": "ply_data_train0.h5"},
        {"path": "extra.json", "optional": True},
    ]
    path = tmp_path / "manifest.yaml"
    path.write_text(yaml.safe_dump({"name": "test", "files": entries}))
    return root, path


def test_a_folder_that_fits_its_manifest_has_no_findings(manifest):
    assert list(check_manifest(*manifest)) == []


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (remove("ply_data_train0.h5"), "the manifest names it"),
        (write("shape_names.txt", "short"), "has 5 bytes, expected 30"),
        (write("shape_names.txt", "x" * 30), "has SHA-256 .* expected"),
    ],
)
def test_a_folder_that_differs_from_its_manifest_gives_a_finding(manifest, damage, message):
    damage(manifest[0])
    (finding,) = check_manifest(*manifest)
    assert finding.level == "error"
    assert re.search(message, finding.message)


def test_a_manifest_with_an_unknown_key_is_refused(manifest):
    root, path = manifest
    path.write_text(yaml.safe_dump({"files": [{"path": "a", "sha265": "00"}]}))
    with pytest.raises(ValueError, match="sha256"):
        list(check_manifest(root, path))


@pytest.mark.parametrize("name", ["modelnet40_hdf5", "modelnet40_normal_resampled"])
def test_our_manifests_are_well_formed(tmp_path, name):
    file = MANIFESTS / f"{name}.yaml"
    content = yaml.safe_load(file.read_text())
    assert {"name", "source", "licence", "splits", "files"} <= content.keys()
    assert sum(content["splits"].values()) == (12308 if name == "modelnet40_hdf5" else 12311)
    required = [entry for entry in content["files"] if not entry.get("optional")]
    assert len(list(check_manifest(tmp_path, file))) == len(required) > 0


def test_official_sizes_are_those_of_the_manifests():
    from pcl_clora.data.readers.modelnet import OFFICIAL_SIZES

    files = {"modelnet40_hdf5": "modelnet40_hdf5", "modelnet40_txt": "modelnet40_normal_resampled"}
    found = {
        key: yaml.safe_load((MANIFESTS / f"{name}.yaml").read_text())["splits"] for key, name in files.items()
    }
    assert found == OFFICIAL_SIZES


def test_the_manifest_of_scanobjectnn_has_the_official_sizes(tmp_path):
    from pcl_clora.data.readers.scanobjectnn import OFFICIAL_SIZES as SCAN_SIZES

    content = yaml.safe_load((MANIFESTS / "scanobjectnn.yaml").read_text())
    assert content["splits"] == SCAN_SIZES["pb_t50_rs"]
    sizes = [entry["shapes"] for entry in content["files"]]
    assert sizes == [
        size for name in ("pb_t50_rs", "obj_bg", "obj_only") for size in SCAN_SIZES[name].values()
    ]
    assert len(list(check_manifest(tmp_path, MANIFESTS / "scanobjectnn.yaml"))) == 6


@pytest.mark.slow
@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("name", "layout", "sizes"),
    [
        ("infomr_shapedb_hdf5_1024", "modelnet40_hdf5", {"train": 1385, "test": 296}),
        ("modelnet40_normal_resampled", "modelnet40_txt", {"train": 77, "test": 17}),
        ("modelnet40_normal_resampled_full10k", "folder", {"all": 6}),
    ],
)
def test_real_folders_are_recognised_and_sound(shared, name, layout, sizes):
    info = describe_root(shared / "data" / name)
    assert (info.layout, info.num_samples) == (layout, sizes)
    assert errors(shared / "data" / name) == []


@pytest.mark.slow
@pytest.mark.shared_data
def test_all_of_real_modelnet40_is_sound(shared):
    findings = check_root(shared / "data" / "modelnet40_ply_hdf5_1024")
    assert [finding.level for finding in findings] == ["info"]
    assert "holds 9843 train, 1234 test, the official release 9840 train, 2468 test" in findings[0].message


def test_clouds_that_are_too_small_for_the_settings_are_errors_of_the_check_too(tmp_path):
    root = make_folder(tmp_path, "split/class")
    config = {"name": "folder", "root": str(root), "num_points": 64}
    assert "the smallest cloud has 40 points" in next(
        finding.message for finding in check_data(config) if finding.level == "error"
    )
    assert not [finding for finding in check_data({**config, "repeat": True}) if finding.level == "error"]


@pytest.mark.parametrize("name", ["same.npy", "line.off"])
def test_clouds_without_extent_are_errors_of_the_check(tmp_path, name):
    root = make_folder(tmp_path, "split/class")
    file = root / "train" / "ant" / name
    if name.endswith("npy"):
        np.save(file, np.ones((64, 3), np.float32))
    else:
        file.write_text("OFF\n3 1 0\n0 0 0\n1 0 0\n2 0 0\n3 0 1 2\n")
    errors = [finding for finding in check_root(root) if finding.level == "error"]
    assert [error.file for error in errors] == [str(file)]
    assert "coincide" in errors[0].message or "no area" in errors[0].message
