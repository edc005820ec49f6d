"""The table of docs/methods.md is what attaching every method finds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pcl_clora.adapters import list_adapters
from pcl_clora.adapters.methods.clora import CLoRA
from pcl_clora.adapters.methods.linear_probe import LinearProbe
from pcl_clora.cli import main
from pcl_clora.report.methods import (
    END,
    IMAGES,
    START,
    MethodRow,
    backbone_names,
    describe_methods,
    first_source,
    format_methods,
    methods_page,
)

PAGE = Path(__file__).parents[2] / "docs" / "methods.md"


SOME = ("clora", "dapt", "linear_probe")  # in short: shared and merged, not merged, nothing attached


@pytest.fixture(scope="module")
def rows() -> list[MethodRow]:
    return describe_methods()


@pytest.fixture(scope="module")
def some() -> list[MethodRow]:
    return describe_methods(SOME)


def test_the_page_has_a_row_for_every_method_and_some_are_as_found(some: list[MethodRow]) -> None:
    table = PAGE.read_text(encoding="utf-8").partition(START)[2].partition(END)[0].splitlines()
    titles = {line.split("|")[1].partition(",")[0].strip(" `") for line in table[2:] if line}

    assert titles == set(list_adapters())
    assert [row.settings["method"] for row in some] == list(SOME)
    for line in format_methods(some).strip().splitlines():
        assert line in table, "renew it: python tools/list_methods.py"


@pytest.mark.long
def test_the_table_of_the_page_is_what_the_methods_are(rows: list[MethodRow]) -> None:
    text = PAGE.read_text(encoding="utf-8")

    assert methods_page(text, rows) == text, "renew it: python tools/list_methods.py"


@pytest.mark.long
def test_the_numbers_are_those_of_the_papers(rows: list[MethodRow]) -> None:
    found = {row.title: row for row in rows}

    assert {row.settings["method"] for row in rows} == set(list_adapters())
    # Multiply-adds as hooks on the released networks count them, in 10^9.
    published = {
        "vpt, deep": 4.973, "idpt": 7.084, "dapt": 4.957, "pointgst": 4.807, "lora": 4.761, "stag": 5.015,
        "gft": 6.127, "ppt": 10.710, "pointlora": 8.666, "point_peft": 5.246,
    }  # fmt: skip
    assert {name: round(found[name].macs_published / 1e9, 3) for name in published} == published
    assert found["clora"].macs_merged == found["lora"].macs_merged == found["linear_probe"].macs_executed
    assert found["clora"].macs_merged < found["clora"].macs_executed
    assert found["dapt"].macs_merged is None
    assert found["full"].file_bytes > 80e6 > 5e6 > found["dapt"].file_bytes
    large = {name for name, row in found.items() if row.file_bytes > 5e6}
    assert large == {"full", "idpt", "adapter, houlsby"}  # the page says how these become smaller
    assert all(found[name].file_bytes < 10e6 for name in large - {"full"})  # in float32


@pytest.mark.long
def test_who_takes_a_method_is_found_by_asking(rows: list[MethodRow]) -> None:
    found = {row.title: row for row in rows}

    assert found["clora"].backbones == backbone_names()
    assert set(backbone_names()) - set(found["dapt"].backbones) == {IMAGES}
    assert found["stag"].tasks == ("classification",)
    assert found["lora"].tasks == ("classification", "part_segmentation")


def test_the_numbers_and_takers_of_some_are_those_of_the_papers(some: list[MethodRow]) -> None:
    found = {row.title: row for row in some}

    assert round(found["dapt"].macs_published / 1e9, 3) == 4.957
    assert found["clora"].macs_merged == found["linear_probe"].macs_executed < found["clora"].macs_executed
    assert found["dapt"].macs_merged is None
    assert found["clora"].backbones == backbone_names()
    assert set(backbone_names()) - set(found["dapt"].backbones) == {IMAGES}
    assert found["clora"].tasks == ("classification", "part_segmentation")


def test_the_command_prints_a_row_a_method(some: list[MethodRow], monkeypatch, capsys) -> None:
    rows = some
    monkeypatch.setattr("pcl_clora.report.methods.describe_methods", lambda: rows)
    for arguments in (["methods"], ["methods", "--json"]):
        with pytest.raises(SystemExit) as left:
            main(arguments)
        assert left.value.code == 0
    table, _, listed = capsys.readouterr().out.partition("[\n")

    assert all(row.title in table for row in rows)
    assert [entry["trained"] for entry in json.loads("[" + listed)] == [row.trained for row in rows]


def test_a_source_is_the_first_reference_of_the_docstring() -> None:
    assert first_source(CLoRA).startswith("Liu, Zhu, Huang, Collaborative Low-Rank Adaptation")
    assert first_source(LinearProbe) == ""
