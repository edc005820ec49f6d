import re
import time
from html.parser import HTMLParser

import numpy as np
import pytest

from pcl_clora.io.text import visible
from pcl_clora.vis import Item, Legend, Panel, render_gallery, render_html
from tests.support.vis_cases import HOSTILE, cloud, page_buffer, page_data


class Tags(HTMLParser):
    """Collects the elements of a page and their addresses."""

    def __init__(self, text):
        super().__init__()
        self.names, self.addresses = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href", "action", "data")]


def test_the_page_holds_points_labels_and_scalars(tmp_path):
    points, labels = cloud()
    page = render_html(
        tmp_path / "a" / "page.html",
        [Panel(points, labels=labels, scalars={"height": points[:, 1]}, legend=["foot", "body", "lid"])],
    )

    text = (tmp_path / "a" / "page.html").read_text(encoding="utf-8")
    (panel,) = page_data(text)["items"][0]["panels"]
    stored = page_buffer(text, panel["points"]["buffer"], "<f4").reshape(-1, 3)
    np.testing.assert_allclose(stored + panel["points"]["low"], points, atol=1e-6)
    np.testing.assert_array_equal(page_buffer(text, panel["layers"][0]["buffer"], "u1"), labels)
    scalars = panel["layers"][1]
    height = (
        page_buffer(text, scalars["buffer"], "<u2") / 65535 * (scalars["high"] - scalars["low"])
        + scalars["low"]
    )
    np.testing.assert_allclose(height, points[:, 1], atol=(scalars["high"] - scalars["low"]) / 65535)
    assert page.path == tmp_path / "a" / "page.html"
    with open(page, encoding="utf-8") as file:  # a page is a path
        assert file.read() == page.text


@pytest.mark.parametrize("offset", [0.0, 5e5], ids=["near", "far"])
def test_quantised_positions_are_off_by_less_than_a_step_also_far_from_the_origin(offset):
    points = cloud()[0].astype(np.float64) * [1, 2, 3] + offset
    text = render_html(None, [Panel(points)], quantise=True).text

    description = page_data(text)["items"][0]["panels"][0]["points"]
    stored = page_buffer(text, description["buffer"], "<u2").reshape(-1, 3)
    back = stored * np.array(description["scale"]) + description["low"]
    assert (np.abs(back - points) <= np.array(description["scale"]) * 0.51).all()


def test_flat_clouds_and_single_points_are_shown():
    text = render_html(None, [Panel(np.ones((1, 3)))], quantise=True).text

    assert page_data(text)["items"][0]["panels"][0]["points"]["size"] == [0.0, 0.0, 0.0]


def test_equal_arrays_are_stored_once():
    points, labels = cloud()
    text = render_html(None, [Panel(points, labels=labels), Panel(points.copy(), labels=labels.copy())]).text

    assert len(re.findall('<script type="text/plain"', text)) == 2


def test_hostile_names_do_not_become_markup():
    points, labels = cloud()
    plain = render_html(None, [Panel(points, labels=labels, legend=["a", "b", "c"], title="t")], title="t")
    hostile = Panel(
        points,
        labels={HOSTILE: labels},
        legend=[HOSTILE, "b", "c"],
        title=HOSTILE,
        note=HOSTILE,
        show=HOSTILE,
    )
    page = render_html(None, [hostile], title=HOSTILE)

    assert Tags(page.text).names == Tags(plain.text).names
    assert page_data(page.text)["items"][0]["panels"][0]["layers"][0]["names"][0] == visible(HOSTILE)


def test_names_do_not_turn_the_direction_of_a_page():
    points, labels = cloud()
    name = "a\u202eb\x1b[2J"
    text = render_html(
        None, [Panel(points, labels={name: labels}, legend=[name, "b", "c"], title=name)], title=name
    ).text

    assert page_data(text)["items"][0]["panels"][0]["title"] == r"a\u202eb\x1b[2J"
    assert not {"\u202e", "\x1b"} & set(text)


def test_the_page_names_no_address_and_forbids_the_network():
    text = render_html(None, [Panel(cloud()[0])]).text

    assert Tags(text).addresses == []
    assert "default-src 'none'" in text
    assert not re.search(r"https?://|//cdn|import\s*\(|fetch\(|XMLHttpRequest", text)


def test_a_notebook_shows_the_page_in_a_frame_of_its_own():
    page = render_html(None, [Panel(cloud()[0], title=HOSTILE)])
    shown = page._repr_html_()

    assert Tags(shown).names == ["iframe"]
    assert 'sandbox="allow-scripts allow-downloads"' in shown
    with pytest.raises(ValueError, match="not written to a file"):
        open(page)  # noqa: SIM115 - it is not opened


def test_a_gallery_stands_worst_first_and_unknown_last():
    panels = (Panel(cloud()[0]),)
    items = [Item("a", panels, score=0.9), Item("b", panels), Item("c", panels, b"png", 0.0, "Cup")]
    data = page_data(render_gallery(None, items).text)

    assert [item["title"] for item in data["items"]] == ["c", "a", "b"]
    assert data["items"][0]["thumbnail"] == "data:image/png;base64,cG5n"


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: render_html(None, []), ValueError, "at least one Panel"),
        (lambda: render_html(None, [np.zeros((3, 3))]), TypeError, "ndarray is not a Panel"),
        (lambda: render_html(None, [Panel(np.zeros((1, 3)))], up="x"), ValueError, "use 'y' or 'z'"),
        (lambda: render_gallery(None, []), ValueError, "at least one Item"),
    ],
)
def test_pages_that_cannot_be_made_say_why(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.slow
def test_a_million_points_become_a_page_in_a_second():
    generator = np.random.default_rng(0)
    points = generator.normal(size=(1_000_000, 3)).astype(np.float32)
    labels = generator.integers(0, 6, len(points))

    def seconds():
        began = time.process_time()  # the machine may be busy with other things
        render_html(None, [Panel(points, labels=labels, legend=Legend({k: str(k) for k in range(6)}))])
        return time.process_time() - began

    assert min(seconds() for _ in range(3)) < 1.0
