"""Renew results/README.md: one row a study, with the section that shows it, its command and commit.

Example: python tools/list_results.py
"""

from pathlib import Path

from pcl_clora.io import write_text
from pcl_clora.report.studies import studies_page

if __name__ == "__main__":
    root = Path(__file__).parents[1]
    write_text(root / "results" / "README.md", studies_page(root / "results", root / "docs"))
