"""The server as a process of its own: under load, and its pages in a real browser that counts hosts."""

import json
import re
import urllib.request

import numpy as np
import pytest

from pcl_clora.io import read_points, write_points
from tests.support.browsers import browser

__all__ = ["browser"]

pytestmark = pytest.mark.slow
QUEUE, CLIENTS = 16, 100


@pytest.fixture(scope="module")
def running(classification_run, segmentation_run, tmp_path_factory):
    """A server on two runs; when a signal ends it, nothing of it is left."""
    pytest.importorskip("gradio")
    from pcl_clora.bench.serve import server

    place = tmp_path_factory.mktemp("server")
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("TMPDIR", str(place))
        runs = ("--run", str(classification_run), "--run", str(segmentation_run))
        with server(*runs, "--queue", str(QUEUE), "--readers", "1") as (port, process):
            yield port, process
    assert process.returncode == -15
    assert list(place.iterdir()) == []


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "scan.ply"
    write_points(path, np.random.default_rng(0).normal(size=(400, 3)).astype(np.float32))
    return path


def test_every_one_of_100_clients_is_answered_or_turned_down(running, scan):
    from pcl_clora.bench.serve import ask_all, memory_mib

    port, process = running
    bodies, path = [scan.read_bytes()], "/predict?name=a.ply"
    ask_all(port, bodies, clients=4, requests=20, path=path)
    before = memory_mib(process.pid).get("now", 0.0)

    told = ask_all(port, bodies, clients=CLIENTS, requests=400, path=path)

    assert set(told.counts) <= {200, 429}
    assert sum(told.counts.values()) == 400
    assert told.counts[429] >= CLIENTS - 2 * QUEUE  # all come at once
    assert told.counts[200] >= 100
    assert told.quantile_ms(0.5) <= told.quantile_ms(0.99) < 30_000
    assert memory_mib(process.pid).get("peak", 0.0) < before + 200
    metrics = get(port, "/metrics").decode()
    assert "\npcl_clora_requests_held 0.0" in metrics
    counted = re.findall(r'pcl_clora_requests_total{path="/predict",status="429"} (\S+)', metrics)
    assert float(counted[0]) == told.counts[429]


def get(port, path, **headers):
    with urllib.request.urlopen(
        urllib.request.Request(f"http://127.0.0.1:{port}{path}", headers=headers)
    ) as reply:
        return reply.read()


def addresses(page):
    """List the addresses in a page, without names of kinds of xml, which nobody is asked for."""
    found = re.findall(r"""(?:https?:)?//[a-z0-9.-]+\.[a-z]{2,}[^\s"'<>]*""", page, re.IGNORECASE)
    return [one for one in found if not one.startswith("http://www.w3.org/")]


@pytest.mark.parametrize("path", ["/app/", "/docs", "/openapi.json"])
def test_no_page_names_another_host(running, path):
    page = get(running[0], path).decode()
    assert len(page) > 1000
    assert addresses(page) == []


def requested(driver):
    """List the hosts that the browser asked since the last look."""
    found = set()
    for entry in driver.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            address = message["params"]["request"]["url"]
            if address.startswith(("http", "ws")):
                found.add(address.split("/")[2])
    return found


@pytest.fixture
def find(browser):
    """Wait for what a selector finds, or for what a function finds in it."""
    waiting = pytest.importorskip("selenium.webdriver.support.ui")

    def found(selector, check=lambda element: True):
        def look(driver):
            for element in driver.find_elements("css selector", selector):
                if check(element):
                    return element
            return None

        missing = pytest.importorskip("selenium.common.exceptions").StaleElementReferenceException
        return waiting.WebDriverWait(browser, 40, 0.1, ignored_exceptions=[missing]).until(look)

    return found


@pytest.mark.browser
def test_people_drop_a_file_see_the_answer_and_switch_models(browser, running, scan, find, tmp_path):
    port = running[0]
    requested(browser)
    browser.get(f"http://127.0.0.1:{port}/")
    find("#cloud input[type=file]").send_keys(str(scan))

    answer = find("#answer", lambda one: "%" in one.text).text
    assert {"chair", "sofa", "mug"} <= set(answer.split())
    assert "novelty" in find("#notes").text
    frame = find("#viewer iframe")
    first = frame.get_attribute("src")
    browser.switch_to.frame(frame)
    assert "scan.ply" in find("#title").text
    assert browser.execute_script("return window.pclViewer.ready")
    browser.switch_to.default_content()
    assert find("#picture canvas").size["width"] > 100

    find("#model input").click()
    find("[role=option]", lambda one: "parts" in one.text).click()
    find("#viewer iframe", lambda one: one.get_attribute("src") != first)
    assert "chair/" in find("#answer", lambda one: "/" in one.text).text
    assert "shares of the parts" in find("#notes").text
    assert browser.current_url == f"http://127.0.0.1:{port}/app/"  # it was not left

    link = find("#labelled a").get_attribute("href")
    (tmp_path / "labelled.ply").write_bytes(get(port, link.removeprefix(f"http://127.0.0.1:{port}")))
    held = read_points(tmp_path / "labelled.ply")
    assert len(held.points) == 400
    assert {"labels", "confidence", "colors"} <= set(held.fields)
    assert requested(browser) == {f"127.0.0.1:{port}"}


@pytest.mark.browser
def test_people_are_told_what_is_wrong_with_a_file(browser, running, find, tmp_path):
    (tmp_path / "liar.ply").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(64))
    browser.get(f"http://127.0.0.1:{running[0]}/app/")
    find("#cloud input[type=file]").send_keys(str(tmp_path / "liar.ply"))
    said = find(".toast-body", lambda one: "picture" in one.text).text
    assert "liar.ply: is a picture or a document" in said
    assert "name a file of points" in said


@pytest.mark.browser
def test_the_documentation_needs_nobody_else(browser, running, find):
    port = running[0]
    requested(browser)
    browser.get(f"http://127.0.0.1:{port}/docs")
    text = find("body").text
    assert "POST /predict" in text
    assert f"curl -F file=@scan.ply http://127.0.0.1:{port}/predict" in text
    assert "429" in text
    assert requested(browser) == {f"127.0.0.1:{port}"}
