import pytest
import torch
from torch import nn

from pcl_clora.report import latency
from tests.support.report_cases import make_tiny


def test_runs_are_timed_turn_by_turn_and_the_warmup_does_not_count(monkeypatch):
    clock = {"now": 0.0}
    order: list[str] = []
    steps = {"a": iter([9.0, 1.0, 2.0, 7.0]), "b": iter([9.0, 4.0, 4.0, 5.0])}
    monkeypatch.setattr(latency.time, "perf_counter", lambda: clock["now"])

    def run(name: str) -> None:
        order.append(name)
        clock["now"] += next(steps[name])

    medians = latency.interleaved_seconds({"a": lambda: run("a"), "b": lambda: run("b")}, repeats=3)
    assert order == ["a", "b"] * 4
    assert medians == {"a": pytest.approx(2.0), "b": pytest.approx(4.0)}


def test_latency_is_per_cloud(monkeypatch):
    monkeypatch.setattr(latency, "interleaved_seconds", lambda runs, *rest: dict.fromkeys(runs, 0.8))
    assert latency.model_latency_ms({"m": nn.Identity()}, torch.zeros(4, 8, 3), repeats=1) == {"m": 200.0}


def test_sampling_takes_some_of_the_time_of_a_forward_pass():
    model, points = make_tiny(), torch.rand(2, 128, 3)
    share = latency.grouping_latency_ms(model, points, repeats=1)
    assert share is not None
    assert share > 0
