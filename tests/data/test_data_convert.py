"""A file of one format becomes one of another, with what that can hold; the rest is named."""

import numpy as np
import pytest

from pcl_clora.config import ConfigError
from pcl_clora.data.convert import convert_file
from pcl_clora.data.frame import TURNS, guess_up, parse_axis, scale_between, turn
from pcl_clora.data.readers.whole import read_whole
from pcl_clora.data.surface import sample_surface
from pcl_clora.errors import UserValueError
from pcl_clora.io import FORMATS, POINT_SUFFIXES, DataError, PointFile, read_points, write_points

RANDOM = np.random.default_rng(0)
POINTS = RANDOM.random((60, 3)).astype(np.float32)
COLORS = RANDOM.integers(0, 256, (60, 3)).astype(np.uint8)
LABELS = RANDOM.integers(0, 5, 60)
BOX = np.array([[x, y, z] for x in (0, 1) for y in (0, 1) for z in (0, 4)], np.float32)
SIDES = np.array([[0, 1, 3], [0, 3, 2], [4, 6, 7], [4, 7, 5], [0, 4, 5], [0, 5, 1], [2, 3, 7], [2, 7, 6],
                  [0, 2, 6], [0, 6, 4], [1, 5, 7], [1, 7, 3]])  # fmt: skip


@pytest.mark.parametrize("suffix", [one for one in POINT_SUFFIXES if one not in (".stl", ".3mf")])
def test_colours_and_labels_go_where_there_is_room_and_are_named_elsewhere(tmp_path, suffix):
    package = next(one.package for one in FORMATS if suffix in one.suffixes)
    pytest.importorskip(package.partition("[")[0] or "numpy")
    fields = {"colors": COLORS, "labels": LABELS}
    write_points(tmp_path / "a.npz", POINTS, fields)
    done = convert_file(tmp_path / "a.npz", tmp_path / f"new/b{suffix}")
    found = read_points(tmp_path / f"new/b{suffix}")
    assert done.num_points == len(found.points) == 60
    lost = set(fields) - set(done.fields)
    assert all(name in " ".join(done.notes) for name in lost)
    assert set(found.fields) >= set(done.fields)
    for name in done.fields:
        assert np.array_equal(found.fields[name], fields[name])


def test_triangles_stay_where_there_is_room(tmp_path):
    write_points(tmp_path / "a.off", BOX, None, SIDES)
    for suffix in (".ply", ".obj", ".npz", ".h5"):
        done = convert_file(tmp_path / "a.off", tmp_path / f"b{suffix}")
        assert done.num_faces == 12
        assert not done.notes
        assert np.array_equal(read_points(tmp_path / f"b{suffix}").faces, SIDES)
    done = convert_file(tmp_path / "a.off", tmp_path / "b.xyz")
    assert done.notes == (
        "left out, .xyz has no room for it: triangles",
        "the points are the vertices of the mesh; --sample draws them from its surface",
    )


def test_a_surface_is_sampled_by_area_and_from_a_seed(tmp_path):
    write_points(tmp_path / "a.ply", BOX, {"labels": BOX[:, 2].astype(int), "heat": BOX[:, 2]}, SIDES)
    content = read_points(tmp_path / "a.ply")
    found = sample_surface(content, 20_000)
    on_ends = (found.points[:, 2] == 0) | (found.points[:, 2] == 4)
    assert on_ends.mean() == pytest.approx(2 / 18, abs=0.01)  # of two squares among sides of 1 x 4
    assert np.allclose(found.fields["heat"], found.points[:, 2], atol=1e-5)
    assert np.allclose(np.abs(found.fields["normals"]).max(axis=1), 1)
    assert set(np.unique(found.fields["labels"])) == {0, 4}
    middle = found.points[:, 2]
    assert np.array_equal(found.fields["labels"][middle < 0.5], 0 * middle[middle < 0.5])
    assert np.array_equal(sample_surface(content, 20_000).points, found.points)
    assert not np.array_equal(sample_surface(content, 20_000, seed=1).points, found.points)
    done = convert_file(tmp_path / "a.ply", tmp_path / "b.npy", sample=100)
    assert done.num_points == 100
    assert {"labels", "heat", "normals"} == set(done.fields)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (PointFile(POINTS), "have no triangles"),
        (PointFile(POINTS[:3] * 0, faces=np.array([[0, 1, 2]])), "have no area"),
    ],
)
def test_a_surface_that_is_none_is_refused(content, message):
    with pytest.raises(UserValueError, match=message):
        sample_surface(content, 5)


@pytest.mark.parametrize("before", TURNS)
@pytest.mark.parametrize("after", TURNS)
def test_a_turn_is_a_rotation_that_brings_the_axis_up(before, after):
    basis = np.eye(3)
    turned = turn(basis, before, after)
    assert np.linalg.det(turned) == pytest.approx(1.0)
    up = basis["xyz".index(before[-1])] * (-1 if before[0] == "-" else 1)
    there = basis["xyz".index(after[-1])] * (-1 if after[0] == "-" else 1)
    assert np.array_equal(up @ turned, there)
    assert np.array_equal(turn(turned, after, before), basis)


def test_a_scan_stands_in_a_glb_and_comes_back(tmp_path):
    pytest.importorskip("laspy")
    pytest.importorskip("trimesh")
    write_points(tmp_path / "a.las", POINTS * [1, 2, 3])
    done = convert_file(tmp_path / "a.las", tmp_path / "b.glb")
    assert done.notes[0] == "turned, z points up in the source and y in .glb"
    x, y, z = read_points(tmp_path / "a.las").points.T
    assert np.allclose(read_points(tmp_path / "b.glb").points, np.stack([x, z, -y], 1), atol=1e-6)
    convert_file(tmp_path / "b.glb", tmp_path / "c.las")
    assert np.allclose(read_points(tmp_path / "c.las").points, np.stack([x, y, z], 1), atol=1e-6)
    assert not convert_file(tmp_path / "a.las", tmp_path / "d.glb", to_up="z").notes[:-1]


def test_axis_and_unit_are_asked_for_where_nothing_says_them(tmp_path):
    write_points(tmp_path / "a.xyz", POINTS)
    with pytest.raises(UserValueError, match="say it, --up z"):
        convert_file(tmp_path / "a.xyz", tmp_path / "b.ply", to_up="y")
    with pytest.raises(UserValueError, match="say it, --unit mm or"):
        convert_file(tmp_path / "a.xyz", tmp_path / "b.ply", to_unit="m")
    with pytest.raises(UserValueError, match="unit 'parsec' is not known; use one of um, mm"):
        convert_file(tmp_path / "a.xyz", tmp_path / "b.ply", unit="parsec", to_unit="m")
    assert not (tmp_path / "b.ply").exists()
    convert_file(tmp_path / "a.xyz", tmp_path / "b.ply", up="z", to_up="y", unit="mm", to_unit="m")
    x, y, z = POINTS.T
    assert np.allclose(read_points(tmp_path / "b.ply").points, np.stack([x, z, -y], 1) / 1000)


def test_a_flat_scan_is_taken_to_lie(tmp_path):
    write_points(tmp_path / "a.xyz", POINTS * [100, 80, 5])
    done = convert_file(tmp_path / "a.xyz", tmp_path / "b.ply", to_up="y")
    assert done.notes == ("z is taken to point up, along which the source is flattest; --up says otherwise",)
    assert np.ptp(read_points(tmp_path / "b.ply").points, axis=0).argmin() == 1
    assert guess_up(POINTS) is None
    assert guess_up(np.zeros((5, 3))) is None
    assert guess_up(POINTS * [100, 5, 80]) == "y"


def test_map_coordinates_are_moved_where_there_is_float32_only(tmp_path):
    points = POINTS.astype(np.float64) * 40 + [4.3e5, 5.4e6, 300]
    write_points(tmp_path / "a.xyz", points)
    done = convert_file(tmp_path / "a.xyz", tmp_path / "b.bin")
    assert done.notes[0].startswith("moved by -(43")
    found = read_points(tmp_path / "b.bin").points
    assert np.abs(np.diff(found, axis=0) - np.diff(points, axis=0)).max() < 1e-5


def test_nothing_is_written_over_the_source_or_half(tmp_path):
    write_points(tmp_path / "a.ply", POINTS)
    with pytest.raises(UserValueError, match="would be written over the input"):
        convert_file(tmp_path / "a.ply", tmp_path / "a.ply")
    for target, message in (
        ("b.stl", "holds triangles, and the source has none"),
        ("b.dae", "cannot write '.dae'"),
    ):
        with pytest.raises(UserValueError, match=message):
            convert_file(tmp_path / "a.ply", tmp_path / target)
    assert [path.name for path in tmp_path.iterdir()] == ["a.ply"]


def test_units_have_their_size():
    assert scale_between("mm", "m") == 1e-3
    assert scale_between("ft", "in") == pytest.approx(12)
    assert parse_axis("") is None
    with pytest.raises(ConfigError, match="up='w' is no axis"):
        parse_axis("w")


def test_bare_numbers_are_a_scan_or_a_raw_object(tmp_path):
    write_points(tmp_path / "scan.bin", POINTS)
    assert np.array_equal(read_whole(tmp_path / "scan.bin").points, POINTS)
    table = np.hstack([POINTS, np.ones((60, 8), np.float32)])
    np.concatenate([[60], table.ravel()]).astype(np.float32).tofile(tmp_path / "raw.bin")
    assert np.array_equal(read_whole(tmp_path / "raw.bin").points, POINTS)
    assert read_whole(tmp_path / "raw.bin").inside is not None


def test_a_folder_of_all_formats_is_a_data_set(tmp_path):
    from pcl_clora.data import build_dataset, check_root, parse_data_config

    for package in ("laspy", "pypcd4", "pye57", "trimesh"):
        pytest.importorskip(package)
    suffixes = [suffix for suffix in POINT_SUFFIXES if suffix not in (".h5", ".hdf5")]
    for label, name in enumerate(("ball", "box")):
        for suffix in suffixes:
            kind = next(one for one in FORMATS if suffix in one.suffixes)
            points = BOX + label + len(suffix) * 0.01
            write_points(
                tmp_path / name / f"a{suffix[1:]}{suffix}",
                points,
                None,
                SIDES if kind.faces != "no" else None,
            )
    (tmp_path / "box" / "agltf.bin").write_bytes(b"numbers of the gltf")
    config = parse_data_config(
        {"name": "folder", "root": str(tmp_path), "num_points": 8, "test_fraction": 0.5}
    )
    splits = [build_dataset(config, split) for split in ("train", "test")]
    assert sum(map(len, splits)) == 2 * len(suffixes)
    for dataset in splits:
        for index in range(len(dataset)):
            assert dataset[index].points.norm(dim=1).max() == pytest.approx(1.0, abs=1e-5)
    assert not [finding for finding in check_root(tmp_path) if finding.level == "error"]


def test_broken_files_of_a_set_are_named(tmp_path):
    write_points(tmp_path / "a.ply", POINTS)
    with pytest.raises(DataError, match="no such file"):
        convert_file(tmp_path / "missing.las", tmp_path / "b.ply")


@pytest.mark.parametrize(("up", "warned"), [("y", True), ("z", False)])
def test_training_on_scans_that_lie_is_warned_about(tmp_path, caplog, monkeypatch, up, warned):
    from pcl_clora.data import build_dataset, parse_data_config

    monkeypatch.setattr("pcl_clora.errors._said", set())
    for name in ("ball", "box"):
        for number in range(2):
            write_points(tmp_path / name / f"{number}.bin", POINTS)
            write_points(tmp_path / name / f"{number}.npy", POINTS)
    config = parse_data_config({"name": "folder", "root": str(tmp_path), "num_points": 8, "up": up})
    dataset = build_dataset(config, "train")
    for index in range(len(dataset)):
        dataset[index]
    told = [record.message.partition(": ")[2] for record in caplog.records]
    assert told == ["z points up in .bin files, and y is taken to; data.up=z turns them."] * warned
