import json
import re

import numpy as np
import pytest

from pcl_clora.errors import PclCloraError
from pcl_clora.io import read_points, write_points

POINTS = np.random.default_rng(0).random((60, 3)).astype(np.float32)


def test_a_file_becomes_another_and_the_command_says_what_it_holds(invoke, tmp_path):
    write_points(tmp_path / "a.npz", POINTS, {"labels": np.arange(60)})
    result = invoke("convert", tmp_path / "a.npz", tmp_path / "b.ply")
    assert result.exit_code == 0
    assert "60 points, labels" in " ".join(result.stdout.split())  # paths decide where lines break
    assert read_points(tmp_path / "b.ply").fields["labels"].tolist() == list(range(60))
    found = json.loads(invoke("convert", tmp_path / "b.ply", tmp_path / "c.obj", "--json").stdout)
    assert found["num_points"] == 60
    assert found["notes"] == ["left out, .obj has no room for it: labels"]


def test_a_folder_becomes_a_folder_and_a_broken_file_stops_nothing(invoke, tmp_path):
    write_points(tmp_path / "in" / "x" / "a.xyz", POINTS)
    write_points(tmp_path / "in" / "y" / "b.npy", POINTS)
    (tmp_path / "in" / "y" / "broken.ply").write_text("ply\n")
    result = invoke("convert", tmp_path / "in", tmp_path / "out", "--to", "ply")
    assert result.exit_code == 1
    assert "is not a complete ply file" in result.stderr
    assert "1 of 3 files could not be converted" in result.stderr
    made = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*.*"))
    assert made == ["x/a.ply", "y/b.ply"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a.npy", "b.dae"), "cannot write '.dae'; known: .npy"),
        (("a.npy", "b.ply", "--up", "w"), "up='w' is no axis"),
        ((".", "out"), "--to is not given: say with it what its files become"),
        ((".", "out", "--to", "foo"), ". is a folder, and --to foo: say with it"),
        (("a.npy", "b.ply", "--to", "las"), "is for folders"),
        (("empty", "out", "--to", "las"), "holds no files of points"),
        ((".", "a.npy", "--to", "las"), "is a file"),
    ],
)
def test_what_cannot_be_done_is_one_message(invoke, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    write_points(tmp_path / "a.npy", POINTS)
    with pytest.raises(PclCloraError, match=re.escape(message)):
        invoke("convert", *arguments)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npy", "empty"]


def test_two_files_that_would_become_one_are_refused(invoke, tmp_path):
    for suffix in (".npy", ".xyz"):
        write_points(tmp_path / "in" / f"a{suffix}", POINTS)
    with pytest.raises(PclCloraError, match="Several files would become"):
        invoke("convert", tmp_path / "in", tmp_path / "out", "--to", "ply")
