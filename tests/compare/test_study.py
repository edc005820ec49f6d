"""A study file becomes rows and runs; what no study can be is refused by name."""

import itertools

import pytest

from pcl_clora.compare.runner import parse_shard, shard_rows
from pcl_clora.config import ConfigError
from pcl_clora.errors import UserValueError
from tests.support.study_cases import STUDY, tiny_study


def test_runs_go_seed_by_seed_and_trials_come_before_the_first(tmp_path):
    study = tiny_study(tmp_path)
    assert [str(run) for run in study.runs()] == [
        "lora/trial0.001",
        "lora/trial0.004",
        "lora/seed0",
        "clora/trial0.001",
        "clora/trial0.004",
        "clora/seed0",
        "lora/seed1",
        "clora/seed1",
    ]
    assert [str(run) for run in study.runs(["clora"])] == [
        "clora/trial0.001",
        "clora/trial0.004",
        "clora/seed0",
        "clora/seed1",
    ]


def test_a_row_differs_from_the_base_by_its_settings_and_overrides_come_last(tmp_path):
    study = tiny_study(tmp_path, "optim.batch_size=5")
    assert study.rows["lora"].cfg.adapter.method == "lora"
    assert study.rows["clora"].cfg.adapter == study.base.adapter
    assert study.base.optim.epochs == 1
    assert {row.cfg.optim.batch_size for row in study.rows.values()} == {5}


def test_a_trial_is_judged_on_validation_clouds_and_a_run_that_counts_is_not(tmp_path):
    study = tiny_study(tmp_path)
    trial, *_, last = study.runs(["lora"])
    assert study.settings(trial).protocol.select == "validation"
    assert study.settings(trial).protocol.val_fraction == 0.3
    assert study.settings(trial).optim.lr == 0.001
    assert study.settings(last, 0.004).protocol.select == "last"
    assert study.settings(last, 0.004).optim.lr == 0.004
    assert study.settings(last, 0.004).seed == 1


def test_each_combination_of_values_is_a_row_and_has_its_own_seeds(tmp_path):
    rows = {"clora": {"each": {"adapter.rank": [1, 2], "adapter.num_spaces": [2, 3]}, "seeds": [7]}}
    study = tiny_study(tmp_path, rows=rows)
    assert list(study.rows) == [f"clora,rank={r},num_spaces={e}" for r in (1, 2) for e in (2, 3)]
    assert study.rows["clora,rank=2,num_spaces=3"].cfg.adapter.num_spaces == 3
    assert study.rows["clora,rank=2,num_spaces=3"].varied == {"adapter.rank": 2, "adapter.num_spaces": 3}
    assert study.rows["clora,rank=1,num_spaces=2"].seeds == (7,)


def test_a_row_that_takes_a_choice_has_no_trials_of_its_own(tmp_path):
    rows = {"clora": {}, "wider": {"settings": {"adapter": {"rank": 3}}, "chosen_by": "clora"}}
    runs = [str(run) for run in tiny_study(tmp_path, rows=rows).runs(["wider"])]
    assert runs == ["clora/trial0.001", "clora/trial0.004", "wider/seed0", "wider/seed1"]


LORA = STUDY["rows"]["lora"]
ONE_SPACE = {"adapter": {"num_spaces": 1}}
WRONG = {
    "an unknown setting": (
        {"rows": {"lora": {"settings": {"adapter": {"method": "lora", "rnak": 3}}}}},
        "rank",
    ),
    "the same run": ({"rows": {"lora": LORA, "again": LORA}}, "'lora' and 'again' are the same run"),
    "one space has no pairs": (
        {
            "rows": {
                "one": {"settings": ONE_SPACE},
                "one_sade": {"settings": {"adapter": {"num_spaces": 1, "sade": {"weight": 0.5}}}},
            }
        },
        "'one' and 'one_sade' are the same run",
    ),
    "no such baseline": ({"baseline": "lroa"}, "did you mean 'lora'"),
    "no such pair": ({"pairs": [["lora", "full"]]}, "'full' is not a row"),
    "no such chooser": ({"rows": {"lora": {**LORA, "chosen_by": "cora"}}}, "'cora' is not a row"),
    "a choice of a choice": (
        {"rows": {"lora": {**LORA, "chosen_by": "clora"}, "clora": {"chosen_by": "lora"}}},
        "makes none itself",
    ),
    "a folder's name": ({"rows": {"../lora": LORA}}, "must begin with a letter"),
    "a seed twice": ({"seeds": [1, 1]}, "names a seed twice"),
    "no section choose": ({"choose": None, "rows": {"lora": {**LORA, "choose": [0.1]}}}, "choose"),
    "an unknown corruption": ({"robustness": {"corruptions": ["modelnet40_c.gausian"]}}, "gaussian"),
    "a severity that is not": ({"robustness": {"corruptions": ["sweep"], "severities": [6]}}, "severity 6"),
    "an unknown key": ({"sedes": [1]}, "seeds"),
    "shots that are all": ({"new_shots": True}, "data.shots"),
    "a setting to choose that is not": ({"choose": {"values": [1.0], "setting": "optim.rl"}}, "lr"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_no_study_can_be_is_refused_by_name(tmp_path, name):
    changes, told = WRONG[name]
    with pytest.raises(ConfigError, match=told):
        tiny_study(tmp_path, **changes)


def test_shards_are_all_rows_and_choices_stay_with_what_takes_them(tmp_path):
    rows = {f"r{rank}": {"settings": {"adapter": {"rank": rank}}} for rank in range(1, 6)}
    rows["taker"] = {"settings": {"adapter": {"rank": 9}}, "chosen_by": "r2"}
    study = tiny_study(tmp_path, rows=rows)
    parts = [shard_rows(study, (), (number, 3)) for number in (1, 2, 3)]
    assert sorted(itertools.chain(*parts)) == sorted(rows)
    assert [part for part in parts if "taker" in part] == [part for part in parts if "r2" in part]


@pytest.mark.parametrize("text", ["0/2", "3/2", "2", "a/b", "1/0", "-1/2"])
def test_a_shard_that_is_none_is_refused(text):
    with pytest.raises(UserValueError, match="write it like 2/8"):
        parse_shard(text)
