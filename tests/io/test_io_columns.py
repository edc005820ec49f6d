"""Points as text, in the forms that people and programs write."""

import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pcl_clora.io import DataError, read_points

POINTS = [[0.5, 1, 2], [3.25, -4, 5]]


def read(tmp_path, text, name="a.txt", **options):
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_points(tmp_path / name, **options)


@pytest.mark.parametrize(
    "text",
    [
        "0.5\t1\t2\n3.25\t-4\t5\n",
        "0.5 , 1 , 2\n3.25 , -4 , 5\n",
        "0.5 ,1 ,2\n3.25 ,-4 ,5\n",
        "0.5,1 2\n3.25,-4 5\n",
        "0.5;1;2\n3.25,-4,5\n",
        "0.5|1|2\n3.25|-4|5\n",
        "  0.5   1\t2 \n\t3.25 -4 5\n",
        "0.5,1,2,\n3.25,-4,5,\n",
        "0.5;1;2;\n3.25;-4;5;\n",
        "x;y;z;\n0.5;1;2;\n3.25;-4;5;\n",
        "0.5,1,2\r\n3.25,-4,5\r\n",
        "0.5 1 2\r3.25 -4 5\r",
        "// made by hand\n0.5 1 2 // first\n3.25 -4 5\n",
        "% matlab\n! fortran\n; ini\n0.5 1 2\n3.25 -4 5\n",
        "5.D-01 1.0d+00 0.2D1\n3.25D0 -4d0 5\n",
        "0,5;1;2\n3,25;-4;5\n",
        "X;Y;Z\n0,5;1,0;2,0\n3,25;-4,0;5,0\n",
        "0,5 1,0 2,0\n3,25 -4,0 5,0\n",
        "0,5\t1\t2\n3,25\t-4\t5\n",
        '"0,5","1","2"\n"3,25","-4","5"\n',
        '"0.5","1","2"\n"3.25","-4","5"\n',
        "0,1,2\n0.5,1.0,2.0\n3.25,-4.0,5.0\n",
        ",0,1,2\n0,0.5,1.0,2.0\n1,3.25,-4.0,5.0\n",
        ",x,y,z\n7,0.5,1.0,2.0\n3,3.25,-4.0,5.0\n",
        '"x" "y" "z"\n"1" 0.5 1 2\n"2" 3.25 -4 5\n',
        "Scan of a hall\nx y z\n0.5 1 2\n3.25 -4 5\n",
        "X [m],Y [m],Z (m)\n0.5,1,2\n3.25,-4,5\n",
        "Points:0,Points:1,Points:2\n0.5,1,2\n3.25,-4,5\n",
        "2\n0.5 1 2\n3.25 -4 5\n",
        "0.5 1 2\n3.25 \u22124 5\n",
        b"\xff\xfe" + "0.5 1 2\n3.25 -4 5\n".encode("utf-16-le"),
        b"# Stra\xdfe\n0.5 1 2\n3.25 -4 5\n",
        "0.5 1 2\n\n\n3.25 -4 5",
        "+0.5 1. 2e0\n3.25 -.4e1 5\n",
        "x,y,z\nm,m,m\n---,---,---\n0.5,1,2\n3.25,-4,5\n",
        "x y z\n1 0.5 1 2\n2 3.25 -4 5\n",
    ],
)
def test_points_are_read_however_they_are_written(tmp_path, text):
    content = read(tmp_path, text)
    assert content.points.tolist() == POINTS
    assert not content.fields


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("# label x y z\n7 0.5 1 2\n8 3.25 -4 5\n", {"labels": [7, 8]}),
        ("# made today\n# label x y z\n# more\n7 0.5 1 2\n8 3.25 -4 5\n", {"labels": [7, 8]}),
        ("//X Y Z R G B\n0.5 1 2 9 8 7\n3.25 -4 5 6 5 4\n", {"colors": [[9, 8, 7], [6, 5, 4]]}),
        ("# columns: x, y, z, w\n0.5,1,2,9\n3.25,-4,5,8\n", {"w": [9, 8]}),
        ("# of no use\n0.5 1 2 9\n3.25 -4 5 8\n", {"extra": [[9], [8]]}),
        ("x,y,z,Classification\n0.5,1,2,9\n3.25,-4,5,8\n", {"labels": [9, 8]}),
        ("x,y,z,class\n0.5,1,2,9.5\n3.25,-4,5,8\n", {"class": [9.5, 8]}),
        ("0,1,2,3\n0.5,1.0,2.0,9\n3.25,-4.0,5.0,8\n", {"extra": [[9], [8]]}),
        ("x;y;z;w\n0,5;1;2;0,25\n3,25;-4;5;1\n", {"w": [0.25, 1]}),
        ("x y z normal_x normal_y normal_z\n0.5 1 2 0 0 1\n3.25 -4 5 0 1 0\n",
         {"normals": [[0, 0, 1], [0, 1, 0]]}),
    ],
)  # fmt: skip
def test_columns_have_the_names_that_the_file_gives(tmp_path, text, fields):
    content = read(tmp_path, text)
    assert content.points.tolist() == POINTS
    assert {name: values.tolist() for name, values in content.fields.items()} == fields


def test_whole_numbers_from_0_on_are_a_point_where_others_are_whole_too(tmp_path):
    assert read(tmp_path, "0,1,2\n3,4,5\n0.5,1,2\n").points[0].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# a\n# b\nx y z\n1 2 3\n4 5 6\n\n7 8\n", r"line 7 does not have the 3 .*: it has 2 \('7 8'\)"),
        ("1 2 3\r\n4 5 6\r\n7 eight 9\r\n", r"line 3 .* 'eight' stands in column 2 \('7 eight 9'\)"),
        ("1 2 3\n4 5\x10 6\n", r"line 2 .* '5\\x10' stands in column 2"),
        ("1 2 3\n\n4 nan 6\n", r"point 1: \[4.0, nan, 6.0\], in line 3 \('4 nan 6'\)"),
        ("0,1,2\n1.5,2.5,3.5\n4.5,nan,6.5\n", r"point 1: .*in line 3"),
        ("1,2,3\n4,,6\n", r"line 2 .* '' stands in column 2"),
        ("x,y,z,label\n1,2,3,4\n5,6,7,\n", "line 3 does not have the 4 .* it has 3"),
        ("1;2;3\n4;5,5;6.5\n", "line 2 .* it has 4"),
        ("0,116,1,047,-0,319\n0,113,-0,852,-0,832\n", "line 1 has commas both as decimal sign and between"),
        ("1 2 3\n4 5 1.#QNAN\n", r"line 2 .* '1\.#QNAN' stands in column 3"),
        ("1 2 3 # ok\n4 5 6_0\n", "line 2 .*'6_0'"),
        ("1.0 2.0 " + "3" * 500 + "x\n1 2 3\n", "the header names"),
        ("x y z\n1 2 x3\n", "line 2 .* 'x3' stands in column 3"),
        ("a b c\n1 2 3\n", "the header names a, b, c for 3 columns, expected x, y, z"),
        ("9999999999999999999999\n1 2 3\n", "line 2 .*it has 3"),
        ("1 2 1e999\n1 2 3\n", "not finite"),
        (b"\x00\x01\x02 1 2\n", "is not text"),
        ("5\n", "announces 5 points and holds 0"),
        ("(1, 2, 3)\n(4, 5, 6)\n", r"no line of numbers alone.*line 1 is '\(1, 2, 3\)'; split the numbers"),
        ("name,x,y,z\na,1,2,3\n", "no line of numbers alone.*line 2 is 'a,1,2,3'"),
        (",1,2,3\n,4,5,6\n", "line 1 is ',1,2,3'"),
        ("\u0661 \u0662 \u0663\n", "line 1 is .*u0661"),
        ("x y z\n0.5 1 2 7\n0.5 -4 5 8\n", "the header names x, y, z for 4 columns"),
        (
            "# c\n1,234.5 2,345.6 3,456.7\n1 2.5 -3,456.7\n",
            r"line 2 has digits in groups of three \('1,234.5 ",
        ),
        ("1.5;2.5;3.5\n1,234.5;2,345.6;3,456.7\n", "line 2 has digits in groups of three"),
        ("1.234,5;2,5;3\n", "line 1 has digits in groups of three"),
        ("1,5\t2\t1.234.567,8\n", "no line of numbers alone.*line 1 is"),
        ("12,5,13,7,14,2\n12,05,13,7,14,2\n", "line 1 has commas both as decimal sign"),
    ],
)
def test_a_wrong_line_is_named_by_its_number_in_the_file_and_its_text(tmp_path, text, message):
    with pytest.raises(DataError, match=message):
        read(tmp_path, text)


ROWS = [f"{n}.5,{n}.25,1.5" for n in range(9)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0,1,2\n3,4,5\n", "its first line, '0,1,2', is read as a point"),
        ("\n".join(f"{n},{row}" for n, row in enumerate(ROWS)), "its first column numbers the lines"),
        (
            "\n".join(f"{n},{row}" for n, row in enumerate(ROWS, start=1)),
            "its first column numbers the lines",
        ),
        ("# id label x y z\n1 2 3.5 4\n", "the comment '# id label x y z' names 5 columns, and there are 4"),
        ("\n".join(ROWS), ""),
        ("# for all x y z of the hall\n1 2 3.5 4\n# x y z a b\n1 2 3.5 4", "the comment '# for all"),
        ("# x y z a b\n1 2 3.5 4", ""),
    ],
)
def test_what_may_be_read_wrongly_is_said_once(tmp_path, text, said, caplog, monkeypatch):
    monkeypatch.setattr("pcl_clora.errors._said", set())
    read(tmp_path, text)
    read(tmp_path, text, name="b.txt")
    assert len(caplog.records) == bool(said)
    assert said in caplog.text


def test_the_first_points_are_those_of_the_whole(tmp_path):
    text = "# x\n\n0,1,2\n" + "".join(f"{n}.5,1.5,2.5 # c\n\n" for n in range(20))
    whole = read(tmp_path, text).points
    for most in (1, 2, 19, 20, 30):
        assert np.array_equal(read(tmp_path, text, max_points=most).points, whole[:most])


SEPARATORS = st.sampled_from([" ", "\t", ",", ";", "  ", ", ", " ;", "|"])
NUMBERS = st.floats(-1e6, 1e6, allow_nan=False).map(lambda x: round(x, 6) + 0.0)


@settings(max_examples=150, deadline=None)
@given(
    rows=st.integers(3, 6).flatmap(
        lambda width: st.lists(st.lists(NUMBERS, min_size=width, max_size=width), min_size=4, max_size=12)
    ),
    mark=SEPARATORS,
    comma=st.booleans(),
    end=st.sampled_from(["\n", "\r\n", "\r"]),
    header=st.booleans(),
    trailing=st.booleans(),
    form=st.sampled_from(["%.6f", "%.12e", "%.12E"]),
)
def test_any_table_comes_back(tmp_path_factory, rows, mark, comma, end, header, trailing, form):
    comma = comma and mark.strip() not in (",",)
    names = ["x", "y", "z", "a", "b", "c"][: len(rows[0])]
    lines = [[form % value for value in row] for row in rows]
    if comma:
        lines = [[word.replace(".", ",") for word in row] for row in lines]
    if header:
        lines.insert(0, names)
    tail = mark.strip() if trailing else ""
    text = end.join(mark.join(row) + tail for row in lines) + end
    file = tmp_path_factory.mktemp("table") / "a.csv"
    file.write_bytes(text.encode())
    content = read_points(file, dtype="float64")
    expected = np.array([[float(form % value) for value in row] for row in rows])
    assert np.array_equal(content.points, expected[:, :3])
    others = (
        [content.fields[name] for name in names[3:]]
        if header
        else list(content.fields.get("extra", np.empty((0, 0))).T)
    )
    assert np.array_equal(np.array(others).T.reshape(len(rows), -1), expected[:, 3:])


@pytest.mark.parametrize("seed", range(5))
def test_tables_of_numpy_are_read_as_numpy_reads_them(tmp_path, seed):
    random = np.random.default_rng(seed)
    table = random.normal(size=(30, 3 + seed)) * 10.0 ** random.integers(-20, 20, (30, 3 + seed))
    np.savetxt(
        tmp_path / "a.txt", table, delimiter=[" ", ",", "\t", ";", " , "][seed], header="made by numpy"
    )
    content = read_points(tmp_path / "a.txt", dtype="float64")
    assert np.array_equal(content.points, table[:, :3])


def test_reading_says_nothing(tmp_path, caplog):
    with caplog.at_level(logging.DEBUG):
        read(tmp_path, "0,1,2\n0.5,1.0,2.0\n3.25,-4.0,5.0\n")
    assert not caplog.records
