"""Calibration: the error of torchmetrics, and temperatures that a search finds too."""

import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torchmetrics.functional.classification import multiclass_calibration_error

from pcl_clora.engine.metrics.calibration import (
    ReliabilityMeter,
    cross_fit_temperature,
    fit_temperature,
    measure_calibration,
)


def overconfident(num_clouds=600, num_classes=5, scale=6.0, seed=0):
    """Logits whose best temperature lies near `scale`: labels follow the softmax of logits / scale."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(num_clouds, num_classes, generator=generator)
    label = torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(1)
    return logits * scale, label


@pytest.mark.parametrize("num_bins", [5, 15])
@pytest.mark.parametrize("scale", [0.5, 1.0, 6.0])
def test_the_error_is_that_of_torchmetrics(num_bins, scale):
    logits, label = overconfident(scale=scale)
    oracle = multiclass_calibration_error(
        logits.softmax(-1), label, num_classes=5, n_bins=num_bins, norm="l1"
    )
    assert measure_calibration(logits, label, num_bins=num_bins).ece == pytest.approx(float(oracle), abs=1e-6)


def test_bins_hold_all_clouds_and_empty_ones_say_nothing():
    logits, label = overconfident()
    measured = measure_calibration(logits, label)
    assert sum(measured.count) == len(label)
    empty = [place for place in measured.as_json()["bins"] if place["count"] == 0]
    assert empty  # five classes: no confidence below 0.2
    assert all(place["confidence"] is None and place["accuracy"] is None for place in empty)
    assert measured.nll == pytest.approx(float(F.cross_entropy(logits, label)), rel=1e-6)


@pytest.mark.parametrize("scale", [0.3, 1.0, 6.0])
def test_the_temperature_is_the_one_that_a_search_finds(scale):
    logits, label = overconfident(scale=scale)
    oracle = minimize_scalar(
        lambda power: float(F.cross_entropy(logits.double() / 10**power, label)),
        bounds=(-2, 2),
        method="bounded",
    )
    assert fit_temperature(logits, label) == pytest.approx(10**oracle.x, rel=1e-3)


def test_where_all_are_right_the_temperature_stops_at_its_bound():
    logits = torch.eye(3) * 4
    assert fit_temperature(logits, torch.arange(3)) == pytest.approx(1e-3)


def test_halves_scaled_by_one_another_are_better_calibrated_and_decide_alike():
    logits, label = overconfident()
    scaled, temperatures = cross_fit_temperature(logits, label)
    assert torch.equal(scaled.argmax(-1), logits.argmax(-1))
    assert measure_calibration(scaled, label).ece < measure_calibration(logits, label).ece / 2
    assert all(4 < temperature < 9 for temperature in temperatures)


@pytest.mark.parametrize(
    ("logits", "label"), [(torch.zeros(0, 3), torch.zeros(0)), (torch.zeros(2, 3), torch.zeros(3))]
)
def test_what_does_not_fit_is_refused(logits, label):
    with pytest.raises(ValueError, match=r"expected \(n, C\) and \(n,\)"):
        measure_calibration(logits, label.long())


@pytest.mark.parametrize("batch", [1, 7, 600])
def test_bins_that_are_summed_in_batches_are_those_of_all_clouds(batch):
    logits, label = overconfident(scale=2.0)
    meter = ReliabilityMeter("clouds")
    probability, said = logits.double().softmax(-1).max(-1)
    for part in torch.arange(len(label)).split(batch):
        meter.update(probability[part], said[part] == label[part])
    summed, whole = meter.reliability(), measure_calibration(logits, label)
    assert summed.count == whole.count
    assert summed.accuracy == pytest.approx(whole.accuracy, nan_ok=True)
    assert summed.ece == pytest.approx(whole.ece, abs=1e-12)
    assert summed.as_json()["bins"][3] == {"count": whole.count[3], **whole.as_json()["bins"][3]}


def test_bins_without_predictions_say_so():
    with pytest.raises(ValueError, match="No prediction was counted"):
        ReliabilityMeter("points").reliability()
