"""The page in a real browser: Debian's chromium without a display, drawing in software."""

import base64
import json

import numpy as np
import pytest

from pcl_clora.io.text import visible
from pcl_clora.vis import Item, Legend, Panel, render_gallery, render_html
from tests.support.vis_cases import CORNERS, HOSTILE, cloud

COLOURS = {"orange": (230, 159, 0), "blue": (86, 180, 233), "green": (0, 158, 115), "violet": (204, 121, 167)}

pytestmark = pytest.mark.browser


@pytest.fixture
def show(browser, tmp_path):
    """Open a page of panels over its file, and check afterwards that nothing went wrong."""

    def opened(panels, **options):
        path = tmp_path / "page.html"
        make = render_gallery if isinstance(panels[0], Item) else render_html
        make(path, panels, **options)
        for kind in ("browser", "performance"):
            browser.get_log(kind)  # what earlier pages left
        browser.get(path.as_uri())
        assert browser.execute_script("return window.pclViewer.ready")
        return browser

    yield opened
    entries = browser.get_log("browser")
    assert [entry["message"] for entry in entries if entry["level"] == "SEVERE"] == []
    assert [entry["message"] for entry in entries if "Content Security Policy" in entry["message"]] == []
    assert requests_beyond(browser, (tmp_path / "page.html").as_uri()) == []


def requests_beyond(browser, page):
    """List what a page asked for besides itself and what it holds. The browser's own pages do not count."""
    asked = []
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent" and message["params"]["documentURL"] == page:
            asked.append(message["params"]["request"]["url"])
    assert page in asked  # the log does see requests
    return [address for address in asked if address != page and not address.startswith(("data:", "blob:"))]


def pixels(browser, number):
    """Read the pixels of one panel: (H, W, 3), the first row at the top; and pixels a point of the page."""
    found = browser.execute_script(
        "const r = pclViewer.readPixels(arguments[0]); let text = ''; const p = r.pixels;"
        "for (let k = 0; k < p.length; k += 8192) text += String.fromCharCode(...p.subarray(k, k + 8192));"
        "return [r.width, r.height, r.ratio, btoa(text)];",
        number,
    )
    width, height, ratio, text = found
    flat = np.frombuffer(base64.b64decode(text), dtype=np.uint8).reshape(height, width, 4)
    return flat[::-1, :, :3].astype(int), ratio


def area(browser, number, colour):
    """Count the pixels that have the hue of a colour, in light and shade."""
    picture, _ = pixels(browser, number)
    wanted = np.array(COLOURS[colour]) / max(COLOURS[colour])
    brightness = picture.max(axis=2, keepdims=True).clip(1)
    near = np.abs(picture / brightness - wanted).max(axis=2) < 0.06
    return int((near & (brightness[..., 0] < 250)).sum())


def middle_of(browser, number, colour):
    """Find a place inside what has a colour: (x, y) in the panel."""
    picture, ratio = pixels(browser, number)
    wanted = np.array(COLOURS[colour]) / max(COLOURS[colour])
    near = np.abs(picture / picture.max(axis=2, keepdims=True).clip(1) - wanted).max(axis=2) < 0.06
    rows, columns = np.nonzero(near)
    return float(columns.mean() / ratio), float(rows.mean() / ratio)


def four_balls(**options):
    """Four points in a square with four labels."""
    return Panel(
        CORNERS, labels={"part": [0, 1, 2, 3]}, legend=["orange", "blue", "green", "violet"], **options
    )


@pytest.mark.slow
def test_every_panel_draws_its_own_colours(show):
    points, labels = cloud(2000)
    browser = show([Panel(points, labels=0 * labels, title="a"), Panel(points, labels=labels, title="b")])

    assert area(browser, 0, "orange") > 5000
    assert area(browser, 0, "green") == 0
    assert min(area(browser, 1, colour) for colour in ("orange", "blue", "green")) > 500


@pytest.mark.parametrize(("colour", "index"), [("orange", 0), ("blue", 1), ("green", 2), ("violet", 3)])
def test_picking_reads_the_point_that_is_seen(show, colour, index):
    browser = show([Panel(CORNERS), four_balls(scalars={"confidence": [0.1, 0.2, 0.3, 0.4]})])
    x, y = middle_of(browser, 1, colour)

    found = browser.execute_script("return pclViewer.pick(1, arguments[0], arguments[1])", x, y)

    assert found["index"] == index
    assert found["values"]["part"] == colour
    assert found["values"]["confidence"] == pytest.approx((index + 1) / 10, abs=1e-4)
    assert found["coordinates"] == pytest.approx(CORNERS[index].tolist(), abs=1e-5)
    assert browser.execute_script("return pclViewer.pick(1, 3, 3)") is None


def test_a_click_shows_what_the_point_is(show):
    from selenium.webdriver import ActionChains

    browser = show([four_balls()])
    view = browser.find_element("css selector", ".view")
    x, y = middle_of(browser, 0, "green")

    ActionChains(browser).move_to_element_with_offset(
        view, round(x - view.size["width"] / 2), round(y - view.size["height"] / 2)
    ).click().perform()

    assert "part: green" in browser.find_element("css selector", ".picked").text


@pytest.mark.slow
def test_the_legend_hides_and_shows_points(show):
    points, labels = cloud(2000)
    browser = show([Panel(points, labels=labels, legend=["foot", "body", "lid"])])
    before = area(browser, 0, "blue")
    tick = browser.find_element("css selector", "input[aria-label='show body']")

    tick.click()
    hidden, others = area(browser, 0, "blue"), area(browser, 0, "orange")
    browser.find_element("css selector", "input[aria-label='show body']").click()

    assert before > 500
    assert hidden == 0
    assert others > 500
    assert area(browser, 0, "blue") == before


@pytest.mark.slow
def test_linked_cameras_move_together_and_unlinked_ones_alone(show):
    from selenium.webdriver import ActionChains

    browser = show([four_balls(), four_balls()])

    def drag(right, down):
        view = browser.find_element("css selector", ".view")
        ActionChains(browser).click_and_hold(view).move_by_offset(right, down).release().perform()
        return browser.execute_script("return pclViewer.cameras()")

    start = browser.execute_script("return pclViewer.cameras()")
    first, second = drag(60, 20)
    assert first == second
    assert first["turn"] != start[0]["turn"]
    assert first["tilt"] > start[0]["tilt"]
    browser.find_element("id", "link").click()
    alone, left = drag(60, 0)
    assert alone != left
    assert left == second


def test_keys_turn_zoom_reset_and_change_colours_and_background(show):
    points, labels = cloud(2000)
    browser = show([Panel(points, labels={"a": labels, "b": 0 * labels})])
    body = browser.find_element("css selector", "body")
    start = browser.execute_script("return pclViewer.cameras()[0]")

    body.send_keys("+")
    near = browser.execute_script("return pclViewer.cameras()[0]")
    body.send_keys("r2b")

    assert near["distance"] < start["distance"]
    assert browser.execute_script("return pclViewer.cameras()[0]") == start
    assert area(browser, 0, "green") == 0
    assert pixels(browser, 0)[0][0, 0].max() < 60


def test_fingers_turn_and_pinch(show):
    browser = show([four_balls()])
    browser.execute_script(
        "const view = document.querySelector('.view');"
        "const send = (type, id, x, y) => view.dispatchEvent(new PointerEvent(type, {pointerId: id,"
        "  pointerType: 'touch', clientX: x, clientY: y, bubbles: true, button: 0}));"
        "send('pointerdown', 1, 300, 300); send('pointerdown', 2, 340, 300);"
        "send('pointermove', 2, 420, 300);"
        "send('pointerup', 2, 420, 300); send('pointerup', 1, 300, 300);"
    )

    assert browser.execute_script("return pclViewer.cameras()[0].distance") < 3


def test_controls_have_names_and_a_picture_is_saved_as_png(show):
    browser = show([four_balls(title="one"), four_balls(title="two")])
    unnamed = browser.execute_script(
        "const named = (e) => e.getAttribute('aria-label') || e.textContent.trim() ||"
        "  (e.labels && e.labels.length && e.labels[0].textContent.trim());"
        "return [...document.querySelectorAll('input,button,select')]"
        "  .filter((e) => !e.closest('[hidden]') && !named(e)).map((e) => e.outerHTML)"
    )

    assert unnamed == []
    assert browser.execute_script("return pclViewer.picture()").startswith("data:image/png;base64,iVBOR")


def test_hostile_names_stay_text(show):
    points, labels = cloud()
    legend = Legend({0: HOSTILE, 1: "b", 2: "c"})
    browser = show(
        [Panel(points, labels={HOSTILE: labels}, legend=legend, title=HOSTILE, note=HOSTILE)], title=HOSTILE
    )

    assert browser.execute_script("return window.hacked") is None
    assert browser.find_element("id", "title").get_attribute("textContent") == visible(HOSTILE)
    assert browser.find_elements("css selector", "body img") == []


def test_quantised_and_exact_positions_draw_alike(show):
    points, labels = cloud(2000)
    exact = area(show([Panel(points, labels=labels)], quantise=False), 0, "blue")

    browser = show([Panel(points, labels=labels)], quantise=True)

    assert area(browser, 0, "blue") == pytest.approx(exact, rel=0.02)
    assert "positions in steps of" in browser.find_element("id", "status").text


def test_a_gallery_opens_a_cloud_and_comes_back(show):
    items = [
        Item("good", (four_balls(title="panel of good"),), score=0.9, group="Cup"),
        Item("bad", (four_balls(title="panel of bad"),), score=0.1, group="Pot"),
    ]
    browser = show(items, title="All")
    cards = browser.find_elements("css selector", ".card")
    assert [card.text.split("\n")[0] for card in cards] == ["bad", "good"]

    cards[0].click()
    assert browser.find_element("css selector", ".name").text == "panel of bad"
    assert area(browser, 0, "orange") > 100
    browser.find_element("id", "back").click()

    assert len(browser.find_elements("css selector", ".card")) == 2
    browser.execute_script(
        "const f = document.getElementById('filter'); f.value = 'Cup'; f.dispatchEvent(new Event('change'))"
    )
    assert [card.text.split("\n")[0] for card in browser.find_elements("css selector", ".card")] == ["good"]


def test_a_notebook_frame_runs_the_page(browser, tmp_path):
    page = render_html(None, [four_balls()])
    (tmp_path / "notebook.html").write_text(f"<!doctype html><body>{page._repr_html_()}", encoding="utf-8")

    browser.get((tmp_path / "notebook.html").as_uri())
    browser.switch_to.frame(browser.find_element("css selector", "iframe"))

    assert browser.execute_script("return window.pclViewer.ready")
    assert area(browser, 0, "green") > 100
    browser.switch_to.default_content()


@pytest.mark.slow
def test_a_large_cloud_is_thinned_while_it_moves_and_whole_at_rest(show):
    points, labels = cloud(400_000)
    browser = show([Panel(points, labels=labels)])
    whole = browser.execute_script("return pclViewer.frameTime(3)")
    moving = browser.execute_script("return pclViewer.frameTime(3, true)")

    assert min(moving) < min(whole)
    assert all(time > 0 for time in moving)
    assert area(browser, 0, "blue") > 5000
