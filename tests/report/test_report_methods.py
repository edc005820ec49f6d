"""The table of docs/methods.md is what attaching every method finds."""

from __future__ import annotations

from pathlib import Path

from pcl_clora.adapters.methods.clora import CLoRA
from pcl_clora.adapters.methods.linear_probe import LinearProbe
from pcl_clora.report.methods import first_source, methods_page

PAGE = Path(__file__).parents[2] / "docs" / "methods.md"


def test_the_table_of_the_page_is_what_the_methods_are() -> None:
    text = PAGE.read_text(encoding="utf-8")

    assert methods_page(text) == text, "renew it: python tools/list_methods.py"


def test_a_source_is_the_first_reference_of_the_docstring() -> None:
    assert first_source(CLoRA).startswith("Liu, Zhu, Huang, Collaborative Low-Rank Adaptation")
    assert first_source(LinearProbe) == ""
