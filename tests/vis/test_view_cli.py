import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from pcl_clora.cli import app
from pcl_clora.engine import RunFolder
from pcl_clora.errors import UserValueError
from pcl_clora.io import load_tensors, write_points
from pcl_clora.report import write_report
from tests.support.vis_cases import page_data

ROOT = Path(__file__).resolve().parents[2]


def call(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def test_view_shows_a_file_as_page_picture_and_ply(tmp_path):
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(50, 3)))
    np.save(tmp_path / "l.npy", np.arange(50) % 4)

    result = call("view", tmp_path / "a.npy", "--labels", tmp_path / "l.npy", "--out", tmp_path / "p.html",
                  "--png", tmp_path / "p.png", "--ply", tmp_path / "p.ply")  # fmt: skip

    assert result.exit_code == 0
    assert (
        page_data((tmp_path / "p.html").read_text(encoding="utf-8"))["items"][0]["panels"][0]["title"]
        == "truth"
    )
    assert (tmp_path / "p.png").stat().st_size > 1000
    assert (tmp_path / "p.ply").is_file()


@pytest.mark.parametrize("option", ["--ply", "--png", "--out"])
def test_what_is_read_is_not_written_over(option, tmp_path):
    ending = {"--ply": "ply", "--png": "png", "--out": "html"}[option]
    file, other = tmp_path / "a.ply", tmp_path / f"b.{ending}"
    write_points(file, np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32))
    other.hardlink_to(file)
    before = file.read_bytes()
    for out in {file, other, tmp_path / "." / "a.ply"} if option == "--ply" else {other}:
        with pytest.raises(UserValueError, match="over the input"):
            call("view", file, option, out)
    assert file.read_bytes() == before
    assert not (tmp_path / "page.html").exists()


def test_the_files_of_a_run_are_not_written_over(segmentation_run, tmp_path):
    page = tmp_path / "page.html"
    page.symlink_to(segmentation_run / "result.json")
    with pytest.raises(UserValueError, match="over the input"):
        call("view", "--run", segmentation_run, "--out", page)


def test_a_run_without_files_is_a_gallery_sorted_by_worst_iou(segmentation_run, tmp_path, monkeypatch):
    monkeypatch.setattr(
        sys, "argv", ["visualize_seg.py", "--run", str(segmentation_run), "--out", str(tmp_path / "g.html")]
    )
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "tools" / "visualize_seg.py"), run_name="__main__")

    assert stop.value.code == 0
    data = page_data((tmp_path / "g.html").read_text(encoding="utf-8"))
    scores = [item["score"] for item in data["items"]]
    assert data["gallery"]
    assert len(scores) == 6
    assert scores == sorted(scores)


def test_predict_and_view_work_together(segmentation_run, tmp_path):
    np.savetxt(tmp_path / "scan.txt", np.random.default_rng(0).normal(size=(90, 3)))

    said = call(
        "predict", segmentation_run, tmp_path / "scan.txt", "--category", "mug", "--out", tmp_path, "--json"
    )
    shown = call("view", tmp_path / "scan.npz", "--out", tmp_path / "p.html")

    assert json.loads(said.stdout)[str(tmp_path / "scan.txt")]["points"] == 90
    assert shown.exit_code == 0
    panels = page_data((tmp_path / "p.html").read_text(encoding="utf-8"))["items"][0]["panels"]
    assert [panel["title"] for panel in panels] == ["prediction", "confidence"]


def test_a_classification_run_shows_its_class_and_the_attention_of_the_class_token(
    classification_run, tmp_path
):
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(90, 3)))

    call("view", tmp_path / "a.npy", "--run", classification_run, "--out", tmp_path / "p.html")

    panels = page_data((tmp_path / "p.html").read_text(encoding="utf-8"))["items"][0]["panels"]
    assert [panel["title"] for panel in panels] == ["patches", "attention of the class token"]
    assert panels[0]["note"].split(",")[0] in ("chair", "sofa", "mug")


def test_predict_classifies_files(classification_run, tmp_path):
    np.save(tmp_path / "a.npy", np.random.default_rng(0).normal(size=(90, 3)))

    result = call("predict", classification_run, tmp_path / "a.npy", "--out", tmp_path / "out")

    assert result.exit_code == 0
    assert json.loads((tmp_path / "out" / "a.json").read_text())["label"] in ("chair", "sofa", "mug")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "There is nothing to show"),
        (["a.npy", "b.npy", "--labels", "l.npy"], "exactly one FILE"),
        (["--run", "RUN", "--png", "a.png"], "choose clouds with --index"),
        (["--run", "RUN", "--index", "one"], "expected numbers such as 3"),
        (["a.npy", "--index", "3"], "leave it or FILE out"),
        (["--run", "RUN", "--run", "RUN", "--index", "1"], "the same name"),
        (["a.npy", "--out", "a.pdf"], r"a page ends in \.html"),
        (["--run", "RUN", "--label-column", "3"], "belongs to a FILE"),
    ],
)
def test_view_refuses_what_it_cannot_do(segmentation_run, arguments, message):
    given = [str(segmentation_run) if word == "RUN" else word for word in arguments]
    with pytest.raises(ValueError, match=message):
        call("view", *given)


def test_the_report_of_a_segmentation_shows_its_parts(segmentation_run):
    pytest.importorskip("matplotlib")

    text = write_report(segmentation_run).read_text(encoding="utf-8")

    assert "![IoU of every part](per_part.png)" in text
    assert (segmentation_run / "per_part.png").is_file()
    assert (segmentation_run / "per_category.png").is_file()
    assert "![confusion matrix](confusion.png)" in text
    assert "| true | said | points |" in text
    assert "![reliability](reliability.png)" in text
    assert "of the points of the test set" in text


def test_the_report_of_a_classification_shows_its_confusions(classification_run):
    pytest.importorskip("matplotlib")

    text = write_report(classification_run).read_text(encoding="utf-8")

    assert "![confusion matrix](confusion.png)" in text
    assert (classification_run / "confusion.png").is_file()
    assert (classification_run / "per_class.png").is_file()
    assert (classification_run / "reliability.png").is_file()
    assert "of the clouds of the test set" in text


@pytest.mark.parametrize("kind", ["classification_run", "segmentation_run"])
def test_the_result_says_how_true_confidences_are_and_the_adapter_file_stays_small(kind, request):
    folder = request.getfixturevalue(kind)
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))

    reliability = result["metrics"]["reliability"]
    expected = result["data"]["num_test"] * (1 if kind == "classification_run" else 48)
    assert sum(each["count"] for each in reliability["bins"]) == expected
    assert len(reliability["bins"]) == 15
    assert sum(map(sum, result["metrics"]["confusion"])) == expected
    assert not load_tensors(RunFolder(folder).chosen)[1]["metrics"].keys() & {"confusion", "reliability"}
