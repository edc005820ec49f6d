import csv
import json
import statistics

import pytest

from pcl_clora.errors import UserValueError
from pcl_clora.report import ReportError, make_table
from pcl_clora.report.tables import protocol_name


def cells(table):
    return [dict(zip(table.header, row.cells(), strict=True)) for row in table.rows]


def test_seeds_of_one_method_become_one_row_with_mean_and_deviation(write_run):
    accuracies = [0.5, 0.6, 0.64]
    folders = [write_run(f"r{seed}", seed=seed, oa=oa) for seed, oa in enumerate(accuracies)]
    (row,) = make_table(folders[::-1]).rows
    mean, deviation = row.metric("oa")
    assert row.seeds == (0, 1, 2)
    assert mean == pytest.approx(statistics.mean(accuracies))
    assert deviation == pytest.approx(statistics.stdev(accuracies))
    assert cells(make_table(folders))[0]["OA"] == "58.00 +- 7.21"


def test_a_single_seed_has_no_deviation(write_run):
    (row,) = cells(make_table([write_run("a", oa=0.875)]))
    assert row["OA"] == "87.50"
    assert row["seeds"] == "0"


def test_methods_stand_side_by_side_with_all_they_cost(write_run):
    folders = [write_run(method, method=method) for method in ("linear_probe", "clora", "full")]
    rows = cells(make_table(folders))
    assert [row["method"] for row in rows] == ["linear_probe", "clora", "full"]
    clora = rows[1]
    assert clora["trained params"] == "500"
    assert clora["adapter file"] == "2.0 KiB"
    assert clora["train time"] == "12.5 s"
    assert clora["protocol"] == "honest, last epoch"
    assert clora["augmentation"] == "scale_shift"
    assert float(clora["GMACs executed"]) > float(clora["GMACs"]) > 0


def test_rows_of_one_method_are_told_apart_by_the_settings_that_differ(write_run):
    first = write_run("a", changes={"adapter": {"method": "clora", "rank": 2}})
    second = write_run("b", changes={"adapter": {"method": "clora", "rank": 4}})
    other = write_run("c", method="full")
    labels = [row.label for row in make_table([first, second, other]).rows]
    assert labels == ["clora (adapter.rank=2)", "clora (adapter.rank=4)", "full"]


def test_the_place_of_the_data_makes_no_row_of_its_own(write_run):
    data = {"name": "procedural", "classes": ["bed", "chair", "desk", "sofa", "table"], "num_points": 64}
    here = write_run("a", seed=0, changes={"data": {**data, "root": "/here"}})
    there = write_run("b", seed=1, changes={"data": {**data, "root": "/there"}})
    assert len(make_table([here, there]).rows) == 1


@pytest.mark.parametrize(
    ("changes", "result_changes", "message"),
    [
        ({"protocol": {"name": "paper"}}, {}, "protocols differ"),
        ({"protocol": {"votes": 10}}, {}, "votes: 1 -> 10"),
        ({"data": {"name": "folder", "num_points": 64}}, {}, "data sets differ"),
        (
            {},
            {"data": {"name": "procedural", "num_train": 20, "num_test": 11, "num_points": 64}},
            "num_test: 10 -> 11",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(write_run, changes, result_changes, message):
    other = write_run("b", seed=1, changes=changes, result_changes=result_changes)
    with pytest.raises(ReportError, match=message):
        make_table([write_run("a"), other])


@pytest.mark.parametrize(
    "changes",
    [
        {"protocol": {"name": "honest", "select": "test", "votes": 1, "val_fraction": 0.0}},
        {"best": {"epoch": 3, "selected_on": "test"}},
    ],
)
def test_a_number_chosen_on_test_is_not_printed_as_honest(write_run, changes):
    with pytest.raises(ReportError, match="chosen on the test set"):
        make_table([write_run("a", result_changes=changes)])


def test_a_number_chosen_on_test_is_printed_as_paper(write_run):
    best = {"best": {"epoch": 1, "selected_on": "test"}}
    run = write_run("a", changes={"protocol": {"name": "paper"}}, result_changes=best)
    assert cells(make_table([run]))[0]["protocol"] == "paper, best on test"


def test_one_run_twice_is_refused(write_run):
    with pytest.raises(ReportError, match="same settings and seed"):
        make_table([write_run("a"), write_run("b")])


def shots(seed, shots_seed):
    data = {"name": "procedural", "classes": ["bed", "chair", "desk", "sofa", "table"], "num_points": 64}
    return {"data": {**data, "shots": 2, "shots_seed": shots_seed}}


def test_seeds_that_draw_their_own_training_clouds_become_one_row(write_run):
    folders = [write_run(f"r{seed}", seed=seed, changes=shots(seed, seed)) for seed in (0, 1, 2)]
    (row,) = make_table(folders).rows
    assert row.seeds == (0, 1, 2)
    assert row.label == "clora"
    assert row.new_shots
    assert cells(make_table(folders))[0]["seeds"] == "0 1 2, own clouds"


def test_fixed_training_clouds_and_new_ones_are_not_averaged(write_run):
    fixed = [write_run(f"f{seed}", seed=seed, changes=shots(seed, 0)) for seed in (0, 1)]
    new = [write_run(f"n{seed}", seed=seed, changes=shots(seed, seed)) for seed in (3, 4)]
    rows = make_table([*fixed, *new]).rows
    assert [row.seeds for row in rows] == [(0, 1), (3,), (4,)]
    names = ["clora", "clora (data.shots_seed=3)", "clora (data.shots_seed=4)"]
    assert [row.label for row in rows] == names
    assert not any(row.new_shots for row in rows)


def test_one_seed_with_two_choices_of_training_clouds_makes_two_rows(write_run):
    folders = [write_run(f"r{choice}", changes=shots(0, choice)) for choice in (0, 1)]
    assert [row.seeds for row in make_table(folders).rows] == [(0,), (0,)]


def test_an_unfinished_run_and_a_wrong_folder_are_named(write_run, tmp_path):
    (write_run("a") / "result.json").unlink()
    with pytest.raises(ReportError, match="not finished"):
        make_table([tmp_path / "a"])
    with pytest.raises(ReportError, match="not the folder of a run"):
        make_table([tmp_path / "nowhere"])
    with pytest.raises(ReportError, match="at least one"):
        make_table([])


def test_a_torn_result_is_refused(write_run):
    folder = write_run("a")
    (folder / "result.json").write_text('{"seed": ')
    with pytest.raises(ReportError, match="not complete json"):
        make_table([folder])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "of a list, expected an object"),
        ("null", "expected an object"),
        ("[" * 100_000, "nested too deeply|not complete json"),
        ("{}", "name is missing"),
    ],
)
def test_a_result_of_another_shape_is_refused(write_run, text, message):
    folder = write_run("a")
    (folder / "result.json").write_text(text)
    with pytest.raises(ReportError, match=message) as caught:
        make_table([folder])
    assert str(folder / "result.json") in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": "0"}, "seed is '0', expected integer"),
        ({"seed": True}, "seed is True"),
        ({"task": 3}, "task is 3, expected string"),
        ({"protocol": None}, "protocol is None"),
        ({"protocol": {"name": "honest"}}, r"protocol\.select is missing; protocol\.votes is missing"),
        ({"best": []}, r"best is \[\]"),
        ({"params": {"trainable": "many"}}, r"params\.trainable is 'many'"),
        ({"params": {"trainable": 1, "total": -1}}, r"params\.total is -1"),
        ({"versions": [1]}, r"versions is \[1\]"),
        ({"metrics": {"loss": 1.0, "macc": 0.5}}, r"metrics\.oa is missing"),
        ({"metrics": {"loss": 1.0, "oa": 0.5, "macc": [0.5]}}, r"metrics\.macc is \[0\.5\]"),
        ({"metrics": {"loss": 1.0, "oa": 0.5, "macc": 0.5, "confusion": [[1]]}}, "confusion has 1 rows"),
        ({"metrics": {"loss": 1.0, "oa": 0.5, "macc": 0.5, "per_class": {"a": "x"}}}, r"per_class\.a is 'x'"),
        ({"adapter_bytes": "big"}, "adapter_bytes is 'big'"),
        ({"evaluation": 3}, "evaluation is 3"),
        ({"name": "x" * 1000, "seed": "y" * 1000}, r"seed is 'y+\.\.\., expected"),
    ],
)
def test_a_result_with_other_values_is_refused_with_the_key_and_what_was_found(write_run, changes, message):
    folder = write_run("a", result_changes=changes)
    with pytest.raises(ReportError, match=message) as caught:
        make_table([folder])
    assert str(folder / "result.json") in str(caught.value)
    assert "train again" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"seed": 7}, "seed: 0 -> 7"),
        ({"method": "full"}, "method: 'clora' -> 'full'"),
        ({"epochs": 300}, "epochs: 2 -> 300"),
        ({"config_hash": "0" * 12}, "config_hash: "),
        ({"task": "part_segmentation"}, "task: 'classification' -> 'part_segmentation'"),
    ],
)
def test_settings_and_result_of_two_runs_are_refused(write_run, changes, difference):
    with pytest.raises(ReportError, match=f"not of one run.*{difference}"):
        make_table([write_run("a", result_changes=changes)])


@pytest.mark.parametrize("name", ["result.json", "config.yaml", "metrics.jsonl", "env.json"])
def test_a_table_is_not_written_over_what_a_run_is(write_run, tmp_path, name):
    folder = write_run("a")
    (folder / "env.json").write_text("{}")
    before = (folder / name).read_bytes()
    (tmp_path / "t.json").symlink_to(folder / name)
    for out in (folder / name, tmp_path / "t.json"):
        with pytest.raises(UserValueError, match=r"over the input|use \.md, \.csv or \.json"):
            make_table([folder]).write(out)
    assert (folder / name).read_bytes() == before


def test_a_name_is_text_in_every_table(write_run, tmp_path):
    rank = {"adapter": {"method": "clora", "rank": 2}}
    augment = {"data": {"name": "folder", "root": "/d/<b>|x", "num_points": 64}}
    table = make_table([write_run("a", changes={**augment, **rank}), write_run("b", changes=augment)])
    table.write(tmp_path / "t.md")
    page = (tmp_path / "t.md").read_text()
    assert page.startswith("folder (&lt;b&gt;\\|x)")


def test_a_table_is_written_as_markdown_csv_and_json(write_run, tmp_path):
    table = make_table([write_run("a"), write_run("b", method="full")])
    for ending in ("md", "csv", "json"):
        table.write(tmp_path / f"t.{ending}")
    lines = (tmp_path / "t.md").read_text().splitlines()
    assert lines[2].startswith("| method | OA |")
    with (tmp_path / "t.csv").open() as file:
        assert [row["protocol"] for row in csv.DictReader(file)] == ["honest, last epoch"] * 2
    read = json.loads((tmp_path / "t.json").read_text())
    assert [row["oa"] for row in read["rows"]] == [0.5, 0.5]
    assert read["rows"][0]["macs_published"] > 0


def test_another_ending_is_refused(write_run, tmp_path):
    with pytest.raises(ReportError, match=r"use \.md, \.csv or \.json"):
        make_table([write_run("a")]).write(tmp_path / "t.xlsx")


@pytest.mark.parametrize(
    ("select", "votes", "text"),
    [("last", 1, "honest, last epoch"), ("validation", 10, "honest, best on validation, 10 votes")],
)
def test_protocols_are_named(select, votes, text):
    assert protocol_name({"name": "honest", "select": select, "votes": votes}) == text


VOTED = {"protocol": {"votes": 10}}


def test_votes_say_what_they_cost(write_run):
    spent = {"evaluation": {"passes_per_cloud": 10, "seconds": 3.5}}
    table = make_table([write_run("a", changes=VOTED, result_changes=spent)])
    (row,) = cells(table)
    assert row["test time"] == "3.5 s"
    assert float(row["GMACs, all votes"]) == pytest.approx(10 * float(row["GMACs executed"]), abs=1e-3)
    assert "10 forward passes a cloud" in table.title
    assert table.as_json()["rows"][0]["passes_per_cloud"] == 10


def test_results_from_before_the_time_was_taken_are_read(write_run):
    assert cells(make_table([write_run("a", changes=VOTED)]))[0]["test time"] == "?"


def test_without_votes_there_is_no_column_for_them(write_run):
    assert "test time" not in make_table([write_run("a")]).header


@pytest.mark.parametrize("changes", [{"seed": 1}, {"noise": 0.01}])
def test_other_test_clouds_of_the_same_number_are_refused(write_run, changes):
    data = {"name": "procedural", "classes": ["bed", "chair", "desk", "sofa", "table"], "num_points": 64}
    here = write_run("a", method="full", changes={"data": data})
    there = write_run("b", changes={"data": {**data, **changes}})
    with pytest.raises(ReportError, match=rf"data\.{next(iter(changes))}: "):
        make_table([here, there])


def test_a_substitute_is_named_by_its_folder(write_run):
    data = {"name": "scanobjectnn", "variant": "obj_only", "root": "data/lidar_scans", "num_points": 64}
    assert make_table([write_run("a", changes={"data": data})]).title.startswith(
        "scanobjectnn obj_only (lidar_scans), 20 training"
    )
