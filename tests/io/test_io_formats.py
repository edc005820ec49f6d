"""Every format reads and writes; other libraries say what is right.

It is long, since all formats stand side by side.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pcl_clora.errors import UserValueError
from pcl_clora.io import FORMATS, POINT_SUFFIXES, DataError, read_points, write_points
from pcl_clora.io.formats import ANY
from tests.support.big_scan import write_scan
from tests.support.copc import write_copc

RANDOM = np.random.default_rng(0)
POINTS = RANDOM.random((60, 3)).astype(np.float32)
FACES = np.stack([np.arange(58), np.arange(1, 59), np.arange(2, 60)], axis=1)
NORMALS = RANDOM.normal(size=(60, 3)).astype(np.float32)
FIELDS = {
    "normals": NORMALS / np.linalg.norm(NORMALS, axis=1, keepdims=True),
    "colors": RANDOM.integers(0, 256, (60, 3)).astype(np.uint8),
    "intensity": RANDOM.integers(0, 60_000, 60).astype(np.uint16),
    "labels": RANDOM.integers(0, 7, 60).astype(np.int32),
    "weight": POINTS[:, 0].copy(),
}
BY_SUFFIX = {suffix: one for one in FORMATS for suffix in one.suffixes}
NEEDS = {
    **{".pcd": "pypcd4", ".las": "laspy", ".laz": "lazrs", ".e57": "pye57"},
    **dict.fromkeys((".stl", ".glb", ".gltf", ".3mf"), "trimesh"),
}


def need(*suffixes):
    for suffix in suffixes:
        if suffix in NEEDS:
            pytest.importorskip(NEEDS[suffix])


def held(suffix):
    kind = BY_SUFFIX[suffix]
    return {name: values for name, values in FIELDS.items() if kind.fields == ANY or name in kind.fields}


def tolerance(suffix, points=POINTS):
    return 2.0**-29 * float(np.ptp(points)) if suffix in (".las", ".laz") else 0.0


@pytest.mark.parametrize("suffix", POINT_SUFFIXES)
def test_what_a_format_holds_comes_back(tmp_path, suffix):
    need(suffix)
    faces = FACES if BY_SUFFIX[suffix].faces != "no" else None
    fields = held(suffix)
    write_points(tmp_path / f"a{suffix}", POINTS, fields, faces)
    found = read_points(tmp_path / f"a{suffix}")
    assert found.points.dtype == np.float32
    assert np.abs(found.points - POINTS).max() <= tolerance(suffix)
    assert set(found.fields) == set(fields)
    for name, values in fields.items():
        assert np.abs(found.fields[name].astype(np.float64) - values).max() <= 1e-8, name
    assert faces is None or np.array_equal(found.faces, faces)


@pytest.mark.parametrize("name", ["faces", "Faces", "face", "tris"])
@pytest.mark.parametrize("dtype", [np.int32, np.float64])
def test_vertices_and_faces_of_an_archive_are_a_mesh(tmp_path, name, dtype):
    np.savez(tmp_path / "a.npz", vertices=POINTS, **{name: FACES.astype(dtype)})
    found = read_points(tmp_path / "a.npz")
    assert np.array_equal(found.faces, FACES)
    assert not found.fields


def test_faces_of_another_form_are_warned_of(tmp_path, caplog):
    np.savez(tmp_path / "a.npz", vertices=POINTS, faces=np.zeros((7, 4), int))
    assert read_points(tmp_path / "a.npz").faces is None
    assert "'faces' is int64 (7, 4), no triangles (F, 3)" in caplog.text


@pytest.mark.parametrize("suffix", [one for one in POINT_SUFFIXES if BY_SUFFIX[one].faces == "yes"])
def test_formats_of_meshes_hold_points_without_triangles(tmp_path, suffix):
    need(suffix)
    write_points(tmp_path / f"a{suffix}", POINTS, held(suffix))
    found = read_points(tmp_path / f"a{suffix}")
    assert found.faces is None
    assert np.array_equal(found.points, POINTS)
    assert np.array_equal(found.fields["colors"], FIELDS["colors"])


@settings(max_examples=25, deadline=None)
@given(
    points=arrays.arrays(np.float32, st.tuples(st.integers(1, 12), st.just(3)),
                         elements=st.floats(-1e5, 1e5, width=32)),
    suffix=st.sampled_from([one for one in POINT_SUFFIXES if BY_SUFFIX[one].faces != "only"]),
)  # fmt: skip
def test_any_float32_survives_every_format(tmp_path_factory, points, suffix):
    need(suffix)
    file = tmp_path_factory.mktemp("round") / f"a{suffix}"
    write_points(file, points)
    found = read_points(file).points
    bound = tolerance(suffix, points) + (
        np.spacing(np.abs(points).max()) if suffix in (".e57", ".las", ".laz") else 0
    )
    held = found.astype(np.float32).astype(np.float64)  # text that is read in float64 gives the same float32
    assert np.abs(held - points).max() <= bound


@pytest.mark.parametrize("suffix", [one for one in POINT_SUFFIXES if BY_SUFFIX[one].exact])
def test_map_coordinates_keep_their_shape(tmp_path, suffix):
    need(suffix)
    points = np.random.default_rng(0).random((50, 3)) * 40 + [4.3e5, 5.4e6, 300]
    write_points(tmp_path / f"a{suffix}", points)
    found = read_points(tmp_path / f"a{suffix}")
    assert found.points.dtype == np.float64
    assert np.abs(found.points - points).max() < (1e-5 if suffix == ".e57" else 1e-6)
    near = read_points(tmp_path / f"a{suffix}", local=True)
    assert near.points.dtype == np.float32
    assert np.abs(near.points + near.origin - points).max() < 1e-5


@pytest.mark.parametrize("suffix", POINT_SUFFIXES)
def test_only_the_first_points_are_given_where_asked(tmp_path, suffix):
    need(suffix)
    write_points(
        tmp_path / f"a{suffix}", POINTS, held(suffix), FACES if BY_SUFFIX[suffix].faces == "only" else None
    )
    found = read_points(tmp_path / f"a{suffix}", max_points=7)
    assert np.abs(found.points - POINTS[:7]).max() <= tolerance(suffix)
    assert all(len(values) == 7 for values in found.fields.values())
    assert found.faces is None


@pytest.mark.parametrize("suffix", POINT_SUFFIXES)
@pytest.mark.parametrize(
    ("points", "count"), [(POINTS[:1], 1), (np.ones((5, 3), np.float32), 5)], ids=["one point", "all equal"]
)
def test_one_point_and_equal_points_are_read(tmp_path, suffix, points, count):
    need(suffix)
    faces = np.zeros((1, 3), int) if BY_SUFFIX[suffix].faces == "only" else None
    write_points(tmp_path / f"a{suffix}", points, None, faces)
    found = read_points(tmp_path / f"a{suffix}").points
    assert len(found) == (1 if suffix == ".stl" else count)
    assert (found == points[0]).all()


@pytest.mark.parametrize("suffix", POINT_SUFFIXES)
@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"\xff" * 103, b"hello, world\n"])
def test_files_of_nothing_and_of_something_else_are_refused(tmp_path, suffix, content):
    need(suffix)
    (tmp_path / f"a{suffix}").write_bytes(content)
    if suffix == ".bin" and content == b"\x00" * 100:
        content = content[:-1]
        (tmp_path / "a.bin").write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_points(tmp_path / f"a{suffix}")
    assert caught.value.file == str(tmp_path / f"a{suffix}")
    assert caught.value.remedy
    assert content or "is empty, it holds no points" in caught.value.problem


@pytest.mark.parametrize(
    "suffix", [".npy", ".npz", ".ply", ".pcd", ".las", ".laz", ".e57", ".h5", ".off", ".glb", ".3mf"]
)
@pytest.mark.parametrize("lie", [".ply", ".xyz", ".las", ".stl", ".obj", ".bin"])
def test_a_file_that_lies_about_its_type_is_read_by_its_content(tmp_path, suffix, lie, caplog):
    need(suffix, lie)
    write_points(tmp_path / f"a{suffix}", POINTS, None, FACES if BY_SUFFIX[suffix].faces == "only" else None)
    (tmp_path / f"a{suffix}").rename(tmp_path / f"b{lie}")
    found = read_points(tmp_path / f"b{lie}")
    assert np.abs(found.points - POINTS).max() <= tolerance(suffix)
    honest = BY_SUFFIX[suffix] is BY_SUFFIX[lie]
    assert honest or f"is a file of the format {BY_SUFFIX[suffix].suffixes[0]} by its content" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid", "pointer of git-lfs.*git lfs pull"),
        (b"<!DOCTYPE html><html>", "is a web page"),
        (b"\x1f\x8b\x08\x00", "is a packed file.*unpack it"),
        (b"\x89PNG\r\n\x1a\n", "is a picture or a document"),
        (b"%PDF-1.7", "is a picture or a document"),
    ],
)
@pytest.mark.parametrize("suffix", [".ply", ".xyz", ".las", ".obj", ".bin"])
def test_what_is_no_file_of_points_is_named(tmp_path, suffix, content, message):
    (tmp_path / f"a{suffix}").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_points(tmp_path / f"a{suffix}")


def test_an_unknown_ending_lists_the_known_ones_and_what_the_content_is(tmp_path):
    write_points(tmp_path / "a.ply", POINTS)
    (tmp_path / "a.ply").rename(tmp_path / "a.scan")
    with pytest.raises(
        DataError, match=r"known: \.npy, .*\.laz.*\.bin; it seems to be Stanford ply: call it a\.ply"
    ):
        read_points(tmp_path / "a.scan")


@pytest.mark.parametrize("suffix", [".npy", ".ply", ".pcd", ".xyz", ".csv", ".h5", ".obj", ".off", ".bin"])
def test_rows_of_nan_are_named(tmp_path, suffix):
    need(suffix)
    points = POINTS.copy()
    points[7, 1] = np.nan
    write_points(tmp_path / f"a{suffix}", points)
    with pytest.raises(DataError, match=r"point 7|line 8"):
        read_points(tmp_path / f"a{suffix}")


class TestPcd:
    """Files of the Point Cloud Library, as open3d writes them."""

    @pytest.mark.parametrize("how", [{"write_ascii": True}, {}, {"compressed": True}])
    def test_what_open3d_writes_is_read_as_open3d_reads_it(self, tmp_path, how):
        open3d = pytest.importorskip("open3d")
        cloud = open3d.geometry.PointCloud(open3d.utility.Vector3dVector(POINTS.astype(float)))
        cloud.normals = open3d.utility.Vector3dVector(FIELDS["normals"].astype(float))
        cloud.colors = open3d.utility.Vector3dVector(FIELDS["colors"] / 255)
        open3d.io.write_point_cloud(str(tmp_path / "a.pcd"), cloud, **how)
        found = read_points(tmp_path / "a.pcd")
        theirs = open3d.io.read_point_cloud(str(tmp_path / "a.pcd"))
        assert np.allclose(found.points, np.asarray(theirs.points), atol=1e-7)
        assert np.allclose(found.fields["normals"], np.asarray(theirs.normals), atol=1e-7)
        assert np.array_equal(found.fields["colors"], np.rint(np.asarray(theirs.colors) * 255))

    def test_what_we_write_open3d_reads(self, tmp_path):
        open3d = pytest.importorskip("open3d")
        write_points(tmp_path / "a.pcd", POINTS, FIELDS)
        theirs = open3d.io.read_point_cloud(str(tmp_path / "a.pcd"))
        assert np.array_equal(np.asarray(theirs.points, np.float32), POINTS)
        assert np.array_equal(np.rint(np.asarray(theirs.colors) * 255), FIELDS["colors"])

    def test_a_picture_of_depths_leaves_out_what_was_not_measured(self, tmp_path):
        rows = "1 2 3 7\nnan nan nan 8\n4 5 6 9\n0 0 0 1\n"
        header = (
            "VERSION .7\nFIELDS x y z ring\nSIZE 4 4 4 2\nTYPE F F F U\nCOUNT 1 1 1 1\nWIDTH 2\nHEIGHT 2\n"
            "VIEWPOINT 0 0 0 1 0 0 0\nPOINTS 4\nDATA ascii\n"
        )
        (tmp_path / "a.pcd").write_text(f"# .PCD v.7\n{header}{rows}")
        found = read_points(tmp_path / "a.pcd")
        assert found.points.tolist() == [[1, 2, 3], [4, 5, 6], [0, 0, 0]]
        assert found.fields["ring"].tolist() == [7, 9, 1]

    def test_records_with_several_values_and_filling_are_read(self, tmp_path):
        kind = np.dtype([("x", "f4"), ("y", "f4"), ("z", "f4"), ("_", "u1", 4), ("fpfh", "f4", 3)])
        table = np.zeros(3, kind)
        table["x"], table["fpfh"] = [1, 2, 3], [[1, 2, 3], [4, 5, 6], [7, 8, 9]]
        header = (
            "VERSION .7\nFIELDS x y z _ fpfh\nSIZE 4 4 4 1 4\nTYPE F F F U F\nCOUNT 1 1 1 4 3\n"
            "WIDTH 3\nHEIGHT 1\nVIEWPOINT 0 0 0 1 0 0 0\nPOINTS 3\nDATA binary\n"
        )
        (tmp_path / "a.pcd").write_bytes(f"# .PCD v.7\n{header}".encode() + table.tobytes())
        found = read_points(tmp_path / "a.pcd")
        assert found.points[:, 0].tolist() == [1, 2, 3]
        assert np.array_equal(found.fields["fpfh"], table["fpfh"])
        assert set(found.fields) == {"fpfh"}


class TestLas:
    """Laser scans, as laspy writes them."""

    @pytest.mark.parametrize("suffix", [".las", ".laz"])
    @pytest.mark.parametrize(("version", "kind"), [("1.2", 3), ("1.4", 7)])
    def test_what_laspy_writes_is_read_as_laspy_reads_it(self, tmp_path, suffix, version, kind):
        laspy = pytest.importorskip("laspy")
        need(".laz")
        header = laspy.LasHeader(version=version, point_format=kind)
        header.offsets, header.scales = [4.3e5, 5.4e6, 0], [1e-3, 1e-3, 1e-2]
        cloud = laspy.LasData(header)
        where = POINTS * 100 + np.array([4.3e5, 5.4e6, 250])
        cloud.x, cloud.y, cloud.z = where.T
        cloud.classification, cloud.intensity = FIELDS["labels"], FIELDS["intensity"]
        cloud.red, cloud.green, cloud.blue = FIELDS["colors"].astype(np.uint16).T * 257
        cloud.gps_time = np.arange(60) + 0.25
        cloud.write(tmp_path / f"a{suffix}")
        found, theirs = read_points(tmp_path / f"a{suffix}"), laspy.read(tmp_path / f"a{suffix}")
        assert np.array_equal(found.points, theirs.xyz)
        assert np.abs(found.points - where).max() < 0.006
        assert found.up == "z"
        for name in ("labels", "colors", "intensity"):
            assert np.array_equal(found.fields[name], FIELDS[name])
        assert np.array_equal(found.fields["gps_time"], theirs.gps_time)
        assert "user_data" not in found.fields

    def test_what_we_write_laspy_reads(self, tmp_path):
        laspy = pytest.importorskip("laspy")
        many = {**FIELDS, "labels": FIELDS["labels"] - 3, "Red": FIELDS["weight"], "vector": POINTS}
        write_points(tmp_path / "a.las", POINTS, {**FIELDS, "vector": POINTS})
        theirs = laspy.read(tmp_path / "a.las")
        assert np.array_equal(theirs.classification, FIELDS["labels"])
        assert np.array_equal(theirs.intensity, FIELDS["intensity"])
        assert np.array_equal(np.asarray(theirs.red) // 257, FIELDS["colors"][:, 0])
        assert np.array_equal(theirs["nx"], FIELDS["normals"][:, 0])
        assert np.array_equal(theirs["vector_2"], POINTS[:, 2])
        write_points(tmp_path / "b.las", POINTS, many)
        found = read_points(tmp_path / "b.las", labels="labels")
        assert np.array_equal(found.fields["labels"], many["labels"])

    def test_chunks_of_any_size_as_copc_has_them_are_read(self, tmp_path):
        laspy, lazrs = pytest.importorskip("laspy"), pytest.importorskip("lazrs")
        header = laspy.LasHeader(version="1.4", point_format=7)
        cloud = laspy.LasData(header)
        cloud.x, cloud.y, cloud.z = POINTS.T * 50
        cloud.classification = FIELDS["labels"]
        cloud.update_header()
        packing = lazrs.LazVlr.new_for_compression(7, 0, True)
        header.vlrs.append(laspy.vlrs.known.LasZipVlr(packing.record_data()))
        header.are_points_compressed = True
        with (tmp_path / "a.copc.laz").open("wb+") as file:
            header.write_to(file, ensure_same_size=False)
            file.seek(0, 2)
            packer = lazrs.LasZipCompressor(file, packing)
            packer.reserve_offset_to_chunk_table()
            for rows in (slice(0, 7), slice(7, 40), slice(40, 60)):
                packer.compress_many(np.frombuffer(cloud.points.array[rows].tobytes(), np.uint8))
                packer.finish_current_chunk()
            packer.done()
        found = read_points(tmp_path / "a.copc.laz")
        assert np.allclose(found.points, cloud.xyz)
        assert np.array_equal(found.fields["labels"], FIELDS["labels"])

    def test_a_copc_file_is_read_whole_as_its_own_reader_reads_it(self, tmp_path):
        laspy = pytest.importorskip("laspy")
        pytest.importorskip("lazrs")
        points = np.round(RANDOM.normal(size=(5000, 3)) * 50 + [4e5, 5e6, 100], 3)
        labels = RANDOM.integers(0, 9, 5000)
        write_copc(tmp_path / "a.copc.laz", points, labels, chunk=200)
        order = np.lexsort(points.T)
        with laspy.CopcReader.open(tmp_path / "a.copc.laz") as theirs:
            assert len(theirs.query()) == 5000
            middle = points.mean(axis=0)
            corner = ((points >= middle) & (points <= middle + 30)).all(axis=1)
            assert len(theirs.query(laspy.copc.Bounds(middle, middle + 30))) == corner.sum()
            assert len(theirs.query(level=0)) == len(points[::9])
        found = read_points(tmp_path / "a.copc.laz")
        again = np.lexsort(found.points.T)
        np.testing.assert_allclose(found.points[again], points[order], atol=1e-6)
        assert np.array_equal(found.fields["labels"][again], labels[order])
        assert np.array_equal(read_points(tmp_path / "a.copc.laz", max_points=70).points, found.points[:70])

    def test_more_records_than_there_is_room_for_are_refused_at_once(self, tmp_path):
        pytest.importorskip("laspy")
        write_points(tmp_path / "a.las", POINTS)
        content = bytearray((tmp_path / "a.las").read_bytes())
        content[100:104] = b"\xff" * 4
        (tmp_path / "a.las").write_bytes(content)
        with pytest.raises(DataError, match=r"announces 4294967295 records"):
            read_points(tmp_path / "a.las")

    def test_colours_of_16_bits_stay(self, tmp_path):
        pytest.importorskip("laspy")
        colors = RANDOM.integers(0, 65536, (60, 3)).astype(np.uint16)
        write_points(tmp_path / "a.las", POINTS, {"colors": colors})
        assert np.array_equal(read_points(tmp_path / "a.las").fields["colors"], colors)

    def test_a_scan_cut_short_says_how_many_points_are_missing(self, tmp_path):
        pytest.importorskip("laspy")
        write_points(tmp_path / "a.las", POINTS)
        (tmp_path / "a.las").write_bytes((tmp_path / "a.las").read_bytes()[:-500])
        with pytest.raises(DataError, match="is not a complete las file"):
            read_points(tmp_path / "a.las")


class TestE57:
    """Scans of terrestrial scanners, as pye57 writes them."""

    def test_scans_lie_in_the_frame_that_they_share_and_have_numbers(self, tmp_path):
        pye57 = pytest.importorskip("pye57")
        turned = np.array([np.cos(np.pi / 4), 0, 0, np.sin(np.pi / 4)])  # a quarter about z
        with pye57.E57(str(tmp_path / "a.e57"), mode="w") as file:
            data = {
                f"cartesian{axis}": column for axis, column in zip("XYZ", POINTS.T.astype(float), strict=True)
            }
            file.write_scan_raw({**data, "intensity": POINTS[:, 0]})
            file.write_scan_raw(
                {**data, "intensity": POINTS[:, 0]}, rotation=turned, translation=np.array([10.0, 0, 5])
            )
        found = read_points(tmp_path / "a.e57")
        x, y, z = POINTS.T
        assert np.allclose(found.points[:60], POINTS, atol=1e-6)
        assert np.allclose(found.points[60:], np.stack([10 - y, x, 5 + z], axis=1), atol=1e-5)
        assert found.fields["scan"].tolist() == 60 * [0] + 60 * [1]
        assert np.array_equal(read_points(f"{tmp_path}/a.e57#1").points, found.points[60:])
        with pytest.raises(DataError, match=r"has no scan '2', it holds 2; name one as #0 to #1"):
            read_points(f"{tmp_path}/a.e57#2")


class TestObj:
    """Wavefront files; trimesh is the oracle."""

    TEXT = (
        "# made\nmtllib a.mtl\no body\nv 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nv 0 0 1\nvt 0 0\nvn 0 0 1\n"
        "vn 1 0 0\nusemtl red\ns off\n"
        "f 1/1/1 2/1/1 3/1/1 4/1/1\nf 1//2 2//2 \\\n 5//2\nl 1 2\nf -5 -4 -1 # the last\n"
    )

    def test_faces_of_all_kinds_are_cut_into_triangles(self, tmp_path):
        (tmp_path / "a.obj").write_text(self.TEXT)
        found = read_points(tmp_path / "a.obj")
        assert found.points.shape == (5, 3)
        assert sorted(map(tuple, found.faces.tolist())) == [(0, 1, 2), (0, 1, 4), (0, 1, 4), (0, 2, 3)]

    def test_it_is_what_trimesh_reads(self, tmp_path):
        trimesh = pytest.importorskip("trimesh")
        mesh = trimesh.creation.icosphere(subdivisions=2)
        mesh.visual.vertex_colors = RANDOM.integers(0, 256, (len(mesh.vertices), 4))
        mesh.export(tmp_path / "a.obj", include_normals=True, include_color=True)
        found, theirs = read_points(tmp_path / "a.obj"), trimesh.load_mesh(tmp_path / "a.obj", process=False)
        assert np.allclose(found.points, theirs.vertices, atol=1e-7)
        assert np.array_equal(found.faces, theirs.faces)
        assert np.allclose(found.fields["normals"], mesh.vertex_normals, atol=1e-6)
        assert np.array_equal(found.fields["colors"], mesh.visual.vertex_colors[:, :3])

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ("v 1 1 0", "v 1 one 0", r"line 6 \('1 one 0'\)"),
            ("v 1 1 0", "v 1 1", r"line 6"),
            ("5//2", "9//2", "a face names number 9 of 5"),
            ("f -5 -4 -1", "f -9 -4 -1", "line 18"),
            ("f -5 -4 -1", "f 1 2 x", "line 18"),
            ("f 1/1/1 2", "f 0/1/1 2", "line 14"),
        ],
    )
    def test_a_wrong_line_is_named(self, tmp_path, old, new, message):
        (tmp_path / "a.obj").write_text(self.TEXT.replace(old, new, 1))
        with pytest.raises(DataError, match=message):
            read_points(tmp_path / "a.obj")


class TestScenes:
    """stl, glb and 3mf, as trimesh writes them."""

    @pytest.mark.parametrize("kind", ["stl", "stl_ascii", "glb", "3mf", "off", "obj", "ply"])
    def test_a_mesh_of_trimesh_has_its_area_and_volume(self, tmp_path, kind):
        trimesh = pytest.importorskip("trimesh")
        mesh = trimesh.creation.annulus(0.5, 1.0, 2.0)
        file = tmp_path / f"a.{kind.partition('_')[0]}"
        mesh.export(file, file_type=kind)
        found = read_points(file)
        ours = trimesh.Trimesh(found.points, found.faces)
        assert ours.area == pytest.approx(mesh.area, rel=1e-5)
        assert ours.volume == pytest.approx(mesh.volume, rel=1e-5)
        assert len(found.points) == len(mesh.vertices)

    def test_bodies_of_a_scene_lie_where_it_puts_them(self, tmp_path):
        trimesh = pytest.importorskip("trimesh")
        scene = trimesh.Scene()
        box = trimesh.creation.box()
        for number, place in enumerate(([0, 0, 0], [5, 0, 0])):
            scene.add_geometry(
                box.copy(),
                transform=trimesh.transformations.translation_matrix(place),
                node_name=f"n{number}",
            )
        scene.export(tmp_path / "a.glb")
        found = read_points(tmp_path / "a.glb")
        assert (found.up, found.unit) == ("y", "m")
        assert found.points.min(axis=0).tolist() == [-0.5, -0.5, -0.5]
        assert found.points.max(axis=0).tolist() == [5.5, 0.5, 0.5]
        assert found.fields["body"].tolist() == len(found.points) // 2 * [0] + len(found.points) // 2 * [1]

    def test_a_gltf_reads_the_numbers_beside_it_and_nothing_else(self, tmp_path):
        trimesh = pytest.importorskip("trimesh")
        (tmp_path / "in").mkdir()
        for name, content in trimesh.Scene([trimesh.creation.box()]).export(file_type="gltf").items():
            (tmp_path / "in" / name).write_bytes(content)
        model = tmp_path / "in" / "model.gltf"
        assert len(read_points(model).points) == 8
        buffer = next((tmp_path / "in").glob("*.bin"))
        buffer.rename(tmp_path / buffer.name)
        model.write_text(model.read_text().replace(f'"{buffer.name}"', f'"../{buffer.name}"'))
        with pytest.raises(DataError, match=r"in another file, .*, which is not beside it; write a \.glb"):
            read_points(model)


class TestKitti:
    """Scans without a header."""

    def test_a_scan_of_nuscenes_has_five_numbers_a_point(self, tmp_path):
        RANDOM.random((6, 5)).astype(np.float32).tofile(tmp_path / "a.pcd.bin")
        found = read_points(tmp_path / "a.pcd.bin")
        assert found.points.shape == (6, 3)
        assert set(found.fields) == {"intensity", "ring"}

    @pytest.mark.parametrize(
        "numbers", [[1, 2, 3], [1, 2, 3, 1e30], [np.nan, 0, 0, 0], [1, 2, 3, -0.5], [1, 2, 3e-45, 0]]
    )
    def test_numbers_of_something_else_are_refused(self, tmp_path, numbers):
        np.array(numbers, np.float32).tofile(tmp_path / "a.bin")
        with pytest.raises(DataError, match=r"float32 numbers.*convert it to \.npy"):
            read_points(tmp_path / "a.bin")

    def test_an_intensity_below_zero_is_not_written(self, tmp_path):
        with pytest.raises(UserValueError, match=r"no intensity below 0, and one is -5; use \.ply"):
            write_points(tmp_path / "a.bin", POINTS, {"intensity": np.full(60, -5)})
        assert not list(tmp_path.iterdir())

    def test_a_raw_object_of_scanobjectnn_is_told_by_its_first_number(self, tmp_path):
        table = np.hstack([RANDOM.random((13, 9)), np.full((13, 2), 12)])  # its size is one of KITTI, too
        np.concatenate([[13], table.ravel()]).astype(np.float32).tofile(tmp_path / "a.bin")
        found = read_points(tmp_path / "a.bin")
        assert np.array_equal(found.points, table[:, :3].astype(np.float32))
        assert found.fields["labels"].tolist() == [12] * 13
        assert {"normals", "colors", "instance"} <= set(found.fields)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("2\n1 2 3 -5 10 20 30\n4 5 6 -7 40 50 60\n", {"intensity", "colors"}),
        ("2\n1 2 3 -5\n4 5 6 -7\n", {"intensity"}),
        ("2\n1 2 3 10 20 30\n4 5 6 40 50 60\n", {"colors"}),
        ("2\n1 2 3 0.5 20 30\n4 5 6 40 50 60\n", {"extra"}),
        ("1 2 3 -5 10 20 30\n4 5 6 -7 40 50 60\n", {"extra"}),
    ],
)
def test_columns_of_a_pts_file_with_a_count_are_those_of_scanners(tmp_path, text, names):
    (tmp_path / "a.pts").write_text(text)
    assert set(read_points(tmp_path / "a.pts").fields) == names


def test_text_longer_than_a_block_is_one_table(tmp_path, monkeypatch):
    from pcl_clora.io import columns

    monkeypatch.setattr(columns, "_BLOCK", 200)
    table = np.random.default_rng(0).random((500, 4))
    np.savetxt(tmp_path / "a.csv", table, delimiter=",", header="x,y,z,w", comments="")
    found = read_points(tmp_path / "a.csv", dtype="float64")
    assert np.array_equal(
        np.column_stack([found.points, found.fields["w"]]),
        np.loadtxt(tmp_path / "a.csv", delimiter=",", skiprows=1),
    )
    lines = (tmp_path / "a.csv").read_text().splitlines()
    for number, bad, said in (
        (300, "1,2,3", "line 301 does not have the 4 numbers"),
        (400, "1,nan,3,4", "line 401"),
    ):
        (tmp_path / "b.csv").write_text("\n".join([*lines[:number], bad, *lines[number + 1 :]]) + "\n")
        with pytest.raises(DataError, match=said):
            read_points(tmp_path / "b.csv")


def test_the_formats_page_lists_every_format():
    page = (Path(__file__).parents[2] / "docs" / "files.md").read_text(encoding="utf-8")
    for one in FORMATS:
        row = next((line for line in page.splitlines() if line.startswith(f"| {one.name} |")), "")
        assert all(f"`{suffix}`" in row for suffix in one.suffixes), one.name
        assert (one.package or "-") in row.split("|")[6], one.name


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the memory of a process from /proc")
@pytest.mark.parametrize("suffix", [".laz", ".csv"])
def test_a_scan_takes_memory_by_its_points_so_that_five_millions_stay_below_2_gb(tmp_path, suffix):
    need(suffix)
    root, count = Path(__file__).parents[2], 300_000
    write_scan(tmp_path / f"a{suffix}", count)
    command = [
        sys.executable,
        "-m",
        "tests.support.big_scan",
        suffix,
        str(count),
        "--file",
        str(tmp_path / f"a{suffix}"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=root)
    before, own, parsers = map(int, done.stdout.split())
    fixed = 60 + (80 if parsers else 0)  # MiB: blocks of text, the other process and its libraries
    bytes_a_point = (own - before + parsers - fixed) * 2**20 / count
    assert before + fixed + 5_000_000 * bytes_a_point / 2**20 < 2e9 / 2**20
