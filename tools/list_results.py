"""Renew what follows from the committed results: tables of studies, and results/README.md.

Every folder of results/compare gets its table.md and table.csv, and its part of docs/results.md, between the
marks `study NAME`. README.md has one row a study, with the section that shows it, its command and commit.

Example: python tools/list_results.py
"""

from pathlib import Path

from pcl_clora.compare.summary import renew_tables
from pcl_clora.io import write_text
from pcl_clora.report.studies import FIRST_PAGE, studies_page

if __name__ == "__main__":
    root = Path(__file__).parents[1]
    renew_tables(root / "results" / "compare", root / "docs" / FIRST_PAGE)
    write_text(root / "results" / "README.md", studies_page(root / "results", root / "docs"))
