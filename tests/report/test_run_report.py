import csv
import shlex

import pytest

from pcl_clora.config import parse_overrides
from pcl_clora.report import ReportError, pictures, write_report
from pcl_clora.report import curve as curves
from tests.support.report_cases import EVENTS


def test_the_page_says_what_was_reached_how_and_with_what(write_run):
    text = write_report(write_run("a")).read_text()
    for expected in (
        "# a",
        "Overall accuracy **50.00 %**",
        "Epoch 2: the last one",
        "honest, last epoch",
        "scale_shift",
        "| precision | float32 |",
        "| parameters, adapter | 300 |",
        "| adapter file | 2.0 KiB |",
        "GMACs, papers' convention",
        "torch 2",
        "pcl-clora eval --run",
    ):
        assert expected in text


def test_the_page_says_what_votes_cost(write_run):
    spent = {"evaluation": {"passes_per_cloud": 4, "seconds": 2.5}}
    run = write_run("a", changes={"protocol": {"votes": 4}}, result_changes=spent)
    text = write_report(run).read_text()
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


def test_names_that_the_font_lacks_are_one_line_and_no_warning_of_matplotlib(tmp_path, caplog, recwarn):
    pytest.importorskip("matplotlib")
    names = ["\N{CJK UNIFIED IDEOGRAPH-98DB}", "chair"]
    assert pictures.plot_confusion([[3, 1], [0, 2]], names, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert [record.message for record in caplog.records] == [
        f"{tmp_path / 'a.png'}: the font of pictures lacks letters of names; tables and pages show them."
    ]
    assert not recwarn.list


def test_without_matplotlib_the_page_says_how_to_get_a_picture(write_run, monkeypatch):
    monkeypatch.setattr(pictures, "find_spec", lambda name: None)
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


HOSTILE = ["<b>ball</b>", "a\n# heading", "x|y", "[x](javascript:alert(1))", "\x1b[31m\u202e"]


def test_names_of_classes_are_text_on_the_page(write_run):
    metrics = {
        "oa": 0.5,
        "macc": 0.4,
        "loss": 1.25,
        "per_class": dict.fromkeys(HOSTILE, 0.5),
        "confusion": [[0, 1, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 0, 1, 0], [0, 0, 0, 0, 1], [1, 0, 0, 0, 0]],
    }
    text = write_report(write_run("a", result_changes={"metrics": metrics})).read_text()
    assert "<" not in text
    assert "# heading" not in text.splitlines()
    assert "| x\\|y |" in text
    assert "[x](" not in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    assert "\\\\x1b\\[31m\\\\u202e" in text


@pytest.mark.parametrize("name", ["a;touch x", "$(touch x)", "a b", "it's", "a: b", "`x`"])
def test_the_command_to_repeat_a_run_gives_the_shell_one_word(write_run, name):
    run = write_run("a", changes={"name": name})
    lines = write_report(run).read_text().splitlines()
    words = shlex.split(next(line for line in lines if line.startswith("pcl-clora train")))
    assert words[:3] == ["pcl-clora", "train", "--config"]
    assert parse_overrides(words[4:]) == {"name": f"{name}-again"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("[1]", "of a list"),
        ("null", "expected an object"),
        ("{", "not complete json"),
        ("{}", "kind is None"),
        ('{"kind": "eval"}', "epoch is missing"),
        ('{"kind": "eval", "epoch": "1", "loss": 1.0, "oa": 0.5}', "epoch is '1'"),
        ('{"kind": "eval", "epoch": 1, "loss": 1.0}', "oa is missing"),
        ('{"kind": "eval", "epoch": -1, "loss": 1.0, "oa": 0.5}', "epoch is -1"),
        ("[" * 100_000, "nested too deeply|not complete json"),
        ("\xff\xfe", "not complete json"),
    ],
)
def test_a_damaged_line_of_the_metrics_is_named(write_run, line, message):
    run = write_run("a")
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(line.encode("latin-1") + b"\n")
    with pytest.raises(ReportError, match=message) as caught:
        write_report(run)
    assert f"metrics.jsonl, line {len(EVENTS) + 1}" in str(caught.value)


def test_a_line_that_is_still_being_written_is_left_out(write_run):
    run = write_run("a")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "ev')
    assert len(curves.read_curve(run / "metrics.jsonl")) == 2
