"""The benchmark of a pre-training step times steps that compute the same."""

import pytest

from pcl_clora.bench.pretraining import BASELINE, STEPS, measure, pretraining_lines


@pytest.mark.slow
def test_all_contenders_have_the_same_loss():
    job = {"batch_size": 2, "num_points": 256, "repeats": 1, "budget_s": 1.0}
    (row,) = measure(job)
    losses = {name: step["loss"] for name, step in row["steps"].items()}
    assert losses.keys() == STEPS.keys()
    exact = [losses[name] for name, (_, _, bfloat16) in STEPS.items() if not bfloat16]
    assert exact == pytest.approx([losses[BASELINE]] * len(exact), rel=1e-5)
    assert min(losses.values()) == pytest.approx(losses[BASELINE], rel=0.02)
    assert row["steps"][BASELINE]["ratio"] == 1.0
    lines = pretraining_lines({"rows": [row], **job})
    assert lines[0].startswith(f"{BASELINE}: ")
    assert lines[-1].startswith("generator: ")
