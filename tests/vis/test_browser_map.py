"""The map of a set in a real browser: a point shows its cloud's picture on hover and focus."""

import numpy as np
import pytest

from pcl_clora.vis.map import picture, render_map

RANDOM = np.random.default_rng(0)
NAMES = ("a.ply", "<b>b</b>.ply", "c.ply")


@pytest.fixture
def page(browser, tmp_path):
    """A map of three clouds in two groups, opened."""
    pictures = [picture(RANDOM.normal(size=(200, 3))) for _ in NAMES]
    places = np.array([[10.0, 10.0], [50.0, 50.0], [90.0, 90.0]])
    render_map(tmp_path / "map.html", places, NAMES, groups=("x", "x", "y"), pictures=pictures)
    browser.get((tmp_path / "map.html").as_uri())
    return browser


def card(page):
    return page.execute_script(
        "const c = document.getElementById('card'), p = document.getElementById('picture');"
        "return [!c.hidden, p.naturalWidth, document.getElementById('caption').textContent]"
    )


def test_a_point_shows_its_picture_on_hover_and_hides_it_behind(page):
    from selenium.webdriver.common.action_chains import ActionChains

    circles = page.find_elements("css selector", "#map circle")
    assert page.execute_script("return pclMap.count") == len(circles) == 3
    assert card(page)[0] is False
    ActionChains(page).move_to_element(circles[1]).perform()
    shown, width, caption = card(page)
    assert (shown, caption) == (True, "<b>b</b>.ply (x)")
    assert width > 32
    ActionChains(page).move_by_offset(120, 0).perform()
    assert card(page)[0] is False


def test_a_point_shows_its_picture_to_the_keyboard_and_the_legend_picks_a_group(page):
    circles = page.find_elements("css selector", "#map circle")
    page.execute_script("arguments[0].focus()", circles[2])
    assert card(page)[2] == "c.ply (y)"
    page.find_elements("css selector", "#legend button")[0].click()
    assert [one.get_attribute("class") or "" for one in circles] == ["", "", "faint"]
    assert not [line for line in page.get_log("browser") if line["level"] == "SEVERE"]
