"""Files of strangers, of any format, in processes of their own."""

import io
import sys
import zipfile

import numpy as np
import pytest

from pcl_clora.io import read_points, write_points
from pcl_clora.io.apart import Readers, RefusedFileError

POINTS = np.random.default_rng(0).normal(size=(50, 3))


@pytest.fixture(scope="module")
def readers():
    with_them = Readers(1, 1000)
    yield with_them
    with_them.close()


@pytest.mark.parametrize("suffix", ["ply", "npz", "csv", "off", "h5"])
def test_a_file_is_read_as_anywhere(readers, tmp_path, suffix):
    path, faces = tmp_path / f"a.{suffix}", [[0, 1, 2]] if suffix in ("ply", "off") else None
    write_points(path, POINTS, faces=faces)
    expected, found = read_points(path, dtype="float64"), readers.read(path)
    np.testing.assert_array_equal(found.points, expected.points)
    assert (found.faces is None) == (expected.faces is None)


def test_one_cloud_of_several_is_named(readers, tmp_path):
    write_points(tmp_path / "a.h5", POINTS)
    assert len(readers.read(tmp_path / "a.h5", "points").points) == 50
    with pytest.raises(RefusedFileError):
        readers.read(tmp_path / "a.h5", "nothing")


@pytest.mark.skipif(sys.platform == "win32", reason="limits of memory are those of posix")
def test_a_file_that_unpacks_to_much_is_refused(readers, tmp_path):
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        head, {"descr": "<f8", "fortran_order": False, "shape": (1 << 28, 3)}
    )
    with (
        zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("points.npy", "w", force_zip64=True) as member,
    ):
        member.write(head.getvalue() + bytes(1 << 20))
    with pytest.raises(RefusedFileError) as refusal:
        readers.read(tmp_path / "a.npz")
    assert refusal.value.fault in ("file", "large")
    write_points(tmp_path / "b.ply", POINTS)
    assert len(readers.read(tmp_path / "b.ply").points) == 50


def test_no_free_process_is_a_matter_of_time(tmp_path):
    write_points(tmp_path / "a.ply", POINTS)
    with pytest.raises(RefusedFileError, match=r"was not read within 0\.05 s") as refusal:
        Readers(0, 1000).read(tmp_path / "a.ply", seconds=0.05)
    assert refusal.value.fault == "slow"


def test_the_process_of_readers_does_without_torch(tmp_path):
    write_points(tmp_path / "a.ply", POINTS)
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')")
    one = Readers(1, 1000)
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(str(tmp_path))
        assert len(one.read(tmp_path / "a.ply").points) == 50
    one.close()
