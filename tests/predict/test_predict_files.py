"""`pcl-clora predict` on several files: all of them get an answer or a reason, and nothing is lost."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from pcl_clora.cli import app
from pcl_clora.predict import result_names


@pytest.fixture
def cloud(tmp_path):
    def make(name, count=100, seed=0, scale=1.0):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savetxt(file, np.random.default_rng(seed).normal(size=(count, 3)) * scale)
        return file

    return make


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in ("predict", *arguments)])


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["a/1.xyz", "b/1.xyz", "2.xyz"], ["a_1", "b_1", "2"]),
        (["x/a/1.xyz", "y/a/1.xyz"], ["x_a_1", "y_a_1"]),
        (["1.xyz", "1.ply"], ["1_xyz", "1_ply"]),
        (["t.h5#3", "u/t.h5#3"], ["t_row3", "u_t_row3"]),
        (["/tmp/f.pkl#test/3"], ["f_rowtest_3"]),
    ],
)
def test_results_of_files_of_one_name_are_called_by_their_folders(files, expected):
    assert result_names(files) == expected


def test_a_file_given_twice_is_refused():
    with pytest.raises(ValueError, match="given twice"):
        result_names(["a/1.xyz", "a/1.xyz"])
    with pytest.raises(ValueError, match=r"one name: a/1.xyz, a_1.xyz. .*folders of their own"):
        result_names(["a/1.xyz", "b/1.xyz", "a_1.xyz"])


def test_files_of_one_name_do_not_overwrite_one_another(classification_run, cloud, tmp_path):
    first, second, out = cloud("a/1.xyz"), cloud("b/1.xyz", seed=1), tmp_path / "out"

    together = call(classification_run, first, second, "--out", out)

    assert together.exit_code == 0, together.output
    assert sorted(file.name for file in out.iterdir()) == ["a_1.json", "b_1.json"]
    alone = [call(classification_run, file, "--out", tmp_path / "one") for file in (first, second, first)]
    assert [one.exit_code for one in alone] == [0, 1, 0]
    assert "holds the result of" in alone[1].stderr
    assert "a/1.xyz" in json.loads((tmp_path / "one" / "1.json").read_text())["file"]


def test_a_bad_file_does_not_stop_the_others(classification_run, cloud, tmp_path):
    good, bad, last = cloud("1.xyz"), tmp_path / "2.xyz", cloud("3.xyz")
    bad.write_text("")

    found = call(classification_run, good, bad, tmp_path / "4.off", last, "--out", tmp_path / "out")

    assert found.exit_code == 1
    assert call(classification_run, bad, good, "--out", tmp_path / "out.csv").exit_code == 0
    assert found.stdout.count("confidence") == 2
    assert f"error: {bad}" in found.stderr
    assert "4.off" in found.stderr
    assert "2 of 4 files could not be predicted" in found.stderr
    assert (tmp_path / "out" / "3.json").is_file()


def test_names_of_files_do_nothing_to_a_terminal(classification_run, cloud, tmp_path):
    good, bad = cloud("a\n# b\x1bc\u202e.xyz"), tmp_path / "no\n\x1bc\u202e.xyz"

    found = call(classification_run, good, bad, "--out", tmp_path / "out")

    assert r"a\n# b\x1bc\u202e.xyz: " in found.stdout
    assert rf"error: {tmp_path}/no\n\x1bc\u202e.xyz: there is no such file" in found.stderr
    assert not {"\x1b", "\u202e"} & set(found.stdout + found.stderr)


def test_json_says_which_file_is_bad(classification_run, cloud, tmp_path):
    good, bad = cloud("1.xyz"), cloud("2.xyz", count=1, scale=np.nan)

    found = call(classification_run, good, bad, "--out", tmp_path / "out", "--json")

    content = json.loads(found.stdout)
    assert found.exit_code == 1
    assert set(content[str(bad)]) == {"error"}
    assert content[str(good)]["warnings"] == []


def test_an_output_that_is_an_input_is_refused_before_anything_is_written(segmentation_run, tmp_path):
    points = np.random.default_rng(0).normal(size=(60, 3))
    np.savez(tmp_path / "y.npz", points=points)
    before = (tmp_path / "y.npz").read_bytes()

    found = call(segmentation_run, tmp_path / "y.npz", "--category", "mug", "--out", tmp_path)

    assert found.exit_code != 0
    assert "would be written over the input" in str(found.exception)
    assert (tmp_path / "y.npz").read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["y.npz"]


def test_something_else_of_that_name_is_not_overwritten(classification_run, cloud, tmp_path):
    (tmp_path / "1.json").write_text('{"mine": 1}')

    found = call(classification_run, cloud("1.xyz"), "--out", tmp_path)

    assert found.exit_code == 1
    assert "holds something else" in found.stderr
    assert json.loads((tmp_path / "1.json").read_text()) == {"mine": 1}


@pytest.mark.parametrize(
    ("points", "said"),
    [
        (np.full((100, 3), 0.1), "all points coincide"),
        (np.linspace([1, 2, 3], [2, 5, -1], 300), "all points lie on one line"),
        (np.r_[np.random.default_rng(0).normal(size=(255, 3)) * 1e-9, [[7, 0, 0]]], "99.6 % of the points"),
        (np.random.default_rng(0).normal(size=(7, 3)), "has 7 points, the model sees 48"),
    ],
)
def test_degenerate_clouds_get_a_warning_beside_the_answer(classification_run, tmp_path, points, said):
    np.savetxt(tmp_path / "a.xyz", points)

    found = call(classification_run, tmp_path / "a.xyz", "--out", tmp_path / "out")

    assert found.exit_code == 0, found.output
    assert "confidence" in found.stdout
    assert f"warning: {said}" in found.stdout or said in found.stdout
    assert said in json.loads((tmp_path / "out" / "a.json").read_text())["warnings"][0]


def test_up_turns_the_cloud(classification_run, cloud, tmp_path):
    points = np.random.default_rng(0).normal(size=(48, 3)) * [1, 5, 2]
    np.savetxt(tmp_path / "y.xyz", points)
    np.savetxt(tmp_path / "z.xyz", points[:, [0, 2, 1]] * [1, -1, 1])

    straight = call(classification_run, tmp_path / "y.xyz", "--out", tmp_path / "out", "--json")
    turned = call(classification_run, tmp_path / "z.xyz", "--out", tmp_path / "out", "--up", "z", "--json")
    lying = call(classification_run, tmp_path / "z.xyz", "--out", tmp_path / "out", "--json")

    said = [next(iter(json.loads(one.stdout).values()))["best"] for one in (straight, turned, lying)]
    assert said[0] == said[1]
    assert said[0] != said[2]
    wrong = call(classification_run, tmp_path / "z.xyz", "--up", "w")
    assert "use one of x, y, z, -x, -y, -z" in str(wrong.exception)
