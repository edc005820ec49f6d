"""`pcl-clora data`: what is there, what is wrong, and packing it."""

import json

import h5py
import numpy as np
import pytest
import yaml

from pcl_clora.config import ConfigError
from pcl_clora.io import DataError
from tests.support.cli_cases import write_config


@pytest.fixture
def scans(tmp_path):
    """A tiny folder in the layout of ScanObjectNN that holds one variant only."""
    folder = tmp_path / "scans" / "main_split_nobg"
    folder.mkdir(parents=True)
    (tmp_path / "scans" / "shape_names.txt").write_text("ant\nbee\n")
    for split, count in (("training", 6), ("test", 2)):
        with h5py.File(folder / f"{split}_objectdataset.h5", "w") as file:
            file["data"] = np.random.default_rng(count).uniform(-1, 1, (count, 12, 3)).astype("f4")
            file["label"] = (np.arange(count) % 2).astype("i4")
            file["mask"] = np.zeros((count, 12), "i4")
    return tmp_path / "scans"


def test_info_says_which_settings_read_a_folder(invoke, scans):
    assert "data.variant=obj_only" in invoke("data", "info", scans).output.replace("\n", "")
    assert json.loads(invoke("data", "info", scans, "--json").stdout)["settings"] == {"variant": "obj_only"}


def test_a_folder_is_packed_checked_and_described(invoke, scans, tmp_path):
    out = tmp_path / "packed"
    done = invoke("data", "pack", scans, out, "--shard-clouds", "4")
    assert "train: shard 2 of 2 written" in done.stderr
    assert f"data.name=packed data.root={out}" in done.output.replace("\n", "")
    assert "fine" in invoke("data", "check", out).output
    found = json.loads(invoke("data", "info", out, "--json").stdout)
    assert (found["layout"], found["num_samples"], found["num_points"]) == (
        "packed",
        {"train": 6, "test": 2},
        12,
    )


def test_packing_again_changes_nothing_and_prints_the_index(invoke, scans, tmp_path):
    invoke("data", "pack", scans, tmp_path / "packed")
    index = json.loads((tmp_path / "packed" / "index.json").read_text())
    again = json.loads(invoke("data", "pack", scans, tmp_path / "packed", "--json").stdout)
    assert again == {"root": str(tmp_path / "packed"), **index}


def test_a_config_is_packed_with_its_settings(invoke, tmp_path):
    config = write_config(tmp_path)
    printed = json.loads(
        invoke("data", "pack", config, tmp_path / "out", "data.num_points=20", "--json").stdout
    )
    assert printed["source"]["name"] == "procedural"
    assert printed["splits"]["train"]["max_points"] == 20
    assert len(printed["splits"]["train"]["shards"][0]["sha256"]) == 64


@pytest.mark.slow
def test_a_run_on_packed_data_gives_the_numbers_of_its_source(invoke, tmp_path):
    """The whole way: pack, train on both, same losses."""
    losses = []
    config = write_config(tmp_path, optim={"epochs": 1, "batch_size": 8, "warmup_epochs": 0})
    invoke("data", "pack", config, tmp_path / "out")
    data = {"name": "packed", "root": str(tmp_path / "out"), "num_points": 48}
    for name, sections in (("source", {}), ("copy", {"data": data})):
        sections = {"optim": {"epochs": 1, "batch_size": 8, "warmup_epochs": 0}, **sections}
        invoke("train", "--config", write_config(tmp_path, name=name, **sections))
        losses.append(json.loads((tmp_path / "runs" / name / "result.json").read_text())["metrics"]["loss"])
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("change", "message"),
    [("optim.lr=1", "only data can be set here"), ("data.nmu_points=3", "did you mean 'num_points'")],
)
def test_a_wrong_setting_is_refused(invoke, scans, tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        invoke("data", "pack", scans, tmp_path / "out", change)


def test_the_number_of_points_must_be_known(invoke, tmp_path):
    folder = tmp_path / "files" / "train" / "mug"
    folder.mkdir(parents=True)
    np.save(folder / "1.npy", np.eye(3, dtype=np.float32))
    with pytest.raises(ConfigError, match=r"set data\.num_points"):
        invoke("data", "pack", tmp_path / "files", tmp_path / "out")


def test_check_takes_a_config_and_says_what_its_settings_need(invoke, scans, tmp_path):
    config = tmp_path / "scans.yaml"
    data = {"name": "scanobjectnn", "root": str(scans), "num_points": 12, "variant": "obj_only"}
    config.write_text(yaml.safe_dump({"data": data}))
    assert invoke("data", "check", config).exit_code == 0
    short = invoke("data", "check", config, "data.shots=4")
    assert short.exit_code == 1
    assert "ant (3), bee (3)" in short.output.replace("\n", "")


def test_a_class_without_training_clouds_is_an_error_before_training(invoke, scans, tmp_path):
    (scans / "shape_names.txt").write_text("ant\nbee\ncow\n")
    data = {"name": "scanobjectnn", "root": str(scans), "num_points": 12, "variant": "obj_only"}
    config = write_config(tmp_path, data=data, optim={"epochs": 1, "batch_size": 2, "warmup_epochs": 0})
    with pytest.raises(
        DataError, match=r"1 of 3 classes have no training clouds: cow; .*allow_empty_classes"
    ):
        invoke("train", "--config", config)
    assert "no training clouds: cow" in " ".join(invoke("data", "check", config).output.split())
    assert invoke("data", "check", config, "data.allow_empty_classes=true").exit_code == 0


def test_check_prints_several_problems_at_once(invoke, scans):
    (scans / "main_split_nobg" / "test_objectdataset.h5").write_bytes(b"no")
    with h5py.File(scans / "main_split_nobg" / "training_objectdataset.h5", "a") as file:
        file["label"][0] = 5
    done = invoke("data", "check", scans, "--json")
    errors = [one for one in json.loads(done.stdout)["findings"] if one["level"] == "error"]
    assert (done.exit_code, len(errors)) == (1, 2)


def test_dry_run_names_a_variant_that_is_not_there(invoke, scans, tmp_path):
    data = {"name": "scanobjectnn", "root": str(scans), "num_points": 12}
    done = invoke("train", "--config", write_config(tmp_path, data=data), "--dry-run")
    assert "variant pb_t50_rs needs it" in " ".join(done.output.split())


def test_dry_run_looks_at_the_source_of_folds(invoke, tmp_path):
    data = {"name": "fewshot", "source": {"name": "modelnet40_hdf5"}, "root": str(tmp_path / "no"), "ways": 3}
    done = invoke("train", "--config", write_config(tmp_path, data=data), "--dry-run")
    assert "there is no such folder" in " ".join(done.output.split())
