"""A class added later: what was learnt stays, and what is forgotten is said."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pcl_clora.adapters.files import read_header
from pcl_clora.config import ConfigError
from pcl_clora.engine import RunFolder, Trainer, load_run_config
from pcl_clora.errors import UserValueError
from pcl_clora.fit import fit
from pcl_clora.io import DataError
from tests.support.fit_cases import SMALL, silent, write_folder, write_labelled

SETTINGS = {"steps": 8, "num_points": 64, "tell": silent}


@pytest.fixture(scope="module")
def extended(tmp_path_factory):
    """A fit of balls and rods, and one that adds plates."""
    folder = tmp_path_factory.mktemp("extend")
    old = write_folder(folder / "old", kinds=("ball", "rod"))
    new = write_folder(folder / "new", kinds=("plate",))
    fit(old, folder / "run", folds=0, up="y", overrides=SMALL, **SETTINGS)
    return folder, fit(new, folder / "more", extend_run=folder / "run", overrides=SMALL[1:], **SETTINGS)


def adapter(run):
    return RunFolder(run).chosen


@pytest.mark.slow
def test_base_old_rows_and_spaces_are_the_same_bits(extended):
    folder, _ = extended
    before, after = (read_header(adapter(folder / name)) for name in ("run", "more"))
    assert after.base_sha256 == before.base_sha256
    assert (before.classes, after.classes) == (("ball", "rod"), ("ball", "rod", "plate"))
    old, new = (load_file(adapter(folder / name)) for name in ("run", "more"))
    rows = [key for key in old if old[key].shape != new[key].shape]
    assert len(rows) == 2  # weight and bias of the last layer
    assert all(torch.equal(old[key], new[key][:2]) for key in rows)
    spaces = [key for key in old if key.startswith("method.")]
    assert spaces
    assert all(torch.equal(old[key], new[key]) for key in spaces)
    assert any(not torch.equal(old[key], new[key]) for key in old if key.startswith("layers."))


@pytest.mark.slow
def test_what_was_held_out_stays_held_out_and_forgetting_is_reported(extended):
    folder, found = extended
    rows = list(csv.DictReader((folder / "more" / "files.csv").open()))
    told = found.content["forgetting"]
    held = [row for row in rows if row["split"] == "test" and row["label"] != "plate"]
    assert told["files"] == len(held) == 4
    assert told["before"] == json.loads((folder / "run" / "result.json").read_text())["metrics"]["oa"]
    assert set(told["per_class"]) == {"ball", "rod"}
    right = sum(found.content["confusion"][at][at] for at in range(2))
    assert told["after"] == right / 4
    page = found.page.read_text(encoding="utf-8")
    assert "What was forgotten" in page
    assert "bit for bit" in page


@pytest.mark.slow
def test_the_same_command_goes_on(extended):
    folder, found = extended
    again = fit(folder / "new", folder / "more", extend_run=folder / "run", overrides=SMALL[1:], **SETTINGS)
    assert again.content["confusion"] == found.content["confusion"]


@pytest.mark.slow
def test_what_cannot_be_added_is_refused(extended, tmp_path):
    folder, _ = extended
    with pytest.raises(UserValueError, match=r"has no class that .* does not know \(ball, rod\)"):
        fit(folder / "old", tmp_path / "a", extend_run=folder / "run", **SETTINGS)
    with pytest.raises(UserValueError, match="is the run that is extended; name another folder"):
        fit(folder / "new", folder / "run", extend_run=folder / "run", **SETTINGS)
    with pytest.raises(UserValueError, match=r"cannot be extended.* the new data are others"):
        fit(write_labelled(tmp_path / "parts"), tmp_path / "a", extend_run=folder / "run", **SETTINGS)
    cfg = load_run_config(folder / "more" / "config.yaml", ["data.classes=[plate,ball,rod]"])
    with pytest.raises(ConfigError, match="the classes of this run have to begin with these"):
        Trainer(cfg, run_dir=tmp_path / "b").fit()
    cfg = load_run_config(folder / "more" / "config.yaml", ["adapter.rank=3"])
    with pytest.raises(ConfigError, match="leave the section adapter as it was"):
        Trainer(cfg, run_dir=tmp_path / "b").fit()
    moved = shutil.move(folder / "old", tmp_path / "elsewhere")
    try:
        with pytest.raises(DataError, match=r"without the old files a new class would push out the others"):
            fit(folder / "new", tmp_path / "a", extend_run=folder / "run", **SETTINGS)
    finally:
        shutil.move(moved, folder / "old")


@pytest.mark.slow
def test_a_list_of_files_is_fitted(tmp_path):
    root = write_folder(tmp_path / "scans", splits=True, kinds=("ball", "rod"))
    lines = [
        f"{file.relative_to(tmp_path)},{file.parent.name},{file.parent.parent.name}"
        for file in sorted(root.rglob("*.*"))
    ]
    (tmp_path / "list.csv").write_text("\n".join(["path,label,split", *lines]))
    found = fit(tmp_path / "list.csv", tmp_path / "run", up="y", overrides=SMALL, **SETTINGS)
    assert (found.judged, set(found.content["classes"])) == (4, {"ball", "rod"})
    assert np.isfinite(found.score)
