"""The benchmark of the page, and the table of docs/visualisation.md that repeats it."""

import json
from pathlib import Path

import pytest

from pcl_clora.bench import page as bench_page
from pcl_clora.compare.summary import report
from pcl_clora.errors import UserValueError
from tests.support.study_cases import made_study

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.browser
def test_a_row_has_size_and_times(tmp_path):
    result = bench_page.bench_page(sizes=(300,), repeats=1)
    (row,) = result["rows"]
    assert row["points"] == 300
    assert 0.01 < row["mib"] < 1
    assert row["write_s"] > 0
    assert (row["frame_ms"] is None) == (result["chromium"] is None)
    if result["chromium"] is not None:
        assert row["frame_ms"] > 0


def test_a_study_without_a_page_is_refused_with_the_command_that_writes_it(tmp_path):
    with pytest.raises(UserValueError, match=r"has no page; write it with `pcl-clora compare table"):
        bench_page.bench_study_page(tmp_path)


def test_a_study_page_needs_a_browser(monkeypatch, tmp_path):
    (tmp_path / "index.html").write_text("")
    monkeypatch.setattr(bench_page.shutil, "which", lambda name: None)
    with pytest.raises(UserValueError, match="install chromium"):
        bench_page.bench_study_page(tmp_path)


@pytest.mark.slow
@pytest.mark.browser
def test_the_page_of_a_study_is_opened_with_all_its_rows(tmp_path):
    report(made_study(tmp_path, {"a": 0.7, "b": 0.8}, seeds=2))
    (row,) = bench_page.bench_study_page(tmp_path, repeats=2)["rows"]
    assert (row["rows"], row["seeds"], row["trials"], len(row["open_s"])) == (2, 4, 0, 2)
    assert min(row["open_s"]) > 0


def test_without_a_browser_frames_are_not_measured(monkeypatch):
    monkeypatch.setattr(bench_page.shutil, "which", lambda name: None)
    result = bench_page.bench_page(sizes=(100,), repeats=1)
    assert result["chromium"] is None
    assert bench_page.page_table(result)[1][0][3:] == ["not measured", "not measured"]


def test_the_page_repeats_the_measurement():
    text = (ROOT / "docs" / "visualisation.md").read_text(encoding="utf-8")
    result = json.loads((ROOT / "results" / "bench" / "page.json").read_text(encoding="utf-8"))
    for cells in bench_page.page_table(result)[1]:
        assert f"| {' | '.join(cells)} |" in text
    assert max(row["write_s"] for row in result["rows"]) < 1
