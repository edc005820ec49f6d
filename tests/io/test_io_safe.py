import hashlib
import pickle

import pytest
import torch

from pcl_clora.io import DataError, atomic_write, load_tensors, save_tensors, sha256_file


def test_a_written_file_is_there_and_nothing_else(tmp_path):
    atomic_write(tmp_path / "new" / "a.txt", lambda aside: aside.write_text("x"))
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["a.txt"]
    assert (tmp_path / "new" / "a.txt").read_text() == "x"


def test_the_file_is_written_aside_in_the_same_folder_with_the_same_ending(tmp_path):
    seen = []

    def write(aside):
        seen.append(aside)
        assert not (tmp_path / "a.npy").exists()
        aside.write_text("x")

    atomic_write(tmp_path / "a.npy", write)
    assert seen[0].parent == tmp_path
    assert seen[0].suffix == ".npy"


@pytest.mark.parametrize("stop", [ValueError, KeyboardInterrupt])
def test_an_interrupted_writer_leaves_the_old_file(tmp_path, stop):
    (tmp_path / "a.txt").write_text("old")

    def write(aside):
        aside.write_text("half")
        raise stop

    with pytest.raises(stop):
        atomic_write(tmp_path / "a.txt", write)
    assert (tmp_path / "a.txt").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_a_written_file_has_the_usual_permissions(tmp_path):
    (tmp_path / "usual").write_text("x")
    atomic_write(tmp_path / "ours", lambda aside: aside.write_text("x"))
    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, (1 << 20) + 1])
def test_digests_are_those_of_the_whole_file(tmp_path, size):
    content = bytes(index % 251 for index in range(size))
    (tmp_path / "a").write_bytes(content)
    assert sha256_file(tmp_path / "a") == hashlib.sha256(content).hexdigest()


def test_tensors_and_header_come_back(tmp_path, generator):
    tensors = {"a": torch.randn(3, 4, generator=generator).T, "b": torch.arange(3), "c": torch.ones(2).half()}
    header = {"version": 1, "classes": ["ant", "bee"], "nested": {"x": None}}
    save_tensors(tmp_path / "a.safetensors", tensors, header)
    found, found_header = load_tensors(tmp_path / "a.safetensors")
    assert found_header == header
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_a_file_without_a_header_is_read(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.ones(1)}, tmp_path / "a.safetensors")
    assert load_tensors(tmp_path / "a.safetensors")[1] == {}


def test_trained_parameters_are_written_as_plain_tensors(tmp_path):
    save_tensors(tmp_path / "a.safetensors", {"w": torch.nn.Parameter(torch.ones(2))})
    assert not load_tensors(tmp_path / "a.safetensors")[0]["w"].requires_grad


@pytest.mark.parametrize("kind", ["missing", "cut", "pickle", "empty"])
def test_a_file_that_is_not_whole_is_refused(tmp_path, kind):
    file = tmp_path / "a.safetensors"
    if kind == "cut":
        save_tensors(file, {"a": torch.ones(100)})
        file.write_bytes(file.read_bytes()[:-7])
    elif kind != "missing":
        file.write_bytes(pickle.dumps({"a": 1}) if kind == "pickle" else b"")
    with pytest.raises(DataError, match=r"a\.safetensors"):
        load_tensors(file)


def test_an_error_survives_a_pickle():
    error = DataError("f", "is torn", "get it again")
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error) == "f: is torn; get it again."
    assert (again.file, again.problem, again.remedy) == ("f", "is torn", "get it again")
