"""The list of the committed results is what the tool writes."""

import json

import pytest

from pcl_clora.report import ReportError
from pcl_clora.report.studies import studies_page
from tests.support.cli_cases import ROOT


def test_the_list_of_results_is_up_to_date():
    page = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    assert page == studies_page(ROOT / "results", ROOT / "docs"), "run python tools/list_results.py"


def test_every_study_has_a_section_and_a_command():
    rows = (ROOT / "results" / "README.md").read_text(encoding="utf-8").splitlines()[6:]
    folders = {path.name for path in (ROOT / "results").iterdir() if path.is_dir()}
    assert {row.split(" | ")[0].strip("| ").partition("/")[0] for row in rows} == folders
    assert all("](../docs/" in row and ("pcl-clora " in row or "make " in row) for row in rows)


@pytest.fixture
def study(tmp_path):
    (tmp_path / "docs").mkdir()
    folder = tmp_path / "results" / "a" / "run"
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps({"git": "0123456789abcdef"}))
    return tmp_path


def test_a_study_is_listed_with_its_section_the_command_of_a_block_and_its_commits(study):
    text = "# P\n## A b, c\nIn `results/a/`, `pcl-clora probe`.\n\n    pcl-clora train -c x.yaml   # too\n"
    (study / "docs" / "p.md").write_text(text)
    (row,) = studies_page(study / "results", study / "docs").splitlines()[6:]
    assert row == "| a | [A b, c](../docs/p.md#a-b-c) | pcl-clora train -c x.yaml | 0123456789ab |"


@pytest.mark.parametrize(
    ("text", "message"),
    [("# P\n## A\nnothing\n", "stands on no page"), ("# P\n## A\nresults/a\n", "names no command")],
)
def test_a_study_without_section_or_command_is_refused(study, text, message):
    (study / "docs" / "p.md").write_text(text)
    with pytest.raises(ReportError, match=message):
        studies_page(study / "results", study / "docs")
