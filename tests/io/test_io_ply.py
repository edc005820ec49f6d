"""Ply files as other programs write them; plyfile is the oracle."""

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pcl_clora.io import DataError, read_points, write_points

HEADER = "ply\nformat ascii 1.0\nelement vertex 3\nproperty float x\nproperty float y\nproperty float z\n"
DATA = "0 0 0\n1 0 0\n0 1 0\n"
END = "end_header\n" + DATA
FACES = HEADER + "element face 1\nproperty list uchar int vertex_indices\nend_header\n"


def read(tmp_path, content, **options):
    (tmp_path / "a.ply").write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_points(tmp_path / "a.ply", **options)


@pytest.mark.parametrize(
    "comment",
    [
        b"comment Stra\xdfe",
        "comment Stra\u00dfe".encode(),
        b"comment",
        b"obj_info \x00\xff",
        b"comment end_header is not here",
        b"comment " + b"x" * 5000,
    ],
)
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("order", ["ascii", "binary_little_endian", "binary_big_endian"])
def test_comments_of_any_bytes_and_any_line_ends_are_read(tmp_path, comment, end, order):
    header = HEADER.replace("ascii", order).encode().replace(b"1.0\n", b"1.0\n" + comment + b"\n")
    points = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 13.0390625]], ">f4" if "big" in order else "<f4")
    data = DATA.replace("0 1 0", "0 1 13.0390625").encode() if order == "ascii" else points.tobytes()
    text = (header + b"end_header\n").replace(b"\n", end) + data
    assert np.array_equal(read(tmp_path, text).points, points)
    assert np.array_equal(read(tmp_path, b"\xef\xbb\xbf" + text).points, points)


ORDERS = st.sampled_from([("ascii", "="), ("binary", "<"), ("binary", ">")])
LISTS = st.lists(st.lists(st.integers(0, 4), min_size=0, max_size=5), min_size=0, max_size=8)


@settings(max_examples=60, deadline=None)
@given(
    order=ORDERS,
    faces=LISTS,
    colour=st.booleans(),
    first=st.booleans(),
    wide=st.booleans(),
    seed=st.integers(0, 99),
)
def test_what_plyfile_writes_is_read_as_plyfile_reads_it(
    tmp_path_factory, order, faces, colour, first, wide, seed
):
    plyfile = pytest.importorskip("plyfile")
    random = np.random.default_rng(seed)
    floats = "f8" if wide else "f4"
    names = [("x", floats), ("nx", floats), ("y", floats), ("z", floats), ("ny", floats), ("nz", floats)]
    vertex = np.zeros(
        5, dtype=[*names, *([(c, "u1") for c in ("red", "green", "blue")] if colour else []), ("w", "i2")]
    )
    for name in vertex.dtype.names:
        vertex[name] = random.integers(0, 200, 5) / (8 if vertex.dtype[name].kind == "f" else 1)
    face = np.empty(len(faces), dtype=[("vertex_indices", "O"), ("flag", "u1")])
    face["vertex_indices"] = [np.array(one, np.int32) for one in faces] if faces else []
    face["flag"] = 7
    camera = np.array([(1.5, 2)], dtype=[("view", "f4"), ("count", "i4")])
    lists = {"val_types": {"vertex_indices": "i4"}, "len_types": {"vertex_indices": "u1"}}
    parts = [
        plyfile.PlyElement.describe(vertex, "vertex"),
        plyfile.PlyElement.describe(face, "face", **lists),
    ]
    parts.insert(0 if first else 2, plyfile.PlyElement.describe(camera, "camera"))
    if first:
        parts = [parts[0], parts[2], parts[1]]
    file = tmp_path_factory.mktemp("ply") / "a.ply"
    plyfile.PlyData(parts, text=order[0] == "ascii", byte_order=order[1], comments=["c"]).write(file)
    content = read_points(file)
    for at, axis in enumerate("xyz"):
        assert np.array_equal(content.points[:, at], vertex[axis])
    assert np.array_equal(content.fields["normals"], np.stack([vertex[n] for n in ("nx", "ny", "nz")], 1))
    assert np.array_equal(content.fields["w"], vertex["w"])
    assert ("colors" in content.fields) == colour
    if colour:
        assert content.fields["colors"].dtype == np.uint8
    expected = [[one[0], one[k], one[k + 1]] for one in faces for k in range(1, len(one) - 1)]
    assert (content.faces is None) == (not expected)
    assert not expected or content.faces.tolist() == expected


def test_lists_on_vertices_and_before_them_are_passed_over(tmp_path):
    text = (
        "ply\nformat ascii 1.0\nelement tag 2\nproperty list uchar int ids\n"
        "element vertex 2\nproperty float x\n"
        "property list uchar float weights\nproperty float y\nproperty float z\nend_header\n"
        "2 5 6\n0\n1 2 0.5 0.5 2 3\n4 0 5 6\n"
    )
    content = read(tmp_path, text)
    assert content.points.tolist() == [[1, 2, 3], [4, 5, 6]]
    assert not content.fields


def test_strips_are_cut_into_triangles(tmp_path):
    text = (
        "ply\nformat ascii 1.0\nelement vertex 5\nproperty float x\nproperty float y\nproperty float z\n"
        "element tristrips 1\nproperty list int int vertex_indices\nend_header\n"
        + "0 0 0\n1 0 0\n0 1 0\n1 1 0\n2 2 2\n8 0 1 2 3 -1 2 3 4\n"
    )
    assert read(tmp_path, text).faces.tolist() == [[0, 1, 2], [2, 1, 3], [2, 3, 4]]


@pytest.mark.parametrize(
    ("name", "type"),
    [
        ("scalar_Label", "float"),
        ("label", "uchar"),
        ("Classification", "int"),
        ("class", "int"),
        ("scalar_Classification", "double"),
    ],
)
def test_labels_are_found_under_their_usual_names(tmp_path, name, type):
    text = (
        HEADER
        + f"property {type} {name}\nproperty float scalar_Intensity\nend_header\n"
        + "0 0 0 4 0.5\n1 0 0 5 0.5\n0 1 0 6 1\n"
    )
    content = read(tmp_path, text)
    assert content.fields["labels"].tolist() == [4, 5, 6]
    assert content.fields["intensity"].tolist() == [0.5, 0.5, 1]


def test_the_field_of_the_labels_can_be_chosen(tmp_path):
    text = (
        HEADER + "property int label\nproperty int scalar_Mine\nend_header\n0 0 0 4 7\n1 0 0 5 8\n0 1 0 6 9\n"
    )
    assert read(tmp_path, text, labels="scalar_Mine").fields["labels"].tolist() == [7, 8, 9]
    assert read(tmp_path, text, labels="mine").fields["labels"].tolist() == [7, 8, 9]
    with pytest.raises(DataError, match="has label, scalar_Mine, and the labels were to be 'other'"):
        read(tmp_path, text, labels="other")


@pytest.mark.parametrize("factor", [1.0, 5e6])
def test_coordinates_are_written_as_wide_as_they_need_be(tmp_path, factor):
    points = np.random.default_rng(0).random((20, 3)) + factor
    write_points(tmp_path / "a.ply", points)
    found = read_points(tmp_path / "a.ply").points
    assert found.dtype == (np.float64 if factor > 1 else np.float32)
    np.testing.assert_allclose(found, points, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("PLY\n", "expected ply"),
        (HEADER.replace("format ascii 1.0\n", "") + END, "no line 'format'"),
        (HEADER + DATA, "says nothing in a ply file|no end_header"),
        (HEADER.replace("float y", "quad y") + END, "line 5 of the header is 'property quad y'"),
        (HEADER.replace("float y", "float x") + END, "line 5 .*twice"),
        (HEADER.replace("vertex 3", "vertex 9999999999999") + END, "announces 9999999999999 of"),
        (HEADER.replace("vertex 3", "vertex -3") + END, "line 3"),
        (HEADER.replace("vertex 3", "vertex 2") + END, "3 numbers more than its header"),
        (HEADER + END.replace("1 0 0", "1 one 0"), r"line 9 \('1 one 0'\), expected numbers"),
        (HEADER.replace("vertex", "point") + END, "has the elements point, expected 'vertex'"),
        (FACES + DATA + "3 0 1 3\n", "vertex 3 of 3"),
        (FACES + DATA + "3 0 1\n", "not a complete"),
        (FACES.replace("face 1", "face 9") + DATA + "3 0 1 2\n", "not a complete"),
        (FACES + DATA + "-3 0 1 2\n", "length -3"),
        (FACES + DATA + "3 0 1 1.5\n", "no whole numbers"),
    ],
)  # fmt: skip
def test_what_is_no_ply_file_is_refused_with_its_place(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read(tmp_path, text)


@pytest.mark.parametrize("order", ["little", "big"])
@pytest.mark.parametrize("change", ["cut", "more", "count"])
def test_binary_data_are_as_long_as_the_header_says(tmp_path, order, change):
    header = HEADER.replace("ascii", f"binary_{order}_endian") + "end_header\n"
    data = np.zeros(9, "f4").tobytes()
    if change == "count":
        header = header.replace("vertex 3", "vertex 4000000000")
    content = header.encode() + {"cut": data[:-1], "more": data + b"\x00\x00\x00", "count": data}[change]
    with pytest.raises(DataError, match=r"not a complete ply file|more than its header announces"):
        read(tmp_path, content)


@pytest.mark.slow
def test_a_mesh_of_a_million_triangles_is_read_in_about_a_second(tmp_path):
    count = 1_000_000
    header = HEADER.replace("ascii", "binary_little_endian") + f"element face {count}\n"
    faces = np.empty(count, dtype=[("n", "u1"), ("corners", "<i4", 3)])
    faces["n"], faces["corners"] = 3, [0, 1, 2]
    content = f"{header}property list uchar int vertex_indices\nend_header\n".encode() + bytes(36)
    start = time.process_time()
    assert len(read(tmp_path, content + faces.tobytes()).faces) == count
    assert time.process_time() - start < 2.0  # 0.1 s here; row by row it takes 4 to 11 s
