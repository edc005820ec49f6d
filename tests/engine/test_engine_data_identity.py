"""What of a data folder makes it other data, which a run does not go on with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pcl_clora.config import ConfigError
from pcl_clora.data import build_dataset, parse_data_config
from pcl_clora.data.packed.format import INDEX
from pcl_clora.data.packed.write import pack_dataset
from pcl_clora.engine import Trainer
from pcl_clora.engine.run.data_identity import data_identity, refuse_run_in_data
from tests.support.engine_cases import tiny_config


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder of clouds of two classes."""
    for split in ("train", "test"):
        for name in ("ball", "crate"):
            (tmp_path / "clouds" / split / name).mkdir(parents=True)
            np.savetxt(tmp_path / "clouds" / split / name / "0.txt", np.eye(3))
    return tmp_path / "clouds"


def identity(root: Path) -> dict[str, object]:
    """Open both splits and name them."""
    config = parse_data_config({"name": "folder", "root": str(root), "num_points": 3})
    train, test = (SimpleNamespace(dataset=build_dataset(config, split)) for split in ("train", "test"))
    data = SimpleNamespace(class_names=train.dataset.class_names, train=train, test=test)
    return data_identity(config, data)


@pytest.mark.parametrize("name", ["README.txt", "table.csv", ".hidden.txt", "LICENSE", "train/notes.md"])
def test_files_that_no_reader_reads_do_not_change_the_data(name: str, root: Path) -> None:
    before = identity(root)
    (root / name).write_text("words")
    assert identity(root) == before


CHANGES: dict[str, Callable[[Path], object]] = {
    "a cloud more": lambda root: np.savetxt(root / "train" / "ball" / "1.txt", np.eye(3)),
    "a cloud renamed": lambda root: (root / "test/ball/0.txt").rename(root / "test/ball/1.txt"),
    "a cloud of more points": lambda root: np.savetxt(root / "train" / "ball" / "0.txt", np.ones((9, 3))),
    "a class renamed": lambda root: [(root / s / "ball").rename(root / s / "orb") for s in ("train", "test")],
}


@pytest.mark.parametrize("change", CHANGES)
def test_clouds_that_change_make_other_data(change: str, root: Path) -> None:
    before = identity(root)
    CHANGES[change](root)
    assert identity(root) != before


@pytest.mark.parametrize("place", ["", "train", "train/ball/run", "new"])
def test_runs_and_packs_are_not_made_among_the_clouds(place: str, root: Path) -> None:
    config = parse_data_config({"name": "folder", "root": str(root), "num_points": 3})
    before = sorted(root.rglob("*"))
    with pytest.raises(ConfigError, match=r"lies in data\.root="):
        refuse_run_in_data(root / place, config)
    with pytest.raises(ConfigError, match="choose a folder outside it"):
        pack_dataset(config, root / place)
    assert sorted(root.rglob("*")) == before
    refuse_run_in_data(root.parent / "runs" / "tiny", config)


def test_a_run_beside_hdf5_files_does_not_change_them(root: Path) -> None:
    before = identity(root)
    (root / "train" / "run").mkdir()
    for name in ("config.yaml", "plan.json", "result.json"):
        (root / "train" / "run" / name).write_text("{}")
    assert identity(root)["files"] == before["files"]


OTHER = parse_data_config({"name": "procedural", "classes": ["chair", "table"], "num_points": 64})


@pytest.mark.parametrize("place", ["", "train", "train/ball", "train/new", "train/ball/new", "new"])
def test_a_run_is_not_written_among_the_clouds_of_another_data_set(place: str, root: Path) -> None:
    before = sorted(root.rglob("*"))

    with pytest.raises(ConfigError, match=r"holds data and no run: .*0\.txt|lies in .*clouds by split"):
        Trainer(tiny_config({"output": str((root / place).parent), "name": (root / place).name})).fit()

    assert sorted(root.rglob("*")) == before


@pytest.mark.parametrize("name", ["ply_data_train0.h5", "a.ply", "deep/er/a.OFF", "x.npy", INDEX])
def test_a_folder_with_data_and_no_run_takes_none(name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_bytes(b"")

    with pytest.raises(ConfigError, match="holds data and no run"):
        refuse_run_in_data(tmp_path, OTHER)


@pytest.mark.parametrize("name", ["log.txt", "seeds.csv", "notes/todo.txt", "other/config.yaml", "a.json"])
def test_a_folder_with_notes_logs_and_runs_takes_a_run(name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("seed, accuracy\n0, 0.5\n")
    if name.endswith("config.yaml"):  # whose model is exported as a cloud, say
        (tmp_path / "other" / "a.ply").write_bytes(b"")

    refuse_run_in_data(tmp_path, OTHER)
    refuse_run_in_data(tmp_path / "new", OTHER)


def test_tests_of_a_program_are_no_clouds(tmp_path: Path) -> None:
    for name in ("train/unit/CMakeLists.txt", "test/unit/CMakeLists.txt"):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text("add_test(unit 1 2 3)\n")

    refuse_run_in_data(tmp_path / "runs" / "a", OTHER)
