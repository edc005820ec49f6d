"""Renew the tables of docs/methods.md: what every method trains, promises and costs.

Example: python tools/list_methods.py
"""

import json
from pathlib import Path

from pcl_clora.bench.methods import renewed_page
from pcl_clora.io import write_text
from pcl_clora.report.methods import describe_methods, methods_page

if __name__ == "__main__":
    root = Path(__file__).parents[1]
    page = root / "docs" / "methods.md"
    cost = json.loads((root / "results" / "bench" / "methods.json").read_text(encoding="utf-8"))
    text = methods_page(page.read_text(encoding="utf-8"), describe_methods())
    write_text(page, renewed_page(text, cost))
