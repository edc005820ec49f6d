import errno
import hashlib
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from pcl_clora.errors import PclCloraError
from pcl_clora.io import (
    DataError,
    FileAccessError,
    atomic_write,
    load_tensors,
    read_json,
    refuse_overwriting_inputs,
    safe,
    save_tensors,
    sha256_file,
    write_json,
    write_points,
    write_text,
)


def test_a_written_file_is_there_and_nothing_else(tmp_path):
    atomic_write(tmp_path / "new" / "a.txt", lambda aside: aside.write_text("x"))
    assert [file.name for file in (tmp_path / "new").iterdir()] == ["a.txt"]
    assert (tmp_path / "new" / "a.txt").read_text() == "x"


def test_the_file_is_written_aside_on_the_same_disk_under_the_same_name(tmp_path):
    seen = []

    def write(aside):
        seen.append(aside)
        assert not (tmp_path / "a.npy").exists()
        aside.write_text("x")

    atomic_write(tmp_path / "a.npy", write)
    assert seen[0].parent.parent == tmp_path
    assert seen[0].name == "a.npy"


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


def test_what_a_killed_writer_left_goes_with_the_next_write(tmp_path):
    killed = subprocess.Popen([sys.executable, "-c", ""])
    killed.wait()
    ours = safe._writer()
    left = tmp_path / f".writing-{ours.partition('-')[0]}-{killed.pid}-0123456789ab"
    busy = tmp_path / f".writing-{ours}-0123456789ab"
    elsewhere = tmp_path / f".writing-00000000-{killed.pid}-0123456789ab"
    for folder in (left, busy, elsewhere):
        folder.mkdir()
        (folder / "a.txt").write_text("half")
    write_text(tmp_path / "b.txt", "whole")
    assert {one.name for one in tmp_path.iterdir()} == {"b.txt", busy.name, elsewhere.name}


def test_a_planted_link_is_replaced_and_what_it_leads_to_stays(tmp_path):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "a.json").symlink_to(tmp_path / "precious")
    for guess in (".a.partial.json", ".a.json", ".a.tmp.json", "a.json.tmp"):
        (tmp_path / guess).symlink_to(tmp_path / "precious")
    write_json(tmp_path / "a.json", {"x": 1})
    assert (tmp_path / "precious").read_text() == "precious"
    assert not (tmp_path / "a.json").is_symlink()
    assert read_json(tmp_path / "a.json") == {"x": 1}


def test_a_link_that_leads_nowhere_is_replaced(tmp_path):
    (tmp_path / "a").symlink_to(tmp_path / "gone")
    write_text(tmp_path / "a", "x")
    assert not (tmp_path / "gone").exists()
    assert (tmp_path / "a").read_text() == "x"


def test_two_writers_and_a_reader_never_see_a_torn_file(tmp_path):
    file, texts = tmp_path / "a.txt", ["a" * 200_000, "b" * 200_000]
    write_text(file, texts[0])
    with ThreadPoolExecutor(2) as pool:
        writes = [pool.submit(write_text, file, texts[number % 2]) for number in range(30)]
        seen = set()
        while not all(one.done() for one in writes):
            seen.add(file.read_text())
    assert [one.result() for one in writes] == [None] * 30
    assert seen <= set(texts)
    assert [one.name for one in tmp_path.iterdir()] == ["a.txt"]


def fails_with(number):
    def write(aside):
        raise OSError(number, os.strerror(number))

    return write


def safetensors_on_a_full_disk(aside):
    aside.unlink()
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def torch_cut_off(aside):
    raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 576 vs 534")


def torch_on_a_full_disk(aside):
    torch.save({"a": torch.ones(9)}, "/dev/full")


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (fails_with(errno.ENOSPC), r"cannot be written \(No space left on device\); free some"),
        (fails_with(errno.EDQUOT), "quota exceeded.*free some"),
        (fails_with(errno.EROFS), "Read-only.*choose another place"),
        (fails_with(errno.EACCES), "Permission denied.*rights"),
        (safetensors_on_a_full_disk, "No space left"),
        (torch_cut_off, "unexpected pos 576 vs 534"),
        (torch_on_a_full_disk, "cannot be written"),
        (lambda aside: Path("/dev/full").write_text("x"), "No space left"),
    ],
)
def test_a_write_that_the_system_refuses_names_the_file_and_leaves_the_old_one(tmp_path, write, message):
    (tmp_path / "a.bin").write_text("old")
    with pytest.raises(PclCloraError, match=message) as caught:
        atomic_write(tmp_path / "a.bin", write)
    assert isinstance(caught.value, OSError)
    assert str(caught.value).startswith(str(tmp_path / "a.bin"))
    assert (tmp_path / "a.bin").read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


DOORS = {
    "text": lambda path: write_text(path, "x"),
    "json": lambda path: write_json(path, [1]),
    "points": lambda path: write_points(path.with_suffix(".csv"), np.zeros((1, 3))),
    "tensors": lambda path: save_tensors(path, {"a": torch.ones(1)}),
}


@pytest.mark.parametrize("door", DOORS)
def test_every_door_says_what_stands_in_the_way(tmp_path, door):
    (tmp_path / "file").touch()
    (tmp_path / "folder.csv").mkdir()
    (tmp_path / "folder.csv" / "kept").touch()
    for place, message in [
        ("file/a.csv", "a file stands where a folder is needed"),
        ("folder.csv", "name a file, not a folder"),
        ("n" * 300 + ".csv", "too long.*shorter"),
    ]:
        with pytest.raises(FileAccessError, match=message):
            DOORS[door](tmp_path / place)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["file", "folder.csv"]


@pytest.mark.parametrize("door", DOORS)
def test_devices_are_not_replaced(tmp_path, door):
    os.mkfifo(tmp_path / "a.csv")
    with pytest.raises(FileAccessError, match="a device or a pipe"):
        DOORS[door](tmp_path / "a.csv")


@pytest.mark.parametrize("read", [sha256_file, read_json, load_tensors])
def test_a_file_that_the_system_does_not_give_is_an_error_for_the_user(tmp_path, read):
    with pytest.raises(DataError, match=r"(?i)no such file"):
        read(tmp_path / "gone")
    with pytest.raises(DataError, match=r"(?i)folder|no such file"):
        read(tmp_path)


def test_an_error_of_access_survives_a_pickle():
    error = FileAccessError("f", "cannot be read", "try again", errno.EIO)
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error) == "f: cannot be read; try again."
    assert (again.errno, again.filename) == (errno.EIO, "f")


@pytest.mark.parametrize("how", ["same", "relative", "link", "hard link", "folder link"])
def test_an_output_that_is_an_input_is_refused_under_every_name(tmp_path, monkeypatch, how):
    monkeypatch.chdir(tmp_path)
    source = tmp_path / "x.h5"
    source.write_text("x")
    output = tmp_path / "y.h5"
    if how == "link":
        output.symlink_to(source)
    elif how == "hard link":
        os.link(source, output)
    elif how == "folder link":
        (tmp_path / "f").symlink_to(tmp_path)
        output = tmp_path / "f" / "x.h5"
    else:
        output = source if how == "same" else Path("./x.h5")
    with pytest.raises(PclCloraError, match=r"would be written over the input .*x\.h5.*another name"):
        refuse_overwriting_inputs([tmp_path / "z", output], ["other", f"{source}#3"])


def test_outputs_beside_the_inputs_are_admitted(tmp_path):
    (tmp_path / "x").write_text("x")
    refuse_overwriting_inputs([tmp_path / "y", tmp_path / "x.txt"], [tmp_path / "x", tmp_path / "gone"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"a": 1', "not complete json"),
        ("[1]", "json of a list, expected an object"),
        ('{"a": ' + "1" * 5000 + "}", "not complete json"),
        (b"\xff\xfe", "not complete json"),
    ],
    ids=["deep", "torn", "list", "huge number", "bytes"],
)
def test_json_that_is_no_object_is_refused(tmp_path, text, message):
    (tmp_path / "a.json").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError, match=message):
        read_json(tmp_path / "a.json")


def test_a_deep_header_is_an_error_and_not_a_recursion(tmp_path):
    save_file({"a": torch.ones(1)}, tmp_path / "a", metadata={"header": "[" * 5000 + "]" * 5000})
    with pytest.raises(DataError, match="nested too deeply"):
        load_tensors(tmp_path / "a")
