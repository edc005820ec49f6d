"""`pcl-clora predict` into a table: any number of files, one row each, whatever happens."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
from typer.testing import CliRunner

from pcl_clora.cli import app
from pcl_clora.engine import RunFolder
from pcl_clora.errors import UserValueError
from pcl_clora.io import DataError, write_points
from pcl_clora.io.formats import WRITE_SUFFIXES
from pcl_clora.predict import COLUMNS, Predictor, Row, find_clouds, predict_files, read_table, write_table

ROOT = Path(__file__).resolve().parents[2]


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in ("predict", *arguments)])


@pytest.fixture
def scans(tmp_path):
    """A folder of clouds of several kinds, some of which cannot be read."""
    folder = tmp_path / "scans"
    (folder / "more").mkdir(parents=True)
    points = np.random.default_rng(0).normal(size=(7, 60, 3)).astype(np.float32)
    np.save(folder / "a.npy", points[0])
    np.savetxt(folder / "b.xyz", points[1])
    np.save(folder / "more" / "c.npy", points[2])
    with h5py.File(folder / "rows.h5", "w") as file:
        file["data"] = points[3:6]
    (folder / "broken.npy").write_bytes(b"torn")
    (folder / "one.xyz").write_text("1 2 3\n")
    (folder / "notes.md").write_text("not a cloud")
    (folder / "README.txt").write_text("not a cloud")
    (folder / ".hidden.npy").write_bytes(b"")
    return folder


FILES = ["a.npy", "b.xyz", "broken.npy", "more/c.npy", "one.xyz", "rows.h5#0", "rows.h5#1", "rows.h5#2"]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_a_folder_gives_one_row_a_cloud_in_every_kind_of_table(classification_run, scans, tmp_path, ending):
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    out = tmp_path / f"out.{ending}"

    found = call(scans, "--run", classification_run, "--out", out, "--topk", 2)

    assert found.exit_code == 0, found.output
    rows = read_table(out)
    assert [row.file for row in rows] == [str(scans / name) for name in FILES]
    assert [row.status == "error" for row in rows] == [name == "broken.npy" for name in FILES]
    assert "broken.npy" in rows[2].error
    expected = Predictor(classification_run)(scans / "a.npy")
    assert rows[0].label == expected.name
    assert rows[0].confidence == pytest.approx(float(expected.confidence), abs=1e-5)
    assert [name for name, _ in rows[0].top] == [name for name, _ in expected.best(2)]
    assert (rows[0].points, rows[0].model, rows[0].version) == (60, classification_run.name, 1)
    assert 0 < rows[0].seconds < 60
    assert "all points coincide" in rows[4].warnings[0]
    assert "3 files are left out" in found.stderr
    assert "README.txt is a text for people" in found.stderr
    assert "1 of 8 files could not be predicted" in found.stderr
    assert not out.with_name(out.name + ".part").exists()


def test_the_columns_are_those_that_are_documented(tmp_path):
    write_table(tmp_path / "a.csv", [Row("a.ply", "m", "chair", 0.5, top=(("chair", 0.5),), warnings=("w",))])

    with (tmp_path / "a.csv").open() as file:
        cells = next(csv.DictReader(file))
    page = (ROOT / "docs" / "prediction.md").read_text()
    assert tuple(cells) == COLUMNS
    assert cells["top"] == '[["chair", 0.5]]'
    listed = [line.split("`")[1] for line in page.splitlines() if line.startswith("| `")]
    assert [name for name in listed if name in COLUMNS] == list(COLUMNS)
    assert f"version {Row('', '').version}" in page


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_odd_names_come_back_as_they_were(tmp_path, ending):
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    rows = [
        Row(
            'a,"b"\n.ply', "mod\u00e8le", "\u30b7", 0.25, "novel", 1.5, (("\u30b7", 0.25),), 7, 0.1, ("x; y",)
        )
    ]
    rows += [Row("b.ply", "m", status="error", error="torn, \nget it again")]

    write_table(tmp_path / f"t.{ending}", rows)

    found = read_table(tmp_path / f"t.{ending}")
    if ending == "csv":  # hidden characters are shown as escapes there
        found[0], found[1] = (
            Row(
                **{
                    **one.__dict__,
                    "file": one.file.replace("\\n", "\n"),
                    "error": one.error.replace("\\n", "\n"),
                }
            )
            for one in found
        )
    assert found == rows


def test_a_formula_stays_text_in_a_spreadsheet(tmp_path):
    write_table(tmp_path / "t.csv", [Row("=cmd|' /C calc'!A0.ply", "m")])

    assert "\n'=cmd" in (tmp_path / "t.csv").read_text()


@pytest.mark.parametrize("spoil", ["torn", "{}", '{"version": 2}'])
def test_something_else_is_no_table(tmp_path, spoil):
    (tmp_path / "t.jsonl").write_text(spoil)

    with pytest.raises(DataError, match=r"t\.jsonl"):
        read_table(tmp_path / "t.jsonl")


def test_strict_turns_a_failed_file_into_an_exit_code(classification_run, scans, tmp_path):
    found = call(scans / "broken.npy", "--run", classification_run, "--out", tmp_path / "o.csv", "--strict")

    assert found.exit_code == 1
    assert read_table(tmp_path / "o.csv")[0].status == "error"


def test_patterns_rows_and_repeated_files(scans):
    found = find_clouds([scans / "*.npy", f"{scans}/rows.h5#1", scans / "a.npy", scans / "gone.ply"])

    names = [os.path.relpath(file, scans) for file in found.files]
    assert names == ["a.npy", "broken.npy", "rows.h5#1", "gone.ply"]
    assert found.left_out == ((str(scans / "a.npy"), "is given twice"),)


@pytest.mark.parametrize(
    ("paths", "message"),
    [(["*.none"], "no file fits this pattern"), (["empty"], "no point files there; known endings")],
)
def test_nothing_to_predict_is_an_error(tmp_path, paths, message):
    (tmp_path / "empty").mkdir()

    with pytest.raises(UserValueError, match=message):
        find_clouds([tmp_path / path for path in paths])


def test_a_decision_needs_the_smallest_confidence(classification_run, scans, tmp_path):
    call(
        scans / "a.npy", "--run", classification_run, "--out", tmp_path / "o.jsonl", "--min-confidence", 0.999
    )

    (row,) = read_table(tmp_path / "o.jsonl")
    assert (row.status, row.label != "") == ("undecided", True)


def test_resume_predicts_only_what_is_missing(classification_run, scans, tmp_path, monkeypatch):
    out = tmp_path / "o.csv"
    whole = call(scans, "--run", classification_run, "--out", out)
    before = read_table(out)
    write_table(out, before[:3])
    read = []
    from pcl_clora.predict import stream

    original = stream.read_whole
    monkeypatch.setattr(stream, "read_whole", lambda file: (read.append(file), original(file))[1])

    again = call(scans, "--run", classification_run, "--out", out, "--resume")

    assert (whole.exit_code, again.exit_code) == (0, 0)
    assert next(Path(file).name for file in read) == "broken.npy"  # what failed is tried again
    assert not {str(scans / "a.npy"), str(scans / "b.xyz")} & set(read)
    once_more = call(scans / "a.npy", "--run", classification_run, "--out", out, "--resume")
    assert once_more.exit_code == 0
    assert {row.key: row.label for row in read_table(out)} == {row.key: row.label for row in before}


def test_a_killed_prediction_goes_on_with_what_it_had(classification_run, tmp_path):
    folder, out = tmp_path / "many", tmp_path / "o.jsonl"
    folder.mkdir()
    for number in range(40):
        np.save(folder / f"{number:03d}.npy", np.random.default_rng(number).normal(size=(60, 3)))
    part = out.with_name("o.jsonl.part")
    code = (
        "import time\nfrom pcl_clora.predict import stream\nfrom pcl_clora.cli import main\n"
        "read = stream.read_whole\nstream.read_whole = lambda file: (time.sleep(0.05), read(file))[1]\n"
        f"main(['predict', {str(folder)!r}, '--run', {str(classification_run)!r}, '--out', {str(out)!r}, "
        "'--batch', '2'])"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (not part.exists() or part.read_bytes().count(b"\n") < 5):
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.wait()
    saved = part.read_bytes().count(b"\n") - 1
    assert 4 <= saved < 40
    with part.open("ab") as file:
        file.write(b'{"file": "half a li')

    refused = call(folder, "--run", classification_run, "--out", out)
    again = call(folder, "--run", classification_run, "--out", out, "--resume")

    assert "go on with it by --resume" in str(refused.exception)
    assert again.exit_code == 0, again.output
    rows = read_table(out)
    assert [Path(row.file).name for row in rows] == [f"{number:03d}.npy" for number in range(40)]
    assert not part.exists()


def test_rows_of_another_model_are_not_mixed_in(classification_run, scans, tmp_path):
    out = tmp_path / "o.csv"
    (tmp_path / "o.csv.part").write_text(json.dumps({"version": 1, "models": {"other": "0"}}) + "\n")

    found = call(scans, "--run", classification_run, "--out", out, "--resume")

    assert "holds rows of other models (other)" in str(found.exception)
    (tmp_path / "o.csv.part").unlink()
    assert call(scans / "a.npy", "--run", classification_run, "--out", out).exit_code == 0
    finished = out.read_text()
    (tmp_path / "b.safetensors").write_bytes(RunFolder(classification_run).chosen.read_bytes())

    found = call(scans / "a.npy", "--adapter", tmp_path / "b.safetensors", "--out", out, "--resume")

    assert f"o.csv holds rows of other models ({classification_run.name})" in str(found.exception)
    assert out.read_text() == finished
    assert not (tmp_path / "o.csv.part").exists()


def test_several_models_give_a_row_each(classification_run, scans, tmp_path):
    second = tmp_path / "second.safetensors"
    second.write_bytes(RunFolder(classification_run).chosen.read_bytes())
    models = ["--run", classification_run, "--adapter", second]

    found = call(scans / "a.npy", *models, "--out", tmp_path / "o.csv")
    folder = call(scans / "a.npy", *models, "--out", tmp_path / "folder", "--json")

    assert found.exit_code == 0, found.output
    rows = read_table(tmp_path / "o.csv")
    assert [row.model for row in rows] == [classification_run.name, "second"]
    assert rows[0].label == rows[1].label
    names = {classification_run.name, "second"}
    assert set(json.loads(folder.stdout)[str(scans / "a.npy")]) == names
    assert {file.parent.name for file in (tmp_path / "folder").rglob("*.json")} == names


@pytest.mark.parametrize("kind", ["ply", "npz", "las"])
def test_labels_of_points_stand_beside_the_table(segmentation_run, scans, tmp_path, kind):
    from pcl_clora.io import read_points

    if kind == "las":
        pytest.importorskip("laspy")

    found = call(
        *(scans / "a.npy", "--run", segmentation_run, "--category", "mug", "--out", tmp_path / "o.csv"),
        *("--labels", tmp_path / "labels", "--labels-as", kind),
    )

    assert found.exit_code == 0, found.output
    (row,) = read_table(tmp_path / "o.csv")
    labelled = read_points(tmp_path / "labels" / f"a.{kind}")
    assert row.label == "mug"
    found_labels = labelled.fields["prediction" if kind == "npz" else "labels"]
    assert row.top[0][1] == pytest.approx(np.bincount(found_labels).max() / 60)
    assert labelled.fields["confidence"].shape == (60,)
    assert sorted(file.name for file in (tmp_path / "labels").iterdir()) == ["a.json", f"a.{kind}"]


def test_results_in_a_folder_are_gone_on_with_too(classification_run, scans, tmp_path):
    out = tmp_path / "out"
    call(scans, "--run", classification_run, "--out", out)
    before = {file: file.stat().st_mtime_ns for file in out.iterdir()}
    (out / "b.json").write_text("{}")
    (out / "b.json").unlink()

    found = call(scans, "--run", classification_run, "--out", out, "--resume")

    assert found.exit_code == 1, found.output  # broken.npy is among them
    after = {file: file.stat().st_mtime_ns for file in out.iterdir()}
    assert [file.name for file in after if after[file] != before[file]] == ["b.json"]


@pytest.mark.parametrize(("run", "category"), [("classification_run", ""), ("segmentation_run", "mug")])
def test_pages_show_every_cloud(run, category, request, scans, tmp_path):
    found = call(
        *(scans, "--run", request.getfixturevalue(run), "--category", category),
        *("--out", tmp_path / "o.csv", "--html", tmp_path / "pages"),
    )

    assert found.exit_code == 0, found.output
    text = (tmp_path / "pages" / "index.html").read_text()
    assert all(f"{name.split('/')[-1]}: " in text for name in FILES if name != "broken.npy")
    assert "broken.npy" not in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["a.npy"], "No model is named: give --run FOLDER or --adapter FILE"),
        (["a.npy", "--run", "RUN", "--out", "x.xls"], "a table ends in .csv, .jsonl, .parquet"),
        (["a.npy", "--run", "RUN", "--out", "x.csv", "--labels", "l"], "this model classifies whole clouds"),
        (
            ["a.npy", "--run", "RUN", "--labels-as", "obj"],
            "cannot be written as obj; choose from npz, ply, las",
        ),
        (["a.npy", "--run", "RUN", "--run", "RUN"], "Two models are called"),
        (["RUN"], "is a run; name the point files too"),
        (["a.npy", "--adapter", "a.npy"], "a.npy"),
    ],
)
def test_what_cannot_be_done_is_said_before_anything_is_written(
    classification_run, scans, tmp_path, monkeypatch, options, message
):
    monkeypatch.chdir(tmp_path)
    given = [str(classification_run) if word == "RUN" else word for word in options]
    given = [str(scans / word) if word == "a.npy" else word for word in given]

    found = call(*given)

    assert found.exit_code != 0
    assert message in str(found.exception)
    assert [path.name for path in tmp_path.iterdir()] == ["scans"]


def test_files_are_read_ahead_by_several_threads(classification_run, scans):
    files = find_clouds([scans]).files
    model = Predictor(classification_run)

    alone = list(predict_files(model, files, batch_size=1))
    ahead = list(predict_files(model, files, jobs=3, batch_size=3))

    assert [one.file for one in ahead] == list(files)
    for one, other in zip(ahead, alone, strict=True):
        assert bool(one.error) == bool(other.error)
        for said, expected in zip(one.said, other.said, strict=True):
            np.testing.assert_allclose(said.probability, expected.probability, atol=1e-5)
    with pytest.raises(ValueError, match="give 1 or more"):
        next(predict_files(model, files, jobs=0))


def can_hold_bare_points(suffix):
    from pcl_clora.io.formats import format_of
    from pcl_clora.io.points import not_held

    kind = format_of(f"a{suffix}")
    return kind is not None and kind.write is not None and not not_held(kind, np.zeros((3, 3)), {})


@pytest.mark.parametrize("suffix", [suffix for suffix in WRITE_SUFFIXES if can_hold_bare_points(suffix)])
def test_the_same_shape_gets_the_same_answer_from_every_format(classification_run, tmp_path, suffix):
    for package in {".las": ("laspy",), ".laz": ("laspy", "lazrs"), ".e57": ("pye57",)}.get(suffix, ()):
        pytest.importorskip(package)
    points = np.random.default_rng(0).normal(size=(300, 3)).astype(np.float32)
    model = Predictor(classification_run)
    expected = model(points, name=f"a{suffix}")

    write_points(tmp_path / f"a{suffix}", points)
    found = call(tmp_path / f"a{suffix}", "--run", classification_run, "--out", tmp_path / "o.jsonl")

    (row,) = read_table(tmp_path / "o.jsonl")
    assert found.exit_code == 0, found.output
    assert (row.label, row.points) == (expected.name, 300)
    assert row.confidence == pytest.approx(float(expected.confidence), abs=0.01)  # las keeps millimetres
