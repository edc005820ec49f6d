"""What methods add to a step: the record, its table, and the page that shows it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pcl_clora.adapters import list_adapters
from pcl_clora.bench import methods as bench
from tests.support import adapter_cases as cases

ROOT = Path(__file__).parents[2]


def test_the_page_shows_the_committed_record() -> None:
    result = json.loads((ROOT / "results" / "bench" / "methods.json").read_text(encoding="utf-8"))
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")

    assert bench.renewed_page(page, result) == page
    (row,) = result["rows"]
    assert set(row["methods"]) <= set(list_adapters())
    slow = {name for name, found in row["methods"].items() if found["attach_ms"] > bench.ATTACH_TARGET_MS}
    assert slow <= {"full"}  # which copies the network


def test_methods_are_timed_beside_a_linear_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "create_model", lambda *_, **__: cases.make_point_mae(40))
    monkeypatch.setattr(bench, "list_adapters", lambda: ["clora", "linear_probe", "vpt"])

    (row,) = bench.measure({"batch_size": 2, "num_points": 128, "repeats": 2, "budget_s": 9.0})

    found = row["methods"]
    assert list(found) == ["linear_probe", "clora", "vpt"]
    assert found["linear_probe"]["ratio"] == 1
    assert found["linear_probe"]["added_mib"] == 0
    assert found["clora"]["added_mib"] > 0
    assert all(one["step_ms"] > 0 and one["attach_ms"] > 0 and one["runs"] == 2 for one in found.values())


def test_lines_of_code_are_neither_blank_nor_remarks() -> None:
    assert 10 < bench.lines_of("linear_probe") < bench.lines_of("clora")
    file = ROOT / "pcl_clora" / "adapters" / "methods" / "arc.py"
    assert bench.lines_of("arc") < len(file.read_text().splitlines())
