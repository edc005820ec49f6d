import numpy as np
import pytest

from pcl_clora.data.readers.cache import cached_array, fingerprint, user_cache_folder


def fill_with(value):
    def fill(array):
        assert not array.any()
        array[:] = value

    return fill


def refuse(array):
    raise AssertionError("the array is made although it is there")


def test_a_cached_array_is_made_once_and_read_only(tmp_path):
    cached_array(tmp_path, "a", "s1", (2, 3), fill_with(4.0))
    array = cached_array(tmp_path, "a", "s1", (2, 3), refuse)
    assert array.dtype == np.float32
    assert (array == 4.0).all()
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1.0


def test_another_state_replaces_the_old_array(tmp_path):
    cached_array(tmp_path, "a", "s1", (2,), fill_with(1.0))
    cached_array(tmp_path, "b", "s1", (2,), fill_with(1.0))
    assert (cached_array(tmp_path, "a", "s2", (2,), fill_with(2.0)) == 2.0).all()
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a-s2.npy", "b-s1.npy"]


def test_an_array_in_use_stays_readable_when_it_is_replaced(tmp_path):
    old = cached_array(tmp_path, "a", "s1", (2,), fill_with(1.0))
    cached_array(tmp_path, "a", "s2", (2,), fill_with(2.0))
    assert (old == 1.0).all()


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x93NUMPY\x01\x00"])
def test_a_file_that_is_no_array_is_made_again(tmp_path, content, caplog):
    (tmp_path / "a-s1.npy").write_bytes(content)
    assert (cached_array(tmp_path, "a", "s1", (2,), fill_with(3.0)) == 3.0).all()
    assert "made again" in caplog.text


def test_an_array_of_another_shape_is_made_again(tmp_path):
    cached_array(tmp_path, "a", "s1", (3,), fill_with(1.0))
    assert cached_array(tmp_path, "a", "s1", (2,), fill_with(1.0)).shape == (2,)


def test_a_failure_leaves_nothing_behind(tmp_path):
    with pytest.raises(AssertionError):
        cached_array(tmp_path, "a", "s1", (2,), refuse)
    assert not list(tmp_path.iterdir())


def test_fingerprints_follow_files_and_settings(tmp_path):
    file, other = tmp_path / "f", tmp_path / "g"
    file.write_text("1")
    other.write_text("1")
    first = fingerprint([file], 1)
    assert fingerprint([file], 1) == first == fingerprint([tmp_path / "." / ".." / tmp_path.name / "f"], 1)
    assert len({first, fingerprint([file], 2), fingerprint([other], 1), fingerprint([file, other], 1)}) == 4
    file.write_text("12")
    assert fingerprint([file], 1) != first


@pytest.mark.parametrize(
    ("platform", "variables", "expected"),
    [
        ("linux", {"PCL_CLORA_CACHE": "/x/y"}, "/x/y"),
        ("linux", {"XDG_CACHE_HOME": "/c"}, "/c/pcl_clora"),
        ("linux", {"HOME": "/home/me"}, "/home/me/.cache/pcl_clora"),
        ("darwin", {"HOME": "/Users/me"}, "/Users/me/Library/Caches/pcl_clora"),
        ("win32", {"LOCALAPPDATA": "/a"}, "/a/pcl_clora"),
    ],
)
def test_the_cache_folder_is_where_the_system_keeps_caches(monkeypatch, platform, variables, expected):
    for name in ("PCL_CLORA_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.platform", platform)
    assert str(user_cache_folder()) == expected
