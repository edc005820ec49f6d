"""The benchmark of predictions from files, on a few small ones, in this process."""

import pytest

from pcl_clora.bench import predict


@pytest.fixture
def rows(tmp_path, monkeypatch):
    """What is measured of six files and a small scan."""
    monkeypatch.setattr(
        predict, "in_child", lambda name, job, threads: getattr(predict, name.partition(":")[2])(job)
    )
    return predict.bench_predict(files=6, points=1200, scan_points=20_000, repeats=1)


def test_it_says_shares_and_memory(rows):
    files, scan = rows["rows"]
    read, model = files["reading_ms"], files["model_ms"]
    assert 0 < files["loading_share"] == pytest.approx(read / (read + model))
    assert 0 <= files["waiting_share"] < 1
    assert (files["files"], scan["scan_points"]) == (6, 20_000)
    assert scan["peak_mib"] >= scan["before_mib"] > 50
    assert any("loading is" in line for line in predict.predict_lines(rows))
