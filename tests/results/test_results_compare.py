"""The committed studies: what stands in their tables follows from the files of their runs."""

import csv
import io
import json

import pytest

from pcl_clora.compare import load_study
from pcl_clora.compare.folder import StudyFolder
from pcl_clora.compare.results import read_results
from pcl_clora.compare.study import Run
from pcl_clora.compare.summary import put_into
from pcl_clora.compare.tables import csv_lines, markdown_tables, table_lines
from pcl_clora.engine import load_run_config
from pcl_clora.io import sha256_file
from tests.support.cli_cases import ROOT

STUDIES = sorted(path for path in (ROOT / "results" / "compare").glob("*") if path.is_dir())


def name_of(path):
    return path.name


@pytest.fixture(params=STUDIES, ids=name_of, scope="module")
def study(request):
    """The folder of a study and what it found."""
    return request.param, read_results(request.param, partial=True)


def plain(cell):
    """A cell as the number that it is, or as text."""
    try:
        return float(cell)
    except ValueError:
        return cell


RENEW = "run python tools/list_results.py"


def test_the_tables_are_what_the_files_of_the_runs_say(study):
    folder, results = study
    lines = table_lines(results)
    assert (folder / "table.md").read_text() == markdown_tables(results, lines), RENEW
    kept, now = (
        list(csv.reader(io.StringIO(text)))
        for text in ((folder / "table.csv").read_text(), csv_lines(results, lines))
    )
    assert len(kept) == len(now)
    for one, other in zip(kept, now, strict=True):
        assert list(map(plain, one)) == pytest.approx(list(map(plain, other)), abs=1e-9), RENEW


def test_the_page_has_what_the_study_found(study):
    _, results = study
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert put_into(page, results) == page, RENEW


def test_every_run_says_where_and_how_it_was_made_and_its_outputs_are_its_own(study):
    folder, results = study
    files = StudyFolder(folder)
    for row in results.finished:
        for number, (seed, record) in enumerate(row.records.items()):
            assert record["precision"] in ("float32", "bfloat16")
            assert record["processor"]
            assert record["versions"]["torch"]
            assert len(record["git"]) == 40  # a commit, nothing changed
            assert record["protocol"]["name"] == "honest"
            assert record["best"]["selected_on"] == "last"
            assert sha256_file(files.outputs(Run(row.row, seed))) == record["outputs_sha256"]
            if "oa" in record["metrics"]:
                assert row.scores[number].mean() == pytest.approx(record["metrics"]["oa"])


def test_the_study_is_that_of_its_config(study):
    folder, results = study
    config = load_study(ROOT / "cfgs" / "compare" / f"{folder.name}.yaml")
    assert results.content["settings"] == config.cfg.model_dump(mode="json")
    assert list(results.content["rows"]) == list(config.rows)


@pytest.mark.parametrize("method", ["clora", "lora"])
def test_the_configs_of_20_shots_have_the_learning_rates_that_were_chosen(method):
    results = read_results(ROOT / "results" / "compare" / "study_a_shots20", partial=True)
    cfg = load_run_config(ROOT / "cfgs" / "modelnet40" / f"shots20_{method}.yaml")
    assert cfg.optim.lr == results.row(method).choice["value"]


def test_a_study_with_runs_is_small_enough_to_be_committed(study):
    folder, _ = study
    sizes = [path.stat().st_size for path in folder.rglob("*") if path.is_file()]
    assert max(sizes) < 150_000
    assert not (folder / "runs").exists()


def test_the_ideas_on_the_page_are_those_of_their_file():
    runs = json.loads((ROOT / "results" / "clora_geo_ideas" / "runs.json").read_text())["runs"]
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    section = page.partition("## Ideas to put clora_geo ahead")[2].partition("\n## ")[0]
    table = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")][2:]
    shown = [[cell.strip() for cell in row[2:]] for row in table]
    names = list(dict.fromkeys(run["idea"] for run in runs))
    scores = {(run["idea"], run["seed"]): f"{100 * run['validation_oa']:.1f}" for run in runs}
    assert shown == [[scores.get((name, seed), "") for seed in (0, 1)] for name in names]
    plain = scores[names[0], 0], scores[names[0], 1]
    assert all(score < plain[seed] for (name, seed), score in scores.items() if name != names[0])
