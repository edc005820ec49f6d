"""The page of a search in a real browser: what was asked for, then the nearest; each opens."""

import numpy as np
import pytest

from pcl_clora.predict import ShapeIndex
from pcl_clora.vis.found import render_found

pytestmark = pytest.mark.browser
RANDOM = np.random.default_rng(0)
FILES = ("shapes/a.ply", "shapes/<i>b.ply", "shapes/c.ply")


@pytest.fixture
def page(browser, tmp_path):
    """The result of a search among three clouds, opened."""
    points = RANDOM.normal(size=(3, 512, 3)).astype(np.float16)
    index = ShapeIndex(FILES, np.eye(3, dtype=np.float32), points, "builtin", "")
    asked = RANDOM.normal(size=(300, 3)).astype(np.float32)
    render_found(tmp_path / "found.html", "asked.ply", asked, index, [(1, 0.25), (0, 0.5)])
    browser.get_log("browser")  # what earlier pages left
    browser.get((tmp_path / "found.html").as_uri())
    return browser


def test_the_nearest_come_in_their_order_with_pictures_and_open(page):
    cards = page.find_elements("css selector", ".card")
    titles = [card.text.split("\n")[0] for card in cards]
    assert titles == ["asked: asked.ply", f"1. {FILES[1]}, distance 0.250", f"2. {FILES[0]}, distance 0.500"]
    widths = [card.find_element("css selector", "img").get_property("naturalWidth") for card in cards]
    assert min(widths) > 32

    cards[1].click()
    name = page.find_element("css selector", ".name").text
    drawn = page.execute_script("return pclViewer.readPixels(0).width")
    page.find_element("id", "back").click()

    assert name.startswith("<i>b.ply")
    assert drawn > 100
    assert len(page.find_elements("css selector", ".card")) == 3
    assert not [line for line in page.get_log("browser") if line["level"] == "SEVERE"]
