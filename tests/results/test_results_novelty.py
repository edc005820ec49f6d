"""The figures of docs/prediction.md are those of results/novelty."""

import json
from pathlib import Path

import pytest

from pcl_clora.engine.novelty import SCORES
from pcl_clora.engine.novelty.calibration import SCORE

ROOT = Path(__file__).resolve().parents[2]
STUDIES = ("infomr", "modelnet40_left_out")


def results(name):
    return json.loads((ROOT / "results" / "novelty" / f"{name}.json").read_text())


@pytest.mark.parametrize("score", SCORES)
def test_the_page_shows_the_figures_of_the_files(score):
    page = (ROOT / "docs" / "prediction.md").read_text()
    line = next(line for line in page.splitlines() if line.startswith(f"| `{score}`"))
    told = [float(cell) for cell in line.split("|")[2:-1]]

    expected = []
    for study in STUDIES:
        numbers = results(study)["scores"][score]
        shares = [100 * numbers["flagged_novel"], 100 * numbers["flagged_known"]]
        expected += [round(numbers["auroc"], 3), *(round(share, 1) for share in shares)]
    assert told == pytest.approx(expected, abs=0.051)


def test_the_score_in_use_is_the_best_over_both_studies():
    mean = {score: sum(results(study)["scores"][score]["auroc"] for study in STUDIES) for score in SCORES}

    assert max(mean, key=mean.get) == SCORE


@pytest.mark.parametrize("study", STUDIES)
def test_no_novel_class_is_known(study):
    found = results(study)

    assert found["novel"]["clouds"] > 200
    assert not {"chair", "table", "sofa"} & set(found["novel"]["classes"])
