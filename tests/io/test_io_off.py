"""Off files and their variants."""

import pytest

from pcl_clora.io import DataError, read_points

VERTICES = "0 0 0\n1 0 0\n1 1 0\n0 1 0\n0 0 1\n"
FACES = "4 0 1 2 3\n3 0 1 4\n"
TRIANGLES = [[0, 1, 2], [0, 2, 3], [0, 1, 4]]


def read(tmp_path, text, **options):
    (tmp_path / "a.off").write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_points(tmp_path / "a.off", **options)


@pytest.mark.parametrize(
    "text",
    [
        f"OFF\n5 2 0\n{VERTICES}{FACES}",
        f"OFF\n5 2\n{VERTICES}{FACES}",
        f"OFF 5 2\n{VERTICES}{FACES}",
        f"OFF5 2 0\n{VERTICES}{FACES}",
        f"off\n5 2 0\n{VERTICES}{FACES}",
        f"OFF # made\n# by hand\n\n5 2 0 # counts\n\n{VERTICES}# faces\n{FACES}\n# end",
        f"OFF\n5\n2\n0\n{VERTICES}{FACES}",
        f"OFF\n5 2 0\n{VERTICES}4 0 1 2 3 255 0 0\n3 0 1 4 0.5 0.5 0.5 1\n",
        f"OFF\n5 2 0\n{VERTICES}4 0 1 2 3 7\n3 0 1 4\n",
        f"OFF\n5 3 0\n{VERTICES}4 0 1 2 3\n2 0 1\n3 0 1 4\n",
        f"OFF\r\n5 2 0\r\n{VERTICES}{FACES}".replace("\r", "").replace("\n", "\r\n"),
        f"OFF\n5 2 0\n{VERTICES}{FACES}".replace("\n", "\r"),
        b"OFF\n# Stra\xdfe\n" + f"5 2 0\n{VERTICES}{FACES}".encode(),
        f"OFF\n5 2 0\n{VERTICES}{FACES}".rstrip(),
        b"\xef\xbb\xbf" + f"OFF\n5 2 0\n{VERTICES}{FACES}".encode(),
    ],
)
def test_vertices_and_triangles_are_read(tmp_path, text):
    content = read(tmp_path, text)
    assert content.points.shape == (5, 3)
    assert content.points[2].tolist() == [1, 1, 0]
    assert content.faces.tolist() == TRIANGLES
    assert not content.fields


@pytest.mark.parametrize(
    ("keyword", "more", "fields"),
    [
        ("COFF", "9 8 7 255", {"colors": [9, 8, 7], "alpha": 255}),
        ("COFF", "0.5 0.25 0", {"colors": [0.5, 0.25, 0]}),
        ("NOFF", "0 0 1", {"normals": [0, 0, 1]}),
        ("CNOFF", "0 0 1 9 8 7 1", {"normals": [0, 0, 1], "colors": [9, 8, 7], "alpha": 1}),
        ("STOFF", "0.5 0.25", {"texture": [0.5, 0.25]}),
        ("STCNOFF", "0 0 1 9 8 7 1 0.5 0.25",
         {"normals": [0, 0, 1], "colors": [9, 8, 7], "alpha": 1, "texture": [0.5, 0.25]}),
        ("OFF", "9 8 7", {"colors": [9, 8, 7]}),
    ],
)  # fmt: skip
def test_what_a_variant_says_of_a_vertex_is_a_field(tmp_path, keyword, more, fields):
    vertices = VERTICES.replace("\n", f" {more}\n")
    content = read(tmp_path, f"{keyword}\n5 2 0\n{vertices}{FACES}")
    assert content.points[2].tolist() == [1, 1, 0]
    assert {name: values[0].tolist() for name, values in content.fields.items()} == fields
    assert content.faces.tolist() == TRIANGLES


def test_a_cloud_without_faces_is_read(tmp_path):
    assert read(tmp_path, f"OFF\n5 0 0\n{VERTICES}").faces is None
    assert len(read(tmp_path, f"OFF\n5 2 0\n{VERTICES}{FACES}", max_points=2).points) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"4OFF\n5 2 0\n{VERTICES}{FACES}", "kind 4OFF, whose vertices are not in three dimensions"),
        (f"nOFF\n3\n5 2 0\n{VERTICES}{FACES}", "kind nOFF"),
        ("OFF BINARY\n\x00\x00", "binary off file.*convert it"),
        (f"OFF\n5.5 2 0\n{VERTICES}{FACES}", r"line 2 \('5.5 2 0'\).*whole and not negative"),
        (f"OFF\n-5 2 0\n{VERTICES}{FACES}", "whole and not negative"),
        ("OFF\n", "numbers of vertices"),
        (f"OFF\n99999999999 2 0\n{VERTICES}{FACES}", "announces 99999999999 vertices"),
        (f"OFF\n5 99999999999 0\n{VERTICES}{FACES}", "announces 99999999999 faces and holds 2"),
        (f"OFF\n5 1 0\n{VERTICES}{FACES}", "announces 1 faces and holds 2 lines"),
        (f"OFF\n5 2 0\n{VERTICES}4 0 1 2 3\n3 0 1.5 4\n", r"line 9 \('3 0 1.5 4'\)"),
        (f"OFF\n5 2 0\n{VERTICES}4 0 1 2 3\n3 0 -1 4\n", r"line 9 \('3 0 -1 4'\)"),
        (f"OFF\n5 2 0\n{VERTICES}4 0 1 2 3\n3 0 1\n", r"line 9 \('3 0 1'\)"),
        (f"OFF\n5 2 0\n{VERTICES}4 0 1 2 3\n3.5 0 1 4\n", r"line 9"),
        (f"OFF\n5 2 0\n{VERTICES}4 0 1 2 3\n-3 0 1 4\n", r"line 9"),
        (f"OFF\n5 2 0\n{VERTICES}4 0 1 2 3\n3 0 1 5\n", r"line 9 .*names vertex 5 of 5"),
        (f"OFF\n5 2 0\n{VERTICES}4 0 1 2 3\n3 0 one 4\n", r"line 9 .*expected numbers"),
        (f"OFF\n# c\n5 2 0\n{VERTICES.replace('1 1 0', '1 1')}{FACES}", r"line 6 \('1 1'\), expected 3"),
        (f"OFF\n5 2 0\n{VERTICES.replace('1 1 0', '1 x 0')}{FACES}", r"line 5 \('1 x 0'\)"),
        (f"OFF\n5 2 0\n{VERTICES.replace('1 0 0', '1 0').replace('1 1 0', '0 1 1 0')}{FACES}", r"line 4"),
        (f"NOFF\n5 2 0\n{VERTICES}{FACES}", "has 3 numbers, expected 6"),
    ],
)  # fmt: skip
def test_what_is_no_mesh_is_refused_with_its_line(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read(tmp_path, text)
