"""`pcl-clora fewshot`: all folds, their mean and deviation, and going on."""

import json
import statistics

import pytest

from pcl_clora.config import ConfigError
from pcl_clora.engine import Trainer
from pcl_clora.engine.run.checkpoint import CheckpointError
from pcl_clora.io import DataError
from tests.support.cli_cases import TINY, write_config

DATA = {"name": "procedural", "classes": ["chair", "sofa", "mug", "bed"], "train_size": 16, "test_size": 80}
SECTIONS = {
    "data": {**DATA, "num_points": 16},
    "optim": {"epochs": 1, "batch_size": 4, "warmup_epochs": 0},
    "model": {**TINY["model"], "num_groups": 4},
}


@pytest.fixture
def call(invoke, tmp_path):
    """Run the command on a tiny config with 2 ways and 2 shots."""
    config = write_config(tmp_path, **SECTIONS)
    return lambda *more: invoke("fewshot", "--config", config, "--ways", "2", "--shots", "2", *more)


@pytest.fixture
def trained(monkeypatch):
    """Folders of the folds that are trained, in order."""
    seen, fit = [], Trainer.fit

    def counted(self):
        seen.append(self.folder.path.name)
        return fit(self)

    monkeypatch.setattr(Trainer, "fit", counted)
    return seen


def test_all_folds_are_run_and_summed_up(call, trained, tmp_path):
    printed = json.loads(call("--folds", "0-2", "--json").stdout)
    folder = tmp_path / "runs" / "tiny_2way_2shot"
    assert printed == json.loads((folder / "fewshot.json").read_text())
    assert trained == ["fold_0", "fold_1", "fold_2"]
    values = [
        json.loads((folder / f"fold_{k}" / "result.json").read_text())["metrics"]["oa"] for k in range(3)
    ]
    assert [fold["oa"] for fold in printed["folds"]] == values
    assert printed["oa"] == pytest.approx(statistics.fmean(values))
    assert printed["oa_std"] == pytest.approx(statistics.stdev(values))
    assert (printed["ways"], printed["shots"], printed["num_folds"]) == (2, 2, 3)
    assert {(fold["num_train"], fold["num_test"]) for fold in printed["folds"]} == {(4, 40)}
    assert printed["protocol"]["name"] == "honest"


def test_finished_folds_are_not_repeated(call, trained):
    call("--folds", "0,2")
    first = list(trained)
    printed = json.loads(call("--folds", "0-2", "--json").stdout)
    assert (first, trained[2:]) == (["fold_0", "fold_2"], ["fold_1"])
    assert [fold["fold"] for fold in printed["folds"]] == [0, 1, 2]


def test_starting_over_repeats_them(call, trained):
    call("--folds", "1")
    call("--folds", "1", "--resume", "never")
    assert trained == ["fold_1", "fold_1"]


def test_folds_of_other_settings_are_not_mixed(call):
    call("--folds", "0")
    with pytest.raises(CheckpointError, match=r"optim\.lr"):
        call("--folds", "0", "optim.lr=0.01")


def test_the_table_has_every_fold_and_the_deviation(call):
    text = call("--folds", "0-1").output
    for expected in ("fold by fold", "standard deviation", "2-way 2-shot, clora, procedural", "honest"):
        assert expected in text


def test_one_fold_has_no_deviation(call):
    assert json.loads(call("--folds", "3", "--json").stdout)["oa_std"] is None


@pytest.mark.parametrize(
    ("more", "error", "message"),
    [
        (("--folds", "0-x"), ConfigError, "no list of folds"),
        (("--folds", "1,1"), ConfigError, "names a fold twice"),
        (("--shots", "9"), DataError, r"9 clouds of every class .*chair \(4\)"),
    ],
)
def test_what_cannot_be_run_is_refused(call, more, error, message):
    with pytest.raises(error, match=message):
        call(*more)


def test_the_best_test_epoch_counts_under_the_protocol_of_papers(call):
    printed = json.loads(call("--folds", "0", "--json", "protocol.name=paper").stdout)
    assert printed["protocol"] == {"name": "paper", "select": "test", "votes": 1, "val_fraction": 0.0}
