"""Hdf5 files with groups, links and declared sizes."""

import contextlib
import os

import h5py
import numpy as np
import pytest

from pcl_clora.io import DataError, read_points

CLOUD = np.random.default_rng(0).random((40, 3)).astype(np.float32)


def test_a_data_set_in_a_group_is_named_after_the_file(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as content:
        content["scan/one/points"] = CLOUD
        content["scan/one/label"] = np.arange(40)
        content["many/data"] = np.stack([CLOUD, 2 * CLOUD])
    for part in ("scan/one/points", "scan/one", "/scan/one/points", "scan/one/"):
        found = read_points(f"{tmp_path}/a.h5#{part}")
        assert np.array_equal(found.points, CLOUD)
        assert found.fields["labels"].tolist() == list(range(40))
    assert np.array_equal(read_points(f"{tmp_path}/a.h5#many/data#1", max_points=3).points, 2 * CLOUD[:3])
    assert np.array_equal(read_points(f"{tmp_path}/a.h5#many/data", row=1).points, 2 * CLOUD)
    with pytest.raises(DataError, match=r"the group many \(data\), the group scan \(one\).*a\.h5#many/data"):
        read_points(tmp_path / "a.h5")
    with pytest.raises(DataError, match=r"has no 'scan/two', it holds"):
        read_points(f"{tmp_path}/a.h5#scan/two")
    with pytest.raises(DataError, match=r"2 clouds.*#many/data#0 to .*#many/data#1"):
        read_points(f"{tmp_path}/a.h5#many/data")


@pytest.mark.parametrize("name", ["coord", "Points", "XYZ", "positions"])
def test_points_are_found_under_their_usual_names_in_any_case(tmp_path, name):
    with h5py.File(tmp_path / "a.h5", "w") as content:
        content[name], content["other"] = CLOUD, CLOUD
    assert np.array_equal(read_points(tmp_path / "a.h5").points, CLOUD)


def test_records_are_read_by_their_fields(tmp_path):
    records = np.zeros(40, dtype=[("y", "f4"), ("x", "f4"), ("z", "f4"), ("label", "i4")])
    for at, axis in enumerate("xyz"):
        records[axis] = CLOUD[:, at]
    with h5py.File(tmp_path / "a.h5", "w") as content:
        content["points"] = records
    found = read_points(tmp_path / "a.h5")
    assert np.array_equal(found.points, CLOUD)
    assert set(found.fields) == {"labels"}


def test_soft_links_inside_the_file_are_followed(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as content:
        content["deep/points"] = CLOUD
        content["link"] = h5py.SoftLink("/deep")
        content["deep/again"] = h5py.SoftLink("points")
    assert np.array_equal(read_points(f"{tmp_path}/a.h5#link/again").points, CLOUD)


def secret(tmp_path):
    with h5py.File(tmp_path / "secret.h5", "w") as content:
        content["points"] = CLOUD
    return str(tmp_path / "secret.h5")


def external_link(tmp_path, content):
    content["points"] = h5py.ExternalLink(secret(tmp_path), "/points")


def soft_to_external(tmp_path, content):
    content["out"] = h5py.ExternalLink(secret(tmp_path), "/")
    content["points"] = h5py.SoftLink("/out/points")


def loop(tmp_path, content):
    content["points"], content["b"] = h5py.SoftLink("/b"), h5py.SoftLink("/points")


def dangling(tmp_path, content):
    content["points"] = h5py.SoftLink("/gone")


def external_storage(tmp_path, content):
    (tmp_path / "secret.bin").write_bytes(CLOUD.tobytes())
    content.create_dataset(
        "points", CLOUD.shape, "f4", external=[(str(tmp_path / "secret.bin"), 0, h5py.h5f.UNLIMITED)]
    )


def virtual(tmp_path, content):
    layout = h5py.VirtualLayout(CLOUD.shape, "f4")
    layout[:] = h5py.VirtualSource(secret(tmp_path), "points", shape=CLOUD.shape)
    content.create_virtual_dataset("points", layout)


def huge(tmp_path, content):
    content.create_dataset("points", (10**10, 3), "f4")


def huge_in_chunks(tmp_path, content):
    content.create_dataset("points", (10**10, 3), "f4", chunks=(1000, 3), compression="gzip")[:40] = CLOUD


def huge_label(tmp_path, content):
    content["points"] = CLOUD
    content.create_dataset("label", (40, 10**9), "f4", chunks=(1, 1000))


def empty(tmp_path, content):
    content["points"] = h5py.Empty("f4")


def text(tmp_path, content):
    content["points"] = np.array([[b"a", b"b", b"c"]])


def variable(tmp_path, content):
    content.create_dataset("points", (4, 3), h5py.vlen_dtype(np.float32))


def scalar(tmp_path, content):
    content["points"] = 1.0


def group_of_the_name(tmp_path, content):
    content.create_group("points")


def transposed(tmp_path, content):
    content["points"] = CLOUD.T


@pytest.mark.parametrize(
    "make",
    [external_link, soft_to_external, loop, dangling, external_storage, virtual, huge, huge_in_chunks,
     huge_label, empty, text, variable, scalar, group_of_the_name, transposed],
)  # fmt: skip
@pytest.mark.parametrize("part", ["", "#points"])
def test_nothing_outside_the_file_and_no_declared_size_is_believed(tmp_path, make, part):
    with h5py.File(tmp_path / "a.h5", "w") as content:
        make(tmp_path, content)
    with pytest.raises(DataError) as caught:
        read_points(f"{tmp_path}/a.h5{part}")
    assert caught.value.file == str(tmp_path / "a.h5")


def test_a_group_that_holds_itself_is_no_endless_search(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as content:
        group = content.create_group("g")
        for name in "abcdefgh":
            group[name] = group
    with pytest.raises(DataError, match="holds the group g"):
        read_points(tmp_path / "a.h5")


@pytest.mark.parametrize("seed", range(8))
def test_broken_bytes_are_an_error_of_ours(tmp_path, seed):
    with h5py.File(tmp_path / "a.h5", "w") as content:
        content["points"] = CLOUD
        content["g/label"] = np.arange(40)
    random, size = np.random.default_rng(seed), os.path.getsize(tmp_path / "a.h5")
    data = bytearray((tmp_path / "a.h5").read_bytes())
    for at in random.integers(0, size - 480, 20):
        data[at] ^= int(random.integers(1, 256))
    (tmp_path / "a.h5").write_bytes(bytes(data))
    with contextlib.suppress(DataError):
        assert read_points(tmp_path / "a.h5").points.shape[1] == 3
