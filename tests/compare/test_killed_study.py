"""A real study, killed with SIGKILL twenty times at random moments, ends as an undisturbed one."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from pcl_clora.compare import load_study
from pcl_clora.compare.folder import StudyFolder
from pcl_clora.compare.study import Study
from pcl_clora.io import load_tensors, read_json
from tests.support.cli_cases import ROOT
from tests.support.study_cases import STUDY, write_study

KILLS, EPOCHS = 20, 3
# What two runs of the same bits may differ in: times, and the commit, where something is committed meanwhile;
# the file of an adapter names the commit too, so that its tensors are compared in place of its digest.
APART = {"train_seconds", "processor_seconds", "git", "adapter_sha256"}
pytestmark = [
    pytest.mark.long,  # the short sibling is in test_runner.py: one real kill, and five at chosen moments
    pytest.mark.skipif(os.name != "posix", reason="kills with a POSIX signal"),
]


def begin(config: Path, out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "pcl_clora.cli", "compare", "--config", str(config), "--out", str(out)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(command, cwd=out.parent, env=environment, stdout=subprocess.DEVNULL)


def kept(out: Path) -> dict[str, object]:
    """Every file of the rows, records without times, others as bytes; and the tensors of every adapter."""
    found: dict[str, object] = {}
    for path in sorted(path for path in (out / "rows").rglob("*") if path.is_file()):
        name = path.relative_to(out).as_posix()
        if path.suffix == ".json":
            found[name] = {key: value for key, value in read_json(path).items() if key not in APART}
        else:
            found[name] = path.read_bytes()
    for path in sorted((out / "runs").glob("*/*/best/adapter.safetensors")):
        found[path.relative_to(out).as_posix()] = {k: t.tolist() for k, t in load_tensors(path)[0].items()}
    return found


def records(out: Path) -> dict[str, tuple[int, int]]:
    """When and where every record was written: a second writing shows, even of the same bytes."""
    paths = [path for path in (out / "rows").rglob("*.json") if not path.name.startswith(".")]
    return {path.relative_to(out).as_posix(): (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}


def epochs_trained(study: Study, out: Path) -> int:
    """How many epochs the logs of the runs tell of."""
    words = [f"epoch {number}/{EPOCHS}  train" for number in range(1, EPOCHS + 1)]
    logs = [StudyFolder(out).log(run).read_text() for run in study.runs()]
    return sum(sum(map(log.count, words)) for log in logs)


def test_a_study_killed_twenty_times_loses_nothing_and_repeats_nothing(tmp_path, capsys):
    settings = {**STUDY["settings"], "optim": {"epochs": EPOCHS}}
    settings["train"] = {"checkpoint_every_steps": 1, "progress": "plain"}
    config = write_study(tmp_path, settings=settings, seeds=[0, 1, 2, 3])
    study, whole, out = load_study(config), tmp_path / "whole", tmp_path / "out"
    began = time.monotonic()
    assert begin(config, whole).wait() == 0
    took, needed = time.monotonic() - began, EPOCHS * len(study.runs())

    chance, kills, since, at_work, again = random.Random(0), 0, 0, 0, Counter()
    before: dict[str, tuple[int, int]] = {}
    while True:
        process = begin(config, out)
        with suppress(subprocess.TimeoutExpired):
            process.wait(chance.uniform(0.02, 0.12) * took if kills < KILLS else None)
        if killed := process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
        now = records(out)
        assert before.keys() <= now.keys()
        again.update(name for name, when in before.items() if now[name] != when)
        before = now
        if killed:
            kills, since = kills + 1, since + 1
            at_work += any((out / "runs").glob("*/*/last/checkpoint.safetensors"))
            continue
        epochs = epochs_trained(study, out)
        with capsys.disabled():
            print(
                f"\n{kills} kills, {at_work} of them with a checkpoint there; {len(study.runs())} runs; "
                f"{sum(again.values())} of {len(before)} records written again; {epochs} epochs trained of "
                f"{needed}; rows equal: {kept(out) == kept(whole)}"
            )
        assert process.returncode == 0
        assert kept(out) == kept(whole)
        assert not again
        assert needed <= epochs <= needed + since  # at most the one that a kill cut off
        if kills == KILLS:
            break
        shutil.rmtree(out)  # it ended before the last kill: the same study once more
        before, since = {}, 0
    assert at_work
