"""The page "From your scans to an answer": its code is run as it stands, with short trainings."""

from __future__ import annotations

import csv
import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pcl_clora.cli import app

PAGE = Path(__file__).parents[2] / "docs" / "from_scans.md"
BLOCK = re.compile(r"^```(bash|python)\n(.*?)^```", re.S | re.M)
SHORT = ["--steps", "4", "--points", "64", "--folds", "0", "adapter.rank=2", "optim.batch_size=8"]


def run_line(line: str) -> None:
    """Run a command of the page in this process."""
    program, *arguments = shlex.split(line)
    assert program == "pcl-clora"
    short = SHORT if arguments[0] == "fit" else []
    done = CliRunner().invoke(app, [*arguments, *short], catch_exceptions=False)
    assert done.exit_code == 0, f"{line}: {done.output}"


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_every_command_of_the_page_runs_and_writes_what_it_says(tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    monkeypatch.chdir(tmp_path)
    for kind, text in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        if kind == "python":
            exec(compile(text, str(PAGE), "exec"), {"__name__": "page"})
        else:
            for line in text.strip().splitlines():
                run_line(line)
    answers, again = rows(tmp_path / "answers.csv"), rows(tmp_path / "again.csv")
    assert [row["file"] for row in answers] == [f"new/scan{k}.ply" for k in (20, 21, 22)]
    assert [row["label"] for row in again] == [row["label"] for row in answers]
    for made in ("chair.html", "scan.html", "lamps.html", "pages/index.html", "runs/scans/fit.html"):
        assert (tmp_path / made).stat().st_size > 1000
    assert "What was forgotten" in (tmp_path / "runs" / "scans2" / "fit.html").read_text(encoding="utf-8")
    assert list((tmp_path / "parts").rglob("*scan22*"))
    assert (tmp_path / "shared" / "README.md").is_file()
    assert (tmp_path / "model.onnx").is_file()


def test_the_pictures_and_pages_that_it_names_are_there():
    for target in re.findall(r"\]\(([^)#]+)", PAGE.read_text(encoding="utf-8")):
        assert (PAGE.parent / target).is_file(), target
