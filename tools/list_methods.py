"""Renew the table of docs/methods.md: what every fine-tuning method trains and promises.

Example: python tools/list_methods.py
"""

from pathlib import Path

from pcl_clora.io import write_text
from pcl_clora.report.methods import describe_methods, methods_page

if __name__ == "__main__":
    page = Path(__file__).parents[1] / "docs" / "methods.md"
    write_text(page, methods_page(page.read_text(encoding="utf-8"), describe_methods()))
