"""The pictures of a study: names that meet nobody, lines over a setting, a file for every format."""

import itertools

import numpy as np
import pytest

from pcl_clora.compare.plots import (
    draw_corruptions,
    draw_curves,
    draw_front,
    draw_line,
    log_ticks,
    place_labels,
)
from pcl_clora.compare.results import read_results
from pcl_clora.io import read_json, write_json
from pcl_clora.report.pictures import new_figure
from tests.support.study_cases import made_study

pytest.importorskip("matplotlib")


def names_in(axes):
    return [text.get_text() for text in axes.texts]


def test_no_name_lies_on_another_however_close_the_marks_are():
    from matplotlib.text import Text

    figure = new_figure(7, 5)
    axes = figure.subplots()
    generator = np.random.default_rng(0)
    marks = [(*generator.normal(size=2) / (1 + number % 3), f"method_{number}") for number in range(30)]
    axes.plot(*zip(*[mark[:2] for mark in marks], strict=True), "o")
    place_labels(axes, marks)
    figure.canvas.draw()
    boxes = [Text.get_window_extent(text).padded(-1) for text in axes.texts]  # without the line to its mark
    assert len(boxes) == 30
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    assert all(axes.get_window_extent().padded(1).contains(box.x0, box.y0) for box in boxes)


def test_a_front_shows_every_row_with_its_bars_and_joins_what_nothing_beats(tmp_path):
    results = read_results(made_study(tmp_path, {"small": 0.6, "poor": 0.5, "large": 0.8}))
    axes = draw_front(results, lambda row: row.sizes["without_head"], "parameters").axes[0]
    assert names_in(axes) == ["small", "poor", "large"]
    assert len(axes.containers) == 3  # marks with bars
    front = axes.lines[-1].get_xdata()
    assert list(front) == [1000, 3000]
    assert [label.get_text() for label in axes.get_xticklabels()] == [
        "1,000",
        "1,500",
        "2,000",
        "2,500",
        "3,000",
    ]


@pytest.mark.parametrize(
    ("values", "marks"),
    [
        ([0, 30_720, 3e6], [0, 1e5, 1e6]),
        ([30_720, 33_792], [30_000, 31_000, 32_000, 33_000, 34_000]),
        ([0, 0], [0]),
        ([69.7, 118, 123], [60, 80, 100, 120, 140]),
    ],
)
def test_marks_of_an_axis_are_round_however_narrow_it_is(values, marks):
    assert log_ticks(values) == marks


def test_a_line_goes_over_the_values_of_a_setting(tmp_path):
    folder = made_study(
        tmp_path, {"clora,shots=5": 0.5, "clora,shots=10": 0.6, "lora,shots=5": 0.4, "lora,shots=10": 0.5}
    )
    content = read_json(folder / "study.json")
    for name, row in content["rows"].items():
        row["varied"] = {"data.shots": int(name.partition("=")[2])}
    write_json(folder / "study.json", content)
    results = read_results(folder)
    axes = draw_line(results, "data.shots", "shots").axes[0]
    assert axes.get_legend_handles_labels()[1] == ["clora", "lora"]
    assert [label.get_text() for label in axes.get_xticklabels()] == ["5", "10"]
    assert draw_line(results, "adapter.rank", "rank") is None


def test_a_heat_map_has_a_cell_for_every_row_and_corruption_and_curves_a_band(tmp_path):
    results = read_results(made_study(tmp_path, {"a": 0.6, "b": 0.5}))
    assert len(names_in(draw_corruptions(results).axes[0])) == 2
    curves = draw_curves(results).axes[0]
    assert len(curves.lines) == len(curves.collections) == 2
