"""What the commands do, called in this process."""

import json
import statistics

import pytest
import torch

from pcl_clora import __version__
from pcl_clora.cli import main
from pcl_clora.config import ConfigError, dump_yaml, read_yaml
from pcl_clora.engine import load_run_config
from pcl_clora.errors import MissingPackageError, UserTypeError
from pcl_clora.io import FileAccessError
from pcl_clora.models import create_model
from pcl_clora.report import ReportError
from tests.support.cli_cases import ROOT, TINY, write_config

COMMANDS = [
    "train",
    "eval",
    "report cost",
    "report table",
    "report run",
    "data check",
    "data info",
    "doctor",
    "demo",
]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself_and_its_options(invoke, command):
    done = invoke(*command.split(), "--help")
    assert done.exit_code == 0
    assert len(done.output) > 400


def test_version_is_printed(invoke):
    assert invoke("--version").output.strip() == __version__


def test_an_unknown_command_has_exit_code_2(invoke):
    assert invoke("trian").exit_code == 2


@pytest.mark.slow
def test_train_writes_a_run_folder_with_its_report(finished_run):
    names = {path.name for path in finished_run.iterdir()}
    assert names >= {
        "config.yaml",
        "env.json",
        "plan.json",
        "metrics.jsonl",
        "result.json",
        "report.md",
        "curve.csv",
        "best",
        "last",
    }


@pytest.mark.slow
def test_train_prints_its_result_as_json(invoke, tmp_path):
    done = invoke("train", "--config", write_config(tmp_path), "--json", "optim.epochs=1")
    printed = json.loads(done.stdout)
    assert printed == json.loads((tmp_path / "runs" / "tiny" / "result.json").read_text())


@pytest.mark.slow
def test_eval_repeats_the_number_of_the_run(invoke, finished_run):
    done = invoke("eval", "--run", finished_run, "--json")
    evaluated, result = json.loads(done.stdout), json.loads((finished_run / "result.json").read_text())
    assert evaluated["metrics"]["confusion"] == result["metrics"]["confusion"]
    assert evaluated["metrics"]["loss"] == pytest.approx(result["metrics"]["loss"], rel=1e-6)  # float32 sums
    assert evaluated["method"] == "clora"


@pytest.mark.slow
def test_eval_takes_other_data_and_another_protocol(invoke, finished_run):
    done = invoke("eval", "--run", finished_run, "--json", "data.test_size=30", "protocol.votes=2")
    evaluated = json.loads(done.stdout)
    assert evaluated["data"]["num_test"] == 30
    assert evaluated["protocol"]["votes"] == 2
    assert evaluated["evaluation"]["passes_per_cloud"] == 2
    assert evaluated["evaluation"]["macs"] > 0
    assert evaluated["evaluation"]["seconds"] > 0


@pytest.mark.slow
def test_eval_refuses_to_change_the_model(invoke, finished_run):
    with pytest.raises(ConfigError, match=r"model\.depth cannot be changed"):
        invoke("eval", "--run", finished_run, "model.depth=3")


@pytest.mark.slow
def test_eval_refuses_data_of_other_classes(invoke, finished_run):
    with pytest.raises(ConfigError, match="knows the classes chair, sofa, mug, and the data have lamp; give"):
        invoke("eval", "--run", finished_run, "data.classes=[chair, lamp]")


@pytest.mark.slow
def test_eval_prints_a_table_for_people(invoke, finished_run):
    done = invoke("eval", "--run", finished_run)
    assert "overall accuracy" in done.output
    assert "sofa" in done.output


@pytest.mark.slow
def test_report_table_and_run_read_a_finished_run(invoke, finished_run, tmp_path):
    out = tmp_path / "table.md"
    done = invoke("report", "table", finished_run, "--out", out)
    assert "clora" in done.output
    assert "honest, last epoch" in out.read_text()
    assert "report.md" in invoke("report", "run", finished_run).output


@pytest.mark.slow
def test_a_finished_run_is_the_weights_of_the_next(invoke, finished_run, tmp_path):
    config = write_config(tmp_path, weights={"path": str(finished_run)}, adapter={"method": "linear_probe"})
    invoke("train", "--config", config, "optim.epochs=1")
    plan = json.loads((tmp_path / "runs" / "tiny" / "plan.json").read_text())
    assert plan["weights"]["matched"] > 40


def test_report_cost_needs_neither_data_nor_weights(invoke, tmp_path):
    config = write_config(
        tmp_path,
        data={"name": "a_reader_of_tomorrow", "num_points": 48},
        weights={"path": "nowhere.pth"},
    )
    report = json.loads(invoke("report", "cost", "--config", config, "--fast", "--json").stdout)
    model = create_model(**TINY["model"])
    assert report["num_points"] == 48
    assert report["params"]["total"] > sum(parameter.numel() for parameter in model.parameters())
    assert report["latency_ms"] is None


def test_report_cost_for_people_names_both_conventions(invoke, config):
    text = invoke("report", "cost", "--config", config, "--fast", "--modules").output
    assert "published" in text
    assert "executed" in text
    assert "blocks.1" in text


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("modell.depth=2", "did you mean 'model'"),
        ("model.depht=2", "did you mean 'depth'"),
        ("adapter.rnak=2", "did you mean 'rank'"),
        ("train.device=tpu9", "train.device='tpu9'"),
    ],
)
def test_report_cost_refuses_unknown_settings(invoke, config, override, message):
    with pytest.raises(ConfigError, match=message):
        invoke("report", "cost", "--config", config, "--fast", override)


@pytest.mark.parametrize("section", ["model", "adapter", "data"])
def test_report_cost_says_which_section_is_missing(invoke, tmp_path, section):
    config = write_config(tmp_path, **{section: None})
    with pytest.raises(ConfigError, match=f"section '{section}' is missing"):
        invoke("report", "cost", "--config", config, "--fast")


def test_report_cost_needs_the_number_of_points(invoke, tmp_path):
    config = write_config(tmp_path, data={"name": "a_reader_of_tomorrow"})
    with pytest.raises(ConfigError, match="num_points is missing"):
        invoke("report", "cost", "--config", config, "--fast")


def test_dry_run_says_when_nothing_is_missing(invoke, config, tmp_path):
    done = invoke("train", "--config", config, "--dry-run")
    assert "No file is missing" in done.output
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"name": "modelnet40_hdf5"}, "set data.root"),
        ({"name": "modelnet40_txt", "root": "{layout}"}, "its layout is modelnet40_hdf5"),
        ({"name": "modelnet40_hdf5", "root": "{layout}", "num_points": 99}, "stores 16 points a cloud"),
    ],
)
def test_dry_run_names_what_is_wrong_with_the_data(invoke, tmp_path, data, message):
    import h5py
    import numpy as np

    folder = tmp_path / "layout"
    folder.mkdir()
    for split in ("train", "test"):
        with h5py.File(folder / f"ply_data_{split}0.h5", "w") as file:
            file["data"], file["label"] = np.zeros((3, 16, 3), "f4"), np.arange(3, dtype="u1")[:, None]
    data = {"num_points": 8, **data, "root": data.get("root", "").format(layout=folder)}
    done = invoke("train", "--config", write_config(tmp_path, data=data), "--dry-run")
    assert message in done.output.replace("\n", " ")


def test_data_info_names_layout_and_splits(invoke, tmp_path):
    for split in ("train", "test"):
        folder = tmp_path / split / "mug"
        folder.mkdir(parents=True)
        torch.manual_seed(0)
        (folder / "1.xyz").write_text("\n".join("0 0 1" for _ in range(9)))
    found = json.loads(invoke("data", "info", tmp_path, "--json").stdout)
    assert found["layout"] == "folder"
    assert found["num_samples"] == {"train": 1, "test": 1}


def test_data_check_prints_findings_as_json(invoke, tmp_path):
    done = invoke("data", "check", tmp_path / "nowhere", "--json")
    assert done.exit_code == 1
    printed = json.loads(done.stdout)
    assert not printed["ok"]
    assert printed["findings"][0]["level"] == "error"


def test_doctor_says_versions_device_operators_data_and_packages(invoke, tmp_path):
    (tmp_path / "broken").mkdir()
    found = json.loads(invoke("doctor", "--data", tmp_path, "--json").stdout)
    assert torch.__version__.startswith(found["versions"]["torch"])
    assert found["ops"]["farthest_point_sample"]
    assert "here" in found["data"][str(tmp_path / "broken")]
    assert found["optional"]["matplotlib"]["enables"]
    assert "Point operators" in invoke("doctor", "--data", tmp_path).output


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ReportError("no"), 2),
        (UserTypeError("no"), 2),
        (MissingPackageError("no"), 2),
        (OSError("no"), None),
        (FileAccessError("no", "cannot be read", "try again"), 2),
        (KeyError("no"), None),
        (ValueError("no"), None),
    ],
)
def test_messages_for_users_are_told_from_our_mistakes(monkeypatch, capsys, error, code):
    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr("pcl_clora.cli.app", fail)
    with pytest.raises(SystemExit if code else type(error)) as caught:
        main(["doctor"])
    assert code is None or caught.value.code == code
    assert ("error: no" in capsys.readouterr().err) == (code is not None)


def test_ctrl_c_is_a_message_and_exit_code_130(invoke, config, monkeypatch):
    from pcl_clora.engine import Trainer, TrainingInterrupted

    def stop(self: Trainer) -> None:
        raise TrainingInterrupted("Stopped after step 3")

    monkeypatch.setattr(Trainer, "fit", stop)
    done = invoke("train", "--config", config)
    assert done.exit_code == 130
    assert "Stopped after step 3" in done.stderr


def test_seeds_are_run_one_by_one_and_averaged(invoke, config, tmp_path):
    result = invoke("train", "--config", config, "--seeds", "0-1", "--json")
    assert result.exit_code == 0
    row = json.loads(result.stdout)["rows"][0]
    runs = [json.loads((tmp_path / f"runs/tiny_seed{seed}/result.json").read_text()) for seed in (0, 1)]
    accuracies = [run["metrics"]["oa"] for run in runs]
    assert row["seeds"] == [run["seed"] for run in runs] == [0, 1]
    assert row["oa"] == pytest.approx(statistics.fmean(accuracies))
    assert row["oa_std"] == pytest.approx(statistics.stdev(accuracies))
    assert [each["oa"] for each in row["per_seed"]] == accuracies
    assert "seed by seed" in (tmp_path / "runs/tiny_seeds.md").read_text()
    again = invoke("train", "--config", config, "--seeds", "0,1")  # finished runs are not trained again
    assert "tiny_seeds.md" in again.stdout
    repeated = json.loads((tmp_path / "runs/tiny_seed0/result.json").read_text())
    assert {**repeated, "evaluation": runs[0]["evaluation"]} == runs[0]  # evaluated again, in another time


def test_seeds_can_choose_the_training_clouds_too(invoke, config, tmp_path):
    result = invoke("train", "--config", config, "data.shots=3", "--seeds", "0-1", "--new-shots", "--json")
    assert json.loads(result.stdout)["rows"][0]["seeds"] == [0, 1]
    written = [read_yaml(tmp_path / f"runs/tiny_seed{seed}/config.yaml")["data"] for seed in (0, 1)]
    assert [data.get("shots_seed", 0) for data in written] == [0, 1]


def test_new_shots_need_seeds_and_shots(invoke, config):
    with pytest.raises(ConfigError, match="goes with --seeds"):
        invoke("train", "--config", config, "data.shots=2", "--new-shots")
    with pytest.raises(ConfigError, match="leaves no training clouds to choose"):
        invoke("train", "--config", config, "--seeds", "0-1", "--new-shots")


@pytest.mark.parametrize("seeds", ["a", "1-0", "0,,1", "0,0", "-1"])
def test_seeds_that_are_no_list_are_refused(invoke, config, seeds):
    with pytest.raises(ConfigError, match="seed"):
        invoke("train", "--config", config, f"--seeds={seeds}")


def test_eval_measures_robustness_and_calibration(invoke, config, tmp_path):
    invoke("train", "--config", config, "data.num_points=64", "data.test_size=15")
    run = tmp_path / "runs/tiny"
    ask = ("eval", "--run", run, "--robustness", "pointcloud_c.jitter,pointcloud_c.scale", "--calibration")
    result = invoke(*ask, "--json")
    content = json.loads(result.stdout)
    assert set(content["robustness"]["oa"]) == {"pointcloud_c.jitter", "pointcloud_c.scale"}
    assert content["robustness"] == json.loads((run / "robustness.json").read_text())
    assert content["robustness"]["clean_oa"] == pytest.approx(content["metrics"]["oa"])
    assert content["calibration"]["num_clouds"] == content["data"]["num_test"]
    assert (run / "robustness.png").stat().st_size > 1000
    assert (run / "calibration.png").stat().st_size > 1000
    shown = invoke(*ask, "--reference", run / "robustness.json").stdout
    assert "mCE 100.00" in shown
    assert "expected calibration error" in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--robustness", "modelnet40"], "did you mean"),
        (["--robustness", "sweep", "--reference", "none.json"], "none.json cannot be the reference"),
    ],
)
def test_eval_refuses_unknown_corruptions_and_references(invoke, finished_run, options, message):
    with pytest.raises(ConfigError, match=f"(?i){message}"):
        invoke("eval", "--run", finished_run, *options)


@pytest.mark.parametrize("option", [("--robustness", "all"), ("--calibration",)])
def test_parts_are_not_corrupted(invoke, tmp_path, option):
    path = ROOT / "cfgs" / "partseg" / "coseg_tiny_clora.yaml"
    (tmp_path / "config.yaml").write_text(dump_yaml(load_run_config(path)))
    with pytest.raises(ConfigError, match=r"for classification, not for task='part_segmentation'; leave"):
        invoke("eval", "--run", tmp_path, *option)


@pytest.mark.shared_data
def test_a_dry_run_names_a_head_for_another_number_of_classes(shared, invoke):
    config, root = (
        ROOT / "cfgs" / "infomr" / "builtin_clora.yaml",
        shared / "data" / "infomr_shapedb_hdf5_1024",
    )
    fits = invoke("train", "--config", config, f"data.root={root}", "--dry-run")
    assert "No file is missing." in fits.output
    other = invoke("train", "--config", config, f"data.root={root}", "--dry-run", "model.num_classes=40")
    assert "has 57 classes; set model.num_classes=57" in other.output
    shots = invoke("train", "--config", config, f"data.root={root}", "--dry-run", "data.shots=20")
    assert (
        "data.shots: 20 training clouds of every class are asked for, but 33 of 57 have fewer" in shots.output
    )
