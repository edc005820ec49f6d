import csv

import pytest

from pcl_clora.report import curve as curves
from pcl_clora.report import write_report
from tests.support.report_cases import EVENTS


def test_the_page_says_what_was_reached_how_and_with_what(write_run):
    text = write_report(write_run("a")).read_text()
    for expected in (
        "# a",
        "Overall accuracy **50.00 %**",
        "Epoch 2: the last one",
        "honest, last epoch",
        "scale_shift",
        "| parameters, adapter | 300 |",
        "| adapter file | 2.0 KiB |",
        "GMACs, papers' convention",
        "torch 2",
        "pcl-clora eval --run",
    ):
        assert expected in text


def test_the_page_says_what_votes_cost(write_run):
    changes = {
        "protocol": {"name": "honest", "select": "last", "votes": 4, "val_fraction": 0.0},
        "evaluation": {"passes_per_cloud": 4, "seconds": 2.5},
    }
    text = write_report(write_run("a", result_changes=changes)).read_text()
    assert "| votes: forward passes of a test cloud | 4 |" in text
    assert "| GMACs executed, all votes |" in text
    assert "| time of the evaluation on test | 2.5 s |" in text


def test_classes_come_hardest_first_and_absent_ones_are_left_out(write_run):
    text = write_report(write_run("a")).read_text()
    places = [text.index(f"| {name} |") for name in ("chair", "sofa", "table", "bed")]
    assert places == sorted(places)
    assert "| desk |" not in text.split("Most frequent")[0]


def test_confusions_are_the_largest_cells_off_the_diagonal(write_run):
    text = write_report(write_run("a")).read_text().split("Most frequent confusions")[1]
    assert "| chair | bed | 3 |" in text
    assert "| bed | bed |" not in text


def test_the_curve_has_one_row_an_epoch(write_run):
    folder = write_run("a")
    write_report(folder)
    with (folder / "curve.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["epoch"], row["train_oa"], row["validation_oa"], row["test_oa"]) for row in rows] == [
        ("1", "0.25", "0.4", ""),
        ("2", "0.75", "", "0.5"),
    ]


def test_the_picture_is_drawn_where_matplotlib_is_installed(write_run):
    pytest.importorskip("matplotlib")
    folder = write_run("a")
    assert "![loss and accuracy" in write_report(folder).read_text()
    assert (folder / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_page_says_how_to_get_a_picture(write_run, monkeypatch):
    monkeypatch.setattr(curves, "find_spec", lambda name: None)
    folder = write_run("a")
    assert "pip install matplotlib" in write_report(folder).read_text()
    assert not (folder / "curve.png").exists()


def test_a_long_curve_is_thinned_in_the_page_but_not_in_the_file(write_run):
    import json

    folder = write_run("a")
    events = [{**EVENTS[1], "epoch": epoch} for epoch in range(301)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    page = write_report(folder).read_text().split("## Learning curve")[1]
    assert sum(line.startswith("| ") for line in page.splitlines()) <= 2 + 20 + 1
    assert "| 301 |" in page
    assert len((folder / "curve.csv").read_text().splitlines()) == 302


def test_a_run_without_metrics_still_has_its_page(write_run):
    folder = write_run("a")
    (folder / "metrics.jsonl").unlink()
    assert "Overall accuracy" in write_report(folder).read_text()
