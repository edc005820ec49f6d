import sys

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pcl_clora.io import POINT_SUFFIXES, DataError, read_points, write_points

CLOUD = np.array([[0.125, -1.5, 3e-7], [1.0, 2.0, 3.0], [-0.1, 0.2, 12345.678]], np.float32)
NORMALS = np.array([[0, 0, 1], [0, 1, 0], [1, 0, 0]], np.float32)
COLORS = np.array([[0, 128, 255], [1, 2, 3], [9, 9, 9]], np.uint8)
LABELS = np.array([3, 1, 70_000], np.int64)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".txt", ".xyz", ".csv", ".ply"])
def test_points_come_back_as_they_were_written(tmp_path, suffix):
    write_points(tmp_path / f"a{suffix}", CLOUD)
    content = read_points(tmp_path / f"a{suffix}")
    assert content.points.dtype == np.float32
    assert np.array_equal(content.points, CLOUD)
    assert dict(content.fields) == {}
    assert content.faces is None


@pytest.mark.parametrize("suffix", [".npz", ".csv", ".ply"])
def test_fields_come_back_by_name(tmp_path, suffix):
    fields = {"normals": NORMALS, "colors": COLORS, "labels": LABELS, "weight": CLOUD[:, 0]}
    write_points(tmp_path / f"a{suffix}", CLOUD, fields)
    content = read_points(tmp_path / f"a{suffix}")
    assert content.fields.keys() == fields.keys()
    for name, values in fields.items():
        assert np.array_equal(content.fields[name].astype(values.dtype), values), name


@settings(max_examples=40, deadline=None)
@given(
    points=arrays.arrays(np.float32, st.tuples(st.integers(1, 20), st.just(3)),
                         elements=st.floats(-1e6, 1e6, width=32)),
    suffix=st.sampled_from([".npy", ".npz", ".txt", ".csv", ".ply"]),
)  # fmt: skip
def test_any_float32_survives_a_round_trip(tmp_path_factory, points, suffix):
    file = tmp_path_factory.mktemp("round") / f"a{suffix}"
    write_points(file, points)
    assert np.array_equal(read_points(file).points, points)


def test_large_coordinates_keep_their_digits_where_asked(tmp_path):
    points = np.array([[5_400_000.123456, 0, 0]])
    write_points(tmp_path / "a.txt", points)
    assert np.array_equal(read_points(tmp_path / "a.txt", dtype="float64").points, points)


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("0.5 1 2\n3 4 5\n", {}),
        ("0.5,1,2\n3,4,5", {}),
        ("0.5; 1; 2\n3; 4; 5\n", {}),
        ("\n# a comment\n0.5\t1\t2  # here too\n\n3 4 5\n\n", {}),
        ("\ufeff0.5 1 2\n3 4 5\n", {}),
        ("2\n0.5 1 2\n3 4 5\n", {}),
        ("0.5 1 2 7 8\n3 4 5 9 10\n", {"extra": [[7, 8], [9, 10]]}),
        ("x,y,z\n0.5,1,2\n3,4,5\n", {}),
        ('"X";"Y";"Z"\n0.5;1;2\n3;4;5\n', {}),
        ("z,x,y,label,w\n2,0.5,1,1,7\n5,3,4,0,8\n", {"labels": [1, 0], "w": [7, 8]}),
        ("# exported\nx y z nx ny nz\n0.5 1 2 0 0 1\n3 4 5 0 1 0\n", {"normals": [[0, 0, 1], [0, 1, 0]]}),
    ],
)
def test_text_of_many_kinds_is_read(tmp_path, text, fields):
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    content = read_points(tmp_path / "a.txt")
    assert content.points.tolist() == [[0.5, 1, 2], [3, 4, 5]]
    assert {name: values.tolist() for name, values in content.fields.items()} == fields


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".txt", ".csv", ".ply", ".h5"])
def test_only_the_first_points_are_read_where_asked(tmp_path, suffix):
    if suffix == ".h5":
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["xyz"] = CLOUD
    else:
        write_points(tmp_path / f"a{suffix}", CLOUD)
    assert np.array_equal(read_points(tmp_path / f"a{suffix}", max_points=2).points, CLOUD[:2])


@pytest.mark.parametrize("name", ["points", "xyz", "pos", "data", "only_one"])
def test_arrays_are_found_by_their_usual_names(tmp_path, name):
    np.savez(tmp_path / "a.npz", **{name: CLOUD})
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file[name] = CLOUD
    assert np.array_equal(read_points(tmp_path / "a.npz").points, CLOUD)
    assert np.array_equal(read_points(tmp_path / "a.h5").points, CLOUD)


def test_an_archive_keeps_only_arrays_that_belong_to_the_points(tmp_path):
    np.savez(tmp_path / "a.npz", points=CLOUD, labels=LABELS, name=np.array("chair"), other=np.zeros(9))
    assert set(read_points(tmp_path / "a.npz").fields) == {"labels"}


@pytest.mark.parametrize("row", [None, 1])
def test_numbers_of_the_points_of_an_hdf5_file_are_fields(tmp_path, row):
    several = (lambda values: values) if row is None else (lambda values: np.stack([0 * values, values]))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"] = several(CLOUD)
        file["seg"] = several(np.arange(len(CLOUD)))
        file["names"] = np.array([b"x"] * len(file["data"]))
        file["other"] = np.zeros((len(file["data"]) + 1, 1))
    found = read_points(tmp_path / "a.h5", row=row, max_points=2)
    assert list(found.fields) == ["seg"]
    assert found.fields["seg"].tolist() == [0, 1]


def test_a_row_of_an_hdf5_file_is_named_by_its_number(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["data"] = np.stack([CLOUD, CLOUD + 1])
    assert np.array_equal(read_points(f"{tmp_path}/a.h5#1").points, CLOUD + 1)
    assert np.array_equal(read_points(tmp_path / "a.h5", row=0, max_points=2).points, CLOUD[:2])
    with pytest.raises(DataError, match=r"holds 2 clouds, and none was asked for.*a\.h5#0 to a\.h5#1"):
        read_points(tmp_path / "a.h5")


OFF = "OFF\n# a square and a triangle\n5 2 0\n0 0 0\n1 0 0\n1 1 0\n0 1 0\n0 0 1\n4 0 1 2 3\n3 0 1 4\n"


@pytest.mark.parametrize(
    "text",
    [
        OFF,
        OFF.replace("OFF\n# a square and a triangle\n", "OFF"),
        OFF.replace("4 0 1 2 3\n3 0 1 4", "4 0 1 2 3 255 0 0\n3 0 1 4 0.5 0.5 0.5 1"),
    ],
    ids=["plain", "as in ModelNet", "coloured faces"],
)
def test_off_files_give_vertices_and_triangles(tmp_path, text):
    (tmp_path / "a.off").write_text(text)
    content = read_points(tmp_path / "a.off")
    assert content.points.shape == (5, 3)
    assert content.faces.tolist() == [[0, 1, 2], [0, 2, 3], [0, 1, 4]]


def test_ply_meshes_give_triangles(tmp_path):
    (tmp_path / "a.ply").write_text(
        "ply\nformat ascii 1.0\nelement vertex 4\nproperty double x\nproperty double y\nproperty double z\n"
        "element face 1\nproperty list uchar int vertex_indices\nend_header\n"
        "0 0 0\n1 0 0\n1 1 0\n0 1 0\n4 0 1 2 3\n"
    )
    content = read_points(tmp_path / "a.ply")
    assert content.faces.tolist() == [[0, 1, 2], [0, 2, 3]]
    assert content.points.dtype == np.float32


def test_ply_files_we_write_are_those_that_plyfile_writes(tmp_path):
    plyfile = pytest.importorskip("plyfile")
    write_points(tmp_path / "ours.ply", CLOUD, {"colors": COLORS})
    vertex = plyfile.PlyData.read(tmp_path / "ours.ply")["vertex"]
    plyfile.PlyData([vertex], byte_order="<").write(tmp_path / "theirs.ply")
    assert (tmp_path / "ours.ply").read_bytes() == (tmp_path / "theirs.ply").read_bytes()


def test_ply_files_are_read_without_plyfile(tmp_path, monkeypatch):
    write_points(tmp_path / "a.ply", CLOUD)
    monkeypatch.setitem(sys.modules, "plyfile", None)
    assert np.array_equal(read_points(tmp_path / "a.ply").points, CLOUD)


def broken_npz(path):
    np.savez(path, points=CLOUD)
    path.write_bytes(path.read_bytes()[:-30])


BROKEN = {
    "empty.txt": (lambda p: p.write_text(""), "holds no points"),
    "comment.txt": (lambda p: p.write_text("# nothing\n\n"), "holds no points"),
    "header.csv": (lambda p: p.write_text("x,y,z\n"), "holds no points"),
    "two.txt": (lambda p: p.write_text("1 2\n3 4\n"), r"\(2, 2\), expected .* x, y, z"),
    "ragged.txt": (lambda p: p.write_text("1 2 3\n1 2\n"), "the 3 numbers that the first one has.*mend"),
    "word.txt": (lambda p: p.write_text("1 2 3\n1 two 3\n"), "the 3 numbers"),
    "header2.csv": (
        lambda p: p.write_text("x,y,w\n1,2,3\n"),
        "names x, y, w for 3 columns, expected x, y, z",
    ),
    "nan.csv": (
        lambda p: p.write_text("1,2,3\n1,nan,3\n"),
        r"1 of 2 points are not finite, .* point 1: \[1\.0, nan",
    ),
    "binary.xyz": (lambda p: p.write_bytes(bytes(range(200, 256))), "is not text"),
    "inf.npy": (lambda p: np.save(p, CLOUD * np.float32(np.inf)), "not finite"),
    "flat.npy": (lambda p: np.save(p, np.zeros(3)), r"float64 \(3,\), expected"),
    "none.npy": (lambda p: np.save(p, np.zeros((0, 3))), "holds no points"),
    "text.npy": (lambda p: np.save(p, np.array([["a", "b", "c"]])), "expected numbers"),
    "objects.npy": (
        lambda p: np.save(p, np.array([[{}, 1, 2]]), allow_pickle=True),
        "not a complete npy file",
    ),
    "short.npy": (lambda p: p.write_bytes(b"\x93NUMPY"), "not a complete npy file"),
    "short.npz": (broken_npz, "not a complete npz file"),
    "names.npz": (
        lambda p: np.savez(p, a=CLOUD, b=CLOUD),
        "holds a, b, expected an array named points or xyz",
    ),
    "torn.h5": (lambda p: p.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(50)), "may be truncated"),
    "torn.off": (lambda p: p.write_text(OFF[:60]), "not a complete off file"),
    "short.pts": (lambda p: p.write_text("3\n0 0 0\n1 1 1\n"), "announces 3 points and holds 2"),
    "other.off": (lambda p: p.write_text("PLY"), "expected OFF"),
    "face.off": (lambda p: p.write_text(OFF.replace("3 0 1 4", "3 0 1 5")), "vertex 5 of 5"),
    "torn.ply": (
        lambda p: p.write_text("ply\nformat ascii 1.0\nelement vertex 2\n"),
        "not a complete ply file",
    ),
    "odd.ply": (
        lambda p: p.write_text("ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nend_header\n1\n"),
        "have x, expected x, y, z",
    ),
    "model.dae": (lambda p: p.write_text("<COLLADA>"), r"'\.dae' are not known; known: \.npy"),
    "missing.npy": (lambda p: None, "no such file"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_names_file_expectation_and_remedy(tmp_path, name):
    make, message = BROKEN[name]
    make(tmp_path / name)
    with pytest.raises(DataError, match=message) as caught:
        read_points(tmp_path / name)
    assert caught.value.file == str(tmp_path / name)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("name", "points", "fields", "message"),
    [
        ("a.npy", CLOUD[0], None, r"\(N, 3\)"),
        ("a.npz", CLOUD, {"points": LABELS}, "rename them"),
        ("a.h5", CLOUD, {"faces": LABELS}, "rename them"),
        ("a.dae", CLOUD, None, r"cannot write '\.dae'; known: \.npy"),
        ("a.off", CLOUD, {"labels": LABELS}, r"\.off cannot hold labels; use \.ply or \.npz"),
        ("a.stl", CLOUD, None, "cannot hold points without triangles"),
        ("a.bin", CLOUD + 5e6 + np.float64(0.1), None, "coordinates that need float64"),
        ("a.csv", CLOUD, {"x": LABELS}, "second column 'x'"),
        ("a.txt", CLOUD.astype(str), None, "numbers"),
        ("a.npz", CLOUD, {"labels": LABELS[:2]}, "'labels'.*3 rows"),
        ("a.ply", CLOUD, {"labels": LABELS + 2**40}, "32 bits"),
        ("a.ply", CLOUD, {"labels": np.array(["a", "b", "c"])}, "numbers"),
    ],
)
def test_what_cannot_be_written_is_refused_and_leaves_no_file(tmp_path, name, points, fields, message):
    with pytest.raises(ValueError, match=message):
        write_points(tmp_path / name, points, fields)
    assert not list(tmp_path.iterdir())


def test_known_endings_are_listed():
    assert {".npy", ".npz", ".txt", ".xyz", ".csv", ".ply", ".off", ".h5"} <= set(POINT_SUFFIXES)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".h5"])
@pytest.mark.parametrize("shape", [(3, 256), (3, 4), (6, 1024), (4, 2048), (12, 2048)])
def test_arrays_the_wrong_way_round_are_refused(tmp_path, suffix, shape):
    array = np.random.default_rng(0).random(shape)
    if suffix == ".h5":
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file["points"] = array
    else:
        (np.save if suffix == ".npy" else np.savez)(tmp_path / f"a{suffix}", array)
    with pytest.raises(DataError, match=rf"\({shape[0]}, {shape[1]}\).*swap the axes, \.T"):
        read_points(tmp_path / f"a{suffix}")


@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_records_are_read_by_the_names_of_their_fields(tmp_path, suffix):
    records = np.zeros(
        3, dtype=[("intensity", ">f4"), ("z", "f8"), ("x", "f4"), ("y", "f4"), ("label", "u1")]
    )
    for at, axis in enumerate("xyz"):
        records[axis] = CLOUD[:, at]
    (np.save if suffix == ".npy" else np.savez)(tmp_path / f"a{suffix}", records)
    found = read_points(tmp_path / f"a{suffix}")
    assert np.array_equal(found.points, CLOUD)
    assert set(found.fields) == {"intensity", "labels"}


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
def test_coordinates_may_be_three_arrays(tmp_path, suffix):
    arrays = {"z": CLOUD[:, 2], "y": CLOUD[:, 1], "x": CLOUD[:, 0], "label": LABELS[:, None]}
    if suffix == ".npz":
        np.savez(tmp_path / "a.npz", **arrays)
    else:
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file.update(arrays)
    found = read_points(tmp_path / f"a{suffix}", max_points=2)
    assert np.array_equal(found.points, CLOUD[:2])
    assert {name: values.tolist() for name, values in found.fields.items()} == {"labels": LABELS[:2].tolist()}


@pytest.mark.parametrize("suffix", [".npz", ".h5"])
def test_labels_of_another_length_are_said_to_be_left_out(tmp_path, suffix, caplog, monkeypatch):
    monkeypatch.setattr("pcl_clora.errors._said", set())
    arrays = {"points": CLOUD, "labels": LABELS[:2], "class": np.zeros(1)}
    if suffix == ".npz":
        np.savez(tmp_path / "a.npz", **arrays)
    else:
        with h5py.File(tmp_path / "a.h5", "w") as file:
            file.update(arrays)
    assert not read_points(tmp_path / f"a{suffix}").fields
    assert [record.message.partition(": ")[2] for record in caplog.records] == [
        f"'labels' has 2 rows and the points {len(CLOUD)}: it is not read as their labels; give every "
        "point one."
    ]


@pytest.mark.parametrize("shape", [(2, 20, 3), (60,), (20, 3, 1)])
def test_an_array_of_another_kind_says_what_to_write(tmp_path, shape):
    np.save(tmp_path / "a.npy", np.zeros(shape))
    remedy = r"write one cloud of it, array\[0\]" if len(shape) == 3 else r"array of numbers \(N, C\)"
    with pytest.raises(DataError, match=remedy):
        read_points(tmp_path / "a.npy")


def test_a_folder_in_place_of_a_file_is_named(tmp_path):
    (tmp_path / "a.xyz").mkdir()
    with pytest.raises(DataError, match="is a folder, expected a file; name a file in it"):
        read_points(tmp_path / "a.xyz")


def test_records_may_hold_the_points_as_one_field(tmp_path):
    records = np.zeros(3, dtype=[("xyz", "f4", 3), ("rgb", "u1", 3), ("name", "U4")])
    records["xyz"] = CLOUD
    np.save(tmp_path / "a.npy", records)
    found = read_points(tmp_path / "a.npy")
    assert np.array_equal(found.points, CLOUD)
    assert found.fields["rgb"].shape == (3, 3)
    records = np.zeros(3, dtype=[("u", "f4"), ("v", "f4")])
    np.save(tmp_path / "b.npy", records)
    with pytest.raises(DataError, match="its records have u, v, expected x, y, z"):
        read_points(tmp_path / "b.npy")


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".txt", ".csv", ".ply"])
@pytest.mark.parametrize(("offset", "wide"), [(0, False), (10, False), (5e6, True), (1e300, True)])
def test_large_coordinates_keep_the_shape_of_the_cloud(tmp_path, suffix, offset, wide):
    points = np.random.default_rng(0).random((50, 3)) * (1e290 if offset == 1e300 else 1) + offset
    write_points(tmp_path / f"a{suffix}", points)
    found = read_points(tmp_path / f"a{suffix}").points
    assert found.dtype == (np.float64 if wide else np.float32)
    assert not wide or np.array_equal(found, points)
    assert len(np.unique(found, axis=0)) == 50
    assert read_points(tmp_path / f"a{suffix}", dtype="float64").points.dtype == np.float64


def test_an_outlier_does_not_hide_that_digits_are_needed(tmp_path):
    points = np.random.default_rng(0).random((50, 3)) + 5e6
    points[7] = 0
    np.save(tmp_path / "a.npy", points)
    assert read_points(tmp_path / "a.npy").points.dtype == np.float64


def test_whole_numbers_beyond_float32_stay_apart(tmp_path):
    np.save(tmp_path / "a.npy", 2**40 + np.arange(30).reshape(10, 3))
    assert len(np.unique(read_points(tmp_path / "a.npy").points, axis=0)) == 10


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        (
            "a b.dae",
            r"""pip install trimesh pycollada; python -c 'import trimesh; .*"a b\.dae".*"a b\.off"\)'""",
        ),
        ("a.mat", "pip install scipy; .*loadmat"),
        ("a.pt", "weights_only=True"),
        ("a.ply.gz", "unpack it"),
        ("a.unknown", "convert it"),
        ("a", "convert it"),
    ],
)
def test_other_formats_are_told_how_they_become_known_ones(tmp_path, name, remedy):
    (tmp_path / name).write_text("?")
    with pytest.raises(DataError, match=rf"are not known; known: \.npy.*{remedy}"):
        read_points(tmp_path / name)


def test_the_command_for_another_format_runs_nothing_that_a_name_holds(tmp_path):
    import shlex

    with pytest.raises(DataError) as caught:
        read_points(tmp_path / "a'; touch x; '$(id)`.dae")
    words = shlex.split(caught.value.remedy)
    assert words[-3:-1] == ["python", "-c"]
    compile(words[-1], "remedy", "exec")


def rewrite_header(path, old, new):
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))


DECLARED = {
    "more rows": lambda p: rewrite_header(p, b"(3, 3), }           ", b"(300000000, 3), }   "),
    "fewer rows": lambda p: rewrite_header(p, b"(3, 3)", b"(2, 3)"),
    "negative": lambda p: rewrite_header(p, b"(3, 3), } ", b"(-3, 3), }"),
    "objects": lambda p: rewrite_header(p, b"'<f4'", b"'|O' "),
    "a call": lambda p: rewrite_header(p, b"(3, 3)", b"id(1) "),
    "open bracket": lambda p: rewrite_header(p, b"(3, 3)", b"(((((("),
}


@pytest.mark.parametrize("change", DECLARED)
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_an_array_is_as_long_as_its_header_says(tmp_path, change, suffix):
    write_points(tmp_path / f"a{suffix}", CLOUD)
    DECLARED[change](tmp_path / f"a{suffix}")
    with pytest.raises(DataError, match=f"not a complete {suffix[1:]} file") as caught:
        read_points(tmp_path / f"a{suffix}")
    assert "allow_pickle" not in str(caught.value)


def test_an_archive_holds_no_more_than_packing_can_make(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", points=np.zeros((100_000, 3)))
    assert len(read_points(tmp_path / "a.npz").points) == 100_000
    data = bytearray((tmp_path / "a.npz").read_bytes())
    at = data.rindex(b"PK\x01\x02")
    data[at + 24 : at + 28] = (2**32 - 2).to_bytes(4, "little")
    (tmp_path / "a.npz").write_bytes(bytes(data))
    with pytest.raises(DataError, match="more than packing can make"):
        read_points(tmp_path / "a.npz")
