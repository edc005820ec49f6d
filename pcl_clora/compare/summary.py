"""study.json with every row in whatever state, and after it the tables, the pictures and the page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pcl_clora.compare.folder import StudyFolder
from pcl_clora.compare.html import write_page
from pcl_clora.compare.plots import write_plots
from pcl_clora.compare.results import StudyResults, read_results
from pcl_clora.compare.study import Study, describe, differing
from pcl_clora.compare.tables import csv_lines, markdown_tables, page_section, table_lines, write_tables
from pcl_clora.io import write_json, write_text
from pcl_clora.report.marks import put_between_marks
from pcl_clora.report.records import run_cost


def write_study(study: Study, folder: StudyFolder) -> dict[str, Any]:
    """Write study.json: what the study is, what its rows are, cost and chose."""
    before = (folder.read(folder.study) or {}).get("rows", {})
    rows: dict[str, Any] = {}
    for name, row in study.rows.items():
        settings = differing(study, row)
        known = before.get(name, {})
        counts = known.get("counts") if known.get("settings") == settings else None
        rows[name] = {
            "settings": settings,
            "varied": dict(row.varied),
            "seeds": list(row.seeds),
            "choice": folder.read(folder.choice(row.chooser)) if row.chooser else None,
            "counts": counts or _counts(row.cfg),
        }
    content = {**describe(study), "rows": rows}
    write_json(folder.study, content)
    return content


def _counts(cfg: Any) -> dict[str, int]:
    macs = run_cost(cfg)["macs"]
    return {key: int(macs[key]) for key in ("published", "executed", "executed_merged")}


def put_into(page: str, results: StudyResults) -> str:
    """Write what a study found into a page, between the marks `study NAME`.

    Raises:
        ValueError: if the page does not have the marks.
    """
    section = page_section(results, table_lines(results))
    return put_between_marks(page, f"study {results.content['study']}", section)


def renew_tables(studies: Path, page: Path) -> None:
    """Write table.md and table.csv of every study in a folder anew, and their parts of a page.

    Raises:
        ValueError: if the page lacks the marks of a study.
        ReportError: if a folder holds no study.
    """
    text = page.read_text(encoding="utf-8")
    for folder in sorted(path for path in studies.iterdir() if path.is_dir()):
        results = read_results(folder, partial=True)
        lines = table_lines(results)
        write_text(folder / "table.md", markdown_tables(results, lines))
        write_text(folder / "table.csv", csv_lines(results, lines))
        text = put_into(text, results)
    write_text(page, text)


def report(folder: str | Path, *, partial: bool = False, baseline: str = "") -> StudyResults:
    """Write table.md, .csv, .tex and .json, pictures in plots/, and index.html into the folder of a study.

    Args:
        folder: of the study; its run folders need not be there.
        partial: take rows of which no run is there yet, too.
        baseline: another row to test against than the study names.

    Raises:
        ReportError: if the folder holds no study, or no run of a row is finished.
    """
    results = read_results(folder, partial=partial, baseline=baseline)
    lines = write_tables(results)
    write_page(results, write_plots(results), lines)
    return results
