import numpy as np
import pytest
import torch

from pcl_clora.vis import Legend, Panel

POINTS = np.arange(12, dtype=np.float32).reshape(4, 3)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"points": np.zeros((0, 3))}, "at least one point"),
        ({"points": np.zeros((4, 2))}, r"expected numbers \(N, 3\)"),
        ({"points": np.array([["a", "b", "c"]])}, "expected numbers"),
        (
            {"points": np.array([[0, 0, 0], [0, np.nan, 0]])},
            "1 of 2 points are not finite, the first is point 1",
        ),
        ({"labels": [0, 1, 2]}, "expected 4 integers"),
        ({"labels": [0.0, 1.0, 2.0, 3.0]}, "expected 4 integers"),
        (
            {"labels": [0, 1, 2, 7], "legend": ["a", "b", "c"]},
            "labels 7 are not in the legend, which knows 0, 1, 2",
        ),
        ({"labels": [0, 0, 0, -1], "legend": ["a"]}, "labels -1 are not in the legend"),
        ({"labels": [0, 0, 0, 0], "legend": Legend({0: "a"}, {0: "red"})}, "'red' is not a colour"),
        ({"scalars": {"height": [1, 2]}}, "height: scalars"),
        ({"scalars": {"height": [1, 2, np.inf, 0]}}, "1 scalars are not finite"),
        ({"labels": {"a": [0] * 4}, "scalars": {"a": [0] * 4}}, "share a name"),
        ({"labels": [0] * 4, "show": "truth"}, "show='truth', but the panel has labels"),
        ({"centers": np.full((2, 3), np.inf)}, "centers are not finite"),
    ],
)
def test_a_panel_refuses_what_cannot_be_shown(given, message):
    with pytest.raises(ValueError, match=message):
        Panel(**{"points": POINTS, **given})


@pytest.mark.parametrize("labels", [[5, 9, 5, 6], [-3, 70_000_000, -3, 2], [False, True, True, False]])
def test_labels_keep_their_numbers_whatever_they_are(labels):
    (layer,) = Panel(POINTS, labels=labels).layers

    assert np.array(layer.labels)[layer.index].tolist() == [int(label) for label in labels]
    assert sum(layer.counts) == 4


def test_a_legend_names_labels_that_do_not_occur_and_keeps_their_colours():
    legend = Legend({4: "seat", 5: "leg", 6: "back"}, {5: "#010203"}, {4: 0.5})
    (layer,) = Panel(POINTS, labels=torch.tensor([4, 5, 5, 4]), legend=legend).layers

    assert layer.names == ("seat", "leg", "back")
    assert layer.counts == (2, 2, 0)
    assert layer.colours[1] == "#010203"
    assert layer.ious == (0.5, None, None)
    assert layer.rgb()[1].tolist() == [1, 2, 3]


def test_every_set_of_labels_may_have_its_own_legend():
    panel = Panel(POINTS, labels={"a": [0] * 4, "b": [1] * 4}, legend={"a": ["x"], "b": {1: "y"}})

    assert [layer.names for layer in panel.layers] == [("x",), ("y",)]


@pytest.mark.parametrize(
    ("values", "ends"), [([0.2, 0.9, 0.5, 0.3], (0, 1)), ([-1.0, 3.0, 0.0, 1.0], (-1, 3))]
)
def test_probabilities_are_shown_from_zero_to_one_and_other_numbers_on_their_range(values, ends):
    (layer,) = Panel(POINTS, scalars={"s": values}).layers

    assert (layer.low, layer.high) == ends


def test_more_than_256_labels_take_two_bytes():
    points = np.random.default_rng(0).normal(size=(1000, 3))
    (layer,) = Panel(points, labels=np.arange(1000)).layers

    assert layer.index.dtype == np.uint16
    assert layer.names[999] == "label 999"
