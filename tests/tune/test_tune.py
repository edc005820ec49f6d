"""Searches on made shapes: budget, halving, kills, several processes, and what they write."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from pcl_clora.config import ConfigError
from pcl_clora.engine import load_run_config
from pcl_clora.io import FileAccessError
from pcl_clora.tune import load_search, tune
from pcl_clora.tune.budget import sizes_of
from pcl_clora.tune.journal import drop_torn_line
from tests.support.engine_cases import CLORA, VALUES

pytest.importorskip("optuna")

SPACE = {
    "adapter.rank": {"low": 1, "high": 4},
    "adapter.placement": {"choices": ["input", "both"]},
    "optim.lr": {"low": 1e-3, "high": 1e-2, "log": True},
}


def write_search(folder: Path, **settings: object) -> Path:
    """A search of three trials on a tiny run."""
    base = {**VALUES, **CLORA, "train": {**VALUES["train"], "amp": False, "product": "torch"}}
    base["data"] = {**VALUES["data"], "train_size": 36}
    (folder / "base.yaml").write_text(yaml.safe_dump(base))
    content = {
        "base": "base.yaml",
        "trial_settings": {"protocol": {"val_fraction": 0.3}},
        "trials": 3,
        "startup": 2,
        "halving": None,
        "space": SPACE,
        **settings,
    }
    (folder / "search.yaml").write_text(yaml.safe_dump(content))
    return folder / "search.yaml"


def silent(_: str) -> None:
    """Say nothing."""


def test_a_search_leads_to_a_config_that_train_takes(tmp_path):
    found = tune(load_search(write_search(tmp_path)), tmp_path / "out", tell=silent)
    complete = [row for row in found.trials if row["state"] == "complete"]
    assert len(complete) == 3
    assert found.best["value"] == max(row["value"] for row in complete)
    cfg = load_run_config(tmp_path / "out" / "best.yaml")
    assert cfg == found.config
    assert cfg.adapter.rank == found.best["params"]["adapter.rank"]
    assert cfg.optim.lr == found.best["params"]["optim.lr"]
    assert cfg.protocol.select == "last"
    assert json.loads((tmp_path / "out" / "trials.json").read_text())["best"] == found.best


def test_a_journal_that_the_disk_has_no_room_for_is_named(tmp_path, monkeypatch):
    from optuna.storages.journal import JournalFileBackend

    appended, real = [], JournalFileBackend.append_logs

    def full(self, logs):
        appended.extend(logs)
        if len(appended) > 3:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(self, logs)

    monkeypatch.setattr(JournalFileBackend, "append_logs", full)
    with pytest.raises(FileAccessError, match=r"journal\.log: cannot be written \(No space left on device\)"):
        tune(load_search(write_search(tmp_path)), tmp_path / "out", tell=silent)


@pytest.mark.parametrize("at", [4, 25])
def test_half_a_line_that_a_full_disk_left_does_not_stop_the_search_from_going_on(
    at, tmp_path, monkeypatch, caplog
):
    from optuna.storages.journal import JournalFileBackend

    search, out = load_search(write_search(tmp_path)), tmp_path / "out"
    journal, appended, real = out / "journal.log", [], JournalFileBackend.append_logs

    def half(self, logs):
        appended.extend(logs)
        if len(appended) < at:
            return real(self, logs)
        with journal.open("ab") as file:
            file.write(json.dumps(logs[0]).encode()[:20])
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(JournalFileBackend, "append_logs", half)
        with pytest.raises(FileAccessError, match="No space left on device"):
            tune(search, out, tell=silent)
    assert not journal.read_bytes().endswith(b"\n")
    monkeypatch.setattr("pcl_clora.tune.search.may_run", lambda owner: False)  # that process ended
    monkeypatch.setattr("pcl_clora.tune.search._NO_OWNER_SECONDS", 0.0)
    found = tune(search, out, tell=silent)
    assert sum(row["state"] == "complete" for row in found.trials) == 3
    assert [json.loads(line) for line in journal.read_text().splitlines()]  # every line is whole
    assert "20 bytes are dropped" in caplog.text


@pytest.mark.parametrize("whole", [b"", b"one\n", b"x" * 9000 + b"\ntwo\n"])
@pytest.mark.parametrize("torn", [b"", b"half", b"y" * 9000])
def test_a_torn_line_is_dropped_and_whole_ones_stay(whole, torn, tmp_path):
    path = tmp_path / "journal.log"
    path.write_bytes(whole + torn)
    drop_torn_line(path)
    assert path.read_bytes() == whole


@pytest.mark.slow
def test_the_same_seed_searches_the_same_settings_and_another_does_not(tmp_path):
    def params(name: str, **settings: object) -> list[object]:
        search = load_search(write_search(tmp_path, **settings))
        return [row["params"] for row in tune(search, tmp_path / name, tell=silent).trials]

    first = params("first")
    assert params("second") == first
    assert params("third", seed=1) != first


def test_a_trial_over_the_budget_is_refused_before_it_trains(tmp_path):
    search = load_search(write_search(tmp_path, budget={"adapter_parameters": 300}, trials=2))
    found = tune(search, tmp_path / "out", tell=silent)
    over = [row for row in found.trials if row["state"] == "over budget"]
    trained = [row for row in found.trials if row["state"] == "complete"]
    assert over
    assert all(row["adapter_parameters"] > 300 and row["epochs"] == 0 for row in over)
    assert all(row["adapter_parameters"] <= 300 and row["epochs"] == 3 for row in trained)


def test_the_size_of_a_file_is_that_of_the_file(tmp_path):
    search = load_search(write_search(tmp_path, budget={"file_kib": 1000}))
    from pcl_clora.adapters import attach_adapter
    from pcl_clora.models import build_model

    cfg = search.trial({})
    attach_adapter(build_model(cfg.model), cfg.adapter).save_adapter(tmp_path / "a.safetensors")
    assert sizes_of(cfg, search.cfg.budget).file_bytes == (tmp_path / "a.safetensors").stat().st_size


def test_a_budget_that_nothing_fits_ends_with_a_message(tmp_path, monkeypatch):
    monkeypatch.setattr("pcl_clora.tune.search.PATIENCE", 2)
    search = load_search(write_search(tmp_path, budget={"adapter_parameters": 10}, trials=2))
    with pytest.raises(ConfigError, match=r"over the budget \(adapter_parameters=10\)"):
        tune(search, tmp_path / "out", tell=silent)


@pytest.mark.slow
def test_halving_stops_trials_early(tmp_path):
    space = {"optim.lr": {"low": 1e-6, "high": 2e-2, "log": True}}  # the low ones learn nothing
    settings = {"halving": {"min_epochs": 4, "factor": 2}, "trials": 6, "space": space}
    settings["settings"] = {"optim": {"epochs": 5, "warmup_epochs": 0}, "data": {"train_size": 60}}
    found = tune(load_search(write_search(tmp_path, **settings)), tmp_path / "out", tell=silent)
    pruned = [row for row in found.trials if row["state"] == "pruned"]
    assert pruned
    assert all(row["epochs"] == 4 and len(row["curve"]) == row["epochs"] for row in pruned)
    assert not any((tmp_path / "out" / "trials").iterdir())


def test_a_finished_search_trains_nothing_more(tmp_path):
    search = load_search(write_search(tmp_path, trials=2))
    first = tune(search, tmp_path / "out", tell=silent)
    lines: list[str] = []
    assert tune(search, tmp_path / "out", tell=lines.append).trials == first.trials
    assert lines == []


def test_a_folder_of_another_search_is_refused_by_the_difference(tmp_path):
    tune(load_search(write_search(tmp_path, trials=1)), tmp_path / "out", tell=silent)
    with pytest.raises(ConfigError, match=r"holds another search(.|\n)*trials: 1 -> 2"):
        tune(load_search(write_search(tmp_path, trials=2)), tmp_path / "out", tell=silent)


def _run(config: Path, out: Path) -> subprocess.Popen[bytes]:
    program = "from pcl_clora.cli import main; main()"
    command = [sys.executable, "-c", program, "tune", "--config", str(config), "--out", str(out)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="kills with a POSIX signal")
def test_a_killed_search_goes_on_with_the_trial_that_was_cut_off(tmp_path):
    config, out = write_search(tmp_path, trials=2), tmp_path / "out"
    process = _run(config, out)
    until = time.monotonic() + 60
    while not list(out.glob("trials/*/metrics.jsonl")) and time.monotonic() < until:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    found = tune(load_search(config), out, tell=silent)
    states = [row["state"] for row in found.trials]
    assert states.count("complete") == 2
    assert states.count("lost") == 1
    lost = next(row for row in found.trials if row["state"] == "lost")
    assert sum(row["params"] == lost["params"] for row in found.trials) == 2


@pytest.mark.slow
def test_two_processes_share_a_search(tmp_path):
    config, out = write_search(tmp_path), tmp_path / "out"
    process = _run(config, out)
    until = time.monotonic() + 60
    while not list(out.glob("trials/*")) and time.monotonic() < until:
        time.sleep(0.05)
    tune(load_search(config), out, tell=silent)  # this one is the other
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    rows = json.loads((out / "trials.json").read_text())["trials"]
    assert sum(row["state"] == "complete" for row in rows) >= 3
    assert not any(row["state"] in ("lost", "refused") for row in rows)


def test_the_page_has_all_trials_and_no_address(tmp_path):
    pytest.importorskip("matplotlib")
    search = load_search(write_search(tmp_path, trials=5, title="a <b> & c"))
    found = tune(search, tmp_path / "out", tell=silent)
    page = (tmp_path / "out" / "tune.html").read_text(encoding="utf-8")
    assert "a &lt;b&gt; &amp; c" in page
    assert page.count("<tr") == len(found.trials) + 1
    assert "Which settings mattered" in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"adapter.rnk": {"low": 1, "high": 4}}, "did you mean 'rank'"),
        ({"adapter.rank": {"low": 4, "high": 1}}, "low below high"),
        ({"adapter.rank": {"low": 1}}, "low below high"),
        ({"optim.lr": {"low": 0.0, "high": 1.0, "log": True}}, "log needs low above 0"),
        ({"adapter.rank": {"choices": [1, 1]}}, "name a value twice"),
        ({"adapter.rank": {"choices": [1], "low": 1}}, "choices stand alone"),
        ({"adapter.rank": {"choices": [-1, -2]}}, "adapter.rank"),
        ({}, "space"),
    ],
    ids=str,
)
def test_a_wrong_space_is_refused_before_anything_is_trained(space, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        load_search(write_search(tmp_path, space=space))


def test_a_setting_that_is_searched_cannot_be_given_too(tmp_path):
    with pytest.raises(ConfigError, match=r"adapter\.rank is given on the command line"):
        load_search(write_search(tmp_path), ["adapter.rank=3"])


@pytest.mark.parametrize("name", ["clora_shots20", "lora_shots20"])
def test_the_searches_of_the_repository_are_whole(name):
    search = load_search(Path(__file__).parents[2] / "cfgs" / "tune" / f"{name}.yaml")
    assert search.cfg.budget.adapter_parameters == 50_000
