"""The tables of a study: what stands in them, what is marked, shown as failed, or refused."""

import csv
import json
import re

import numpy as np
import pytest

from pcl_clora.compare.advice import advise, overrides_of
from pcl_clora.compare.corrupted import add_right
from pcl_clora.compare.cost import measure_cost
from pcl_clora.compare.folder import StudyFolder
from pcl_clora.compare.merge import merge_studies
from pcl_clora.compare.results import read_results
from pcl_clora.compare.statistics import paired_difference
from pcl_clora.compare.study import Run
from pcl_clora.compare.summary import put_into, report, write_study
from pcl_clora.compare.tables import table_lines
from pcl_clora.config import ConfigError
from pcl_clora.engine.run.lock import RunLock, RunLockedError
from pcl_clora.io import DataError, read_json, write_json
from pcl_clora.report.shapes import ReportError
from tests.support.study_cases import FAILING, carry_out, made_study, tiny_study

ENDS = ("mean", "low", "high", "seeds")
SKILLS = {"base": 0.70, "level": 0.71, "better": 0.80, "worse": 0.55}


@pytest.fixture
def folder(tmp_path):
    return made_study(tmp_path, SKILLS)


def by_name(results):
    return {line.values["row"]: line for line in table_lines(results)}


def test_means_deviations_and_differences_are_those_of_the_records(folder):
    lines = by_name(read_results(folder))
    values = [
        read_json(folder / "rows" / "better" / f"seed{seed}.json")["metrics"]["oa"] for seed in range(3)
    ]
    better = lines["better"].values
    assert better["oa_mean"] == pytest.approx(np.mean(values))
    assert better["oa_sd"] == pytest.approx(np.std(values, ddof=1), abs=1e-12)
    assert better["difference_mean"] == pytest.approx(better["oa_mean"] - lines["base"].values["oa_mean"])
    assert better["difference_low"] < better["difference_mean"] < better["difference_high"]
    assert lines["base"].values["difference_mean"] is None
    assert better["error_mean modelnet40_c.gaussian, 3"] == pytest.approx(1.1 - better["oa_mean"])
    mean, deviation = (better[f"family_error_{key} modelnet40_c"] for key in ("mean", "sd"))
    assert (mean, deviation) == pytest.approx((1.1 - better["oa_mean"], better["oa_sd"]))
    assert (better["params_trained"], better["params_without_head"]) == (3060, 3000)


def test_rows_that_are_not_told_apart_from_the_best_are_marked(tmp_path):
    lines = by_name(read_results(made_study(tmp_path, {"a": 0.80, "b": 0.79, "c": 0.60})))
    assert [name for name, line in lines.items() if "oa" in line.near_best] == ["a", "b"]


def test_every_format_is_written_with_plain_numbers_or_marks(folder):
    report(folder)
    rows = list(csv.DictReader((folder / "table.csv").open()))
    content = json.loads((folder / "table.json").read_text())
    assert float(rows[2]["oa_mean"]) == content["rows"][2]["oa_mean"]
    assert rows[2]["oa_near_best"] == "1"
    assert "**" in (folder / "table.md").read_text()
    latex = (folder / "table.tex").read_text()
    assert all(
        rule in latex for rule in (r"\toprule", r"\midrule", r"\bottomrule", r"Made numbers \& <more>")
    )
    assert r"\textbf{" in latex
    assert {path.suffix for path in (folder / "plots").iterdir()} == {".pdf", ".png", ".svg"}


def add_bits(folder, row, seed, share, seed_of_clouds=0):
    """Say of 200 clouds which were right, the first ones in every row."""
    right = np.arange(200) < 200 * share
    path = folder / "rows" / row / f"seed{seed}.corrupted.safetensors"
    add_right(path, f"{row}/seed{seed}", seed_of_clouds, "modelnet40_c.gaussian, 3", right)
    return right


def test_errors_under_corruption_are_compared_cloud_by_cloud_where_both_rows_know_every_cloud(folder):
    before = by_name(read_results(folder))["better"].values
    assert not any("error_difference" in key for key in before)  # of runs of an older version
    wrong = {
        row: ~np.stack([add_bits(folder, row, seed, share - 0.1 * seed) for seed in seeds])
        for row, seeds, share in (("base", (0, 1, 2), 0.7), ("better", (0, 1), 0.8))
    }
    report(folder)
    lines = by_name(read_results(folder))
    found = {end: lines["better"].values[f"family_error_difference_{end} modelnet40_c"] for end in ENDS}
    alone = paired_difference(wrong["better"].astype(float), wrong["base"][:2].astype(float))
    assert found == {end: getattr(alone, end) for end in ENDS}
    assert found["mean"] == pytest.approx(-0.1)
    assert found["seeds"] == 2
    assert found["high"] < 0
    assert lines["worse"].values["family_error_difference_mean modelnet40_c"] is None
    table = (folder / "table.md").read_text().partition("## Error under corruption")[2]
    rows = [line for line in table.splitlines() if line.startswith("|")]
    assert rows[0].endswith(" | mean of 1 of modelnet40_c | modelnet40_c against base |")
    assert "| -10.00 \\[-" in next(row for row in rows if row.startswith("| better"))
    assert next(row for row in rows if row.startswith("| worse")).endswith("| - |")
    assert "$-$10.00 [$-$" in (folder / "table.tex").read_text()


@pytest.mark.parametrize(("run", "seed", "message"), [("base/seed1", 0, "is not of base/seed0"), ("", 1, "")])
def test_bits_of_another_run_are_refused_and_those_of_another_seed_left_out(folder, run, seed, message):
    path = folder / "rows" / "base" / "seed0.corrupted.safetensors"
    add_right(path, run or "base/seed0", seed, "modelnet40_c.gaussian, 3", np.ones(200, bool))
    if message:
        with pytest.raises(DataError, match=message):
            read_results(folder)
    else:
        assert read_results(folder).row("base").right[0] == {}


def test_latex_has_what_the_rows_cost_in_a_table_of_its_own_with_a_dash_where_nothing_was_measured(folder):
    latency = {"unmerged": 4.5, "merged": 3.25}
    row = {"memory_mib": {"training_step": 12.34}, "step_ms": 56.789, "latency_ms": latency}
    made = {"precision": "float32", "processor": "a_b", "threads": 1}
    write_json(folder / "cost.json", {"rows": {"level": row | made}})
    report(folder)
    latex = (folder / "table.tex").read_text()
    tables = re.findall(r"\\begin\{tabular\}\{(l)(r+)\}\n\\toprule\n(.*?)\\bottomrule", latex, flags=re.S)
    for left, right, body in tables:
        rows = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert {len(line.split(" & ")) for line in rows} == {len(left + right)}
        assert len(rows) == 1 + len(SKILLS)
    cost = tables[1][2]
    assert r"level & 2,060 & 2,000 & 7.8 KiB & 0.100 & 0.100 & 0.100 & 12.3 & 56.79 & 4.50 & 3.25 \\" in cost
    assert r"base & 1,060 & 1,000 & 3.9 KiB & 0.100 & 0.100 & 0.100 & -- & -- & -- & -- \\" in cost
    assert r"Memory and times: float32; a\_b; threads 1." in latex


def test_runs_of_different_precision_are_never_averaged(folder):
    path = folder / "rows" / "base" / "seed1.json"
    write_json(path, {**read_json(path), "precision": "bfloat16"})
    lines = by_name(read_results(folder))
    assert lines["base (float32)"].values["n"] == 2
    assert lines["base (bfloat16)"].values["n"] == 1
    assert lines["base (bfloat16)"].values["precision"] == "bfloat16"


def test_a_row_is_tested_against_the_baseline_of_its_own_precision(folder):
    for name, seed in (("base", 1), ("better", 1)):
        path = folder / "rows" / name / f"seed{seed}.json"
        write_json(path, {**read_json(path), "precision": "bfloat16"})
    lines = by_name(read_results(folder))
    assert lines["better (bfloat16)"].values["difference_to"] == "base (bfloat16)"
    assert lines["better (float32)"].values["difference_to"] == "base (float32)"


def test_a_choice_is_told_while_the_study_goes_on(folder):
    content = read_json(folder / "study.json")
    choice = content["rows"]["level"]["choice"]
    write_json(
        folder / "study.json", {**content, "rows": {"level": {**content["rows"]["level"], "choice": None}}}
    )
    write_json(folder / "rows" / "level" / "choice.json", {**choice, "value": 0.5})
    assert table_lines(read_results(folder))[0].values["chosen"] == 0.5


def test_a_difference_says_over_how_many_seeds_it_is(folder):
    (folder / "rows" / "better" / "seed2.json").unlink()
    better = by_name(read_results(folder))["better"].values
    assert (better["n"], better["difference_seeds"], better["difference_ahead"]) == (2, 2, 2)


def test_a_failed_row_is_shown_as_failed_and_never_dropped(tmp_path):
    rows = {name: row for name, row in FAILING["rows"].items() if name != "lora"}
    study = tiny_study(tmp_path, choose=None, seeds=[0], rows=rows)
    carry_out(study, tmp_path / "out")
    write_study(study, StudyFolder(tmp_path / "out"))
    report(tmp_path / "out")
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| broken | 0 | - | - | - | - | - | - | failed: seed0 |" in table
    assert r"broken (failed) & 0 & -- & --" in (tmp_path / "out" / "table.tex").read_text()
    assert "* broken, seed0: failed: " in table
    assert [row["row"] for row in json.loads((tmp_path / "out" / "table.json").read_text())["rows"]][
        -1
    ] == "broken"


def test_a_study_of_which_every_run_failed_has_its_table_too(tmp_path):
    folder = made_study(tmp_path, {"a": 0.7}, seeds=1)
    for path in (folder / "rows" / "a").iterdir():
        path.unlink()
    write_json(folder / "rows" / "a" / "seed0.failed.json", {"run": "a/seed0", "error": "no memory"})
    report(folder)
    assert "* a, seed0: failed: no memory" in (folder / "table.md").read_text()
    assert "a (failed) & 0 & --" in (folder / "table.tex").read_text()
    assert "failed: seed0" in (folder / "index.html").read_text()


def test_a_row_without_a_run_is_refused_by_name_or_shown_on_request(folder):
    for path in (folder / "rows" / "level").iterdir():
        path.unlink()
    with pytest.raises(ReportError, match="No run of row 'level'"):
        report(folder)
    assert by_name(read_results(folder, partial=True))["level"].values["state"] == "3 missing"
    with pytest.raises(ReportError, match="No run of row 'level'"):
        read_results(folder, partial=True).row("level")
    with pytest.raises(ReportError, match="did you mean 'level'"):
        read_results(folder, partial=True).row("lvl")
    with pytest.raises(ReportError, match="did you mean 'level'"):
        report(folder, partial=True, baseline="lvl")


def test_a_folder_without_a_study_is_refused(tmp_path):
    with pytest.raises(ReportError, match="holds no study"):
        report(tmp_path)


def test_advice_is_the_cheapest_row_that_is_not_told_apart_from_the_best(tmp_path):
    results = read_results(made_study(tmp_path, {"small": 0.79, "large": 0.80, "poor": 0.5}))
    found = {advice.budget: advice for advice in advise(results)}
    anything = found["any number of parameters"]
    assert (anything.best.name, anything.cheapest.name, anything.within) == ("large", "small", 3)
    assert overrides_of(results, anything.best) == "optim.lr=0.002"


def test_a_page_gets_the_rows_that_are_there_and_names_the_others(folder):
    for path in (folder / "rows" / "level").iterdir():
        path.unlink()
    page = "# P\n<!-- study made: begin (how) -->\nold\n<!-- study made: end -->\nrest\n"
    renewed = put_into(page, read_results(folder, partial=True))
    assert "old" not in renewed
    assert renewed.endswith("Not computed yet (1 of 4 rows): level.\n\n<!-- study made: end -->\nrest\n")
    header, _, base, better, worse = re.findall(r"^\|.*", renewed, flags=re.M)
    assert header.startswith("| row | n | OA | mAcc | against base | seeds ahead | optim.lr | without head |")
    assert "| **80.00 +- " in better
    assert (base.count(" | "), worse.count(" | ")) == (header.count(" | "),) * 2
    with pytest.raises(ValueError, match="no lines '<!-- study made: begin'"):
        put_into("# P\n", read_results(folder, partial=True))


def test_asked_pairs_are_compared(tmp_path):
    settings = {"pairs": [["better", "worse"], ["better", "level"]], "rows": {}}
    report(made_study(tmp_path, SKILLS, settings=settings))
    pairs = json.loads((tmp_path / "table.json").read_text())["pairs"]
    assert pairs[0]["low"] > 0
    assert (pairs[0]["row"], pairs[0]["against"], pairs[0]["seeds"]) == ("better", "worse", 3)
    assert "## Asked pairs" in (tmp_path / "table.md").read_text()


def test_parts_are_merged_and_two_runs_of_one_name_are_refused(tmp_path):
    whole = made_study(tmp_path / "a", SKILLS)
    made_study(tmp_path / "b", SKILLS)
    for part, row in (("a", "level"), ("b", "better")):
        for path in (tmp_path / part / "rows" / row).iterdir():
            path.unlink()
    merge_studies(tmp_path / "out", [tmp_path / "a", tmp_path / "b"])
    assert {row.state for row in read_results(tmp_path / "out").rows} == {"complete"}
    other = whole / "rows" / "base" / "seed0.json"
    write_json(other, {**read_json(other), "seed": 9})
    with pytest.raises(ConfigError, match=r"base/seed0.json(.|\n)*different files of one run"):
        merge_studies(tmp_path / "new", [tmp_path / "a", tmp_path / "b"])
    assert not (tmp_path / "new").exists()


def test_parts_of_another_base_are_refused(tmp_path):
    made_study(tmp_path / "a", SKILLS)
    made_study(tmp_path / "b", SKILLS, base={"optim.lr": 0.2})
    with pytest.raises(ConfigError, match=r"another study(.|\n)*optim.lr: 0.1 -> 0.2"):
        merge_studies(tmp_path / "out", [tmp_path / "a", tmp_path / "b"])


def test_cost_is_measured_row_by_row_and_not_while_runs_go_on(tmp_path):
    study, files = tiny_study(tmp_path), StudyFolder(tmp_path / "out")
    files.open(study)
    with RunLock(files.path / "shard-1-of-1"), pytest.raises(RunLockedError):
        measure_cost(study, files, tell=lambda line: None)
    content = measure_cost(study, files, ["lora"], repeats=1, tell=lambda line: None)
    assert content["rows"].keys() == {"lora"}
    assert content["rows"]["lora"]["step_ms"] > 0
    assert content["rows"]["lora"]["memory_mib"]["training_step"] > 0
    assert content["rows"]["lora"]["latency_ms"]["merged"] > 0
    assert content["rows"]["lora"]["precision"] == "float32"
    assert content["rows"]["lora"]["processor"]


def test_a_study_that_ran_is_reported_from_its_small_files_alone(tmp_path):
    study = tiny_study(tmp_path, choose=None, seeds=[0])
    carry_out(study, tmp_path / "out")
    files = StudyFolder(tmp_path / "out")
    write_study(study, files)
    kept = tmp_path / "kept"
    for path in [files.study, *(files.path / "rows").rglob("*.*")]:
        target = kept / path.relative_to(files.path)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    lines = by_name(report(kept) and read_results(kept))
    record, clora = (files.check(study, Run(row, 0)) for row in ("lora", "clora"))
    assert lines["lora"].values["oa_mean"] == record["metrics"]["oa"]
    assert lines["lora"].values["macs_merged"] > 0
    assert lines["clora"].values["value_sade"] == clora["curve"][-1]["value_sade"]
    assert lines["lora"].values["value_sade"] is None
