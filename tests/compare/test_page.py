"""The page of a study in a real browser: it opens quickly, sorts, filters, and asks for nothing."""

import json
import re
import time

import numpy as np
import pytest

from pcl_clora.compare.corrupted import add_right
from pcl_clora.compare.html import write_page
from pcl_clora.compare.plots import write_plots
from pcl_clora.compare.results import read_results
from tests.support.study_cases import made_study

pytestmark = [pytest.mark.browser, pytest.mark.slow]

SKILLS = {"base": 0.70, "level": 0.71, "better": 0.85, "worse": 0.55, "odd": 0.6}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The page of a small study with pictures."""
    folder = tmp_path_factory.mktemp("study")
    settings = {"pairs": [["better", "worse"]], "rows": {}}
    made_study(folder, SKILLS, settings=settings)
    for row, right in (("base", 80), ("better", 90)):
        path, bits = folder / "rows" / row / "seed0.corrupted.safetensors", np.arange(200) < right
        add_right(path, f"{row}/seed0", 0, "modelnet40_c.gaussian, 3", bits)
    results = read_results(folder)
    write_page(results, write_plots(results))
    return folder / "index.html"


@pytest.fixture
def page(browser, study):
    """The page, opened; afterwards nothing went wrong and nothing was asked for."""
    for kind in ("browser", "performance"):
        browser.get_log(kind)  # what earlier pages left
    browser.get(study.as_uri())
    assert browser.execute_script("return window.pclStudy.ready")
    yield browser
    assert [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    sent = [event["params"] for event in events if event["method"] == "Network.requestWillBeSent"]
    asked = [one["request"]["url"] for one in sent if one["documentURL"] == study.as_uri()]
    assert study.as_uri() in asked
    assert [url for url in asked if url != study.as_uri() and not url.startswith("data:")] == []


def names(page):
    return page.execute_script(
        "return [...document.querySelectorAll('#table tbody tr')].map(r => r.cells[0].textContent)"
    )


def click(page, label):
    page.execute_script(
        "const all = [...document.querySelectorAll('#table th button')];"
        "all.find(b => b.textContent.startsWith(arguments[0])).click()",
        label,
    )


def type_in(page, place, text):
    page.execute_script(
        "const i = document.getElementById(arguments[0]); i.value = arguments[1];"
        "i.dispatchEvent(new Event('input'))",
        place,
        text,
    )


def test_rows_come_best_first_and_sort_by_any_column(page):
    assert names(page)[0] == "better"
    click(page, "OA")
    assert names(page)[-1] == "better"
    click(page, "row")
    assert names(page) == sorted(names(page))
    click(page, "without head")
    assert names(page)[0] == "odd"  # the largest


def test_filters_leave_out_rows_and_say_how_many_are_left(page):
    type_in(page, "name", "e")
    assert "odd" not in names(page)
    type_in(page, "params", "2000")
    assert sorted(names(page)) == ["base", "level"]
    assert page.execute_script("return document.getElementById('count').textContent").startswith("2 of ")
    type_in(page, "name", "")
    type_in(page, "params", "")
    page.execute_script("document.getElementById('near').click()")
    assert names(page) == ["better"]


def test_cells_near_the_best_are_marked_and_a_title_is_no_markup(page):
    marked = "return [...document.querySelectorAll('td.near')].map(c => c.parentElement.cells[0].textContent)"
    assert set(page.execute_script(marked)) == {"better"}
    assert (
        page.execute_script("return document.getElementById('title').textContent") == "Made numbers & <more>"
    )
    assert page.title == "Made numbers & <more>"


def test_columns_come_and_go_by_group_and_a_row_shows_its_settings(page):
    text = "return document.getElementById('table').textContent"
    assert "processor" not in page.execute_script(text)
    page.execute_script("document.getElementById('group-provenance').click()")
    assert "processor" in page.execute_script(text)
    page.execute_script("document.querySelector('#table tbody tr').click()")
    assert "optim.lr=0.002" in page.execute_script(text)


def test_a_paired_difference_of_errors_has_its_interval(page):
    shown = page.execute_script(
        "const cells = row => [...row.cells].map(c => c.textContent);"
        "const rows = [...document.querySelectorAll('#table tr')].map(cells);"
        "const at = rows[0].indexOf('modelnet40_c against base');"
        "return Object.fromEntries(rows.slice(1).map(r => [r[0], r[at]]))"
    )
    assert re.fullmatch(r"\u22125\.00 \[\u2212\d\.\d\d, \u2212\d\.\d\d\]", shown["better"])
    assert shown["worse"] == "\u2013"


def test_pictures_advice_and_pairs_are_there(page):
    images = "[...document.querySelectorAll('#pictures img')]"
    shown = page.execute_script(f"return {images}.map(i => i.complete && i.naturalWidth > 0)")
    assert len(shown) >= 3
    assert all(shown)
    text = "return document.getElementById(arguments[0]).textContent"
    assert "any number of parameters" in page.execute_script(text, "advice")
    assert "worse" in page.execute_script(text, "pairs")


@pytest.mark.parametrize("rows", [15, pytest.param(50, marks=pytest.mark.long)])
def test_a_study_of_many_runs_opens_in_under_a_second(browser, tmp_path, rows):
    skills = {f"row{n}": 0.5 + n / (5 * rows) for n in range(rows)}
    results = read_results(made_study(tmp_path, skills, seeds=2, clouds=100))
    write_page(results, write_plots(results))
    times = []
    for _ in range(3):
        browser.get("about:blank")
        began = time.perf_counter()
        browser.get((tmp_path / "index.html").as_uri())
        assert browser.execute_script("return window.pclStudy.ready")
        times.append(time.perf_counter() - began)
    told = browser.execute_script("return performance.getEntriesByType('navigation')[0].loadEventEnd")
    assert min(*times, told / 1000) < 1
    assert len(names(browser)) == rows
