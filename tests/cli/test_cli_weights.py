"""`pcl-clora weights`: what a user sees, and what he gets as json."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pcl_clora.cli import app, main

ROOT = Path(__file__).parents[2]


def run(*arguments):
    return CliRunner().invoke(app, ["weights", *map(str, arguments)])


@pytest.fixture
def pretrained(golden):
    return golden / "ckpt_pointmae_pretrain_tiny.pth"


@pytest.fixture
def finetuned(golden):
    return golden / "ckpt_pointmae_finetuned_tiny.pth"


def test_list_shows_ids_licences_and_claims():
    shown = run("list", "point-mae-base.scanobjectnn-hardest*").output
    assert "hub:point-mae-base.scanobjectnn-hardest.yatian-pang" in shown
    assert "MIT" in shown
    assert "85.18 OA" in shown


def test_list_gives_pinned_addresses_as_json():
    (spec,) = json.loads(run("list", "point-mae-base.pretrain*", "--json").output)
    assert spec["url"].startswith("hf://torch-pointcloud/point-mae-base.pretrain.yatian-pang/resolve/2992")
    assert spec["measured"] is None


def test_inspect_shows_what_a_file_is_and_what_would_load(pretrained):
    shown = run("inspect", pretrained).output
    assert "Point-MAE, pre-training" in shown
    assert "saved from DataParallel" in shown
    assert 'create_model("point_mae", task=' in shown
    assert "used in pre-training only (31)" in shown


def test_inspect_gives_the_same_as_json(pretrained):
    info = json.loads(run("inspect", pretrained, "--json").output)
    assert info["holds"] == "Point-MAE, pre-training"
    assert {load["task"] for load in info["loads"]} >= {"classification", "pretraining"}


def test_diff_shows_groups_and_a_verdict(pretrained, finetuned):
    shown = run("diff", pretrained, finetuned).output
    assert "backbone statistics" in shown
    assert "The backbone is the same bit by bit" in shown
    assert (
        json.loads(run("diff", pretrained, finetuned, "--json").output)["groups"]["backbone"]["common"] == 51
    )


def test_convert_writes_what_inspect_recognises(finetuned, tmp_path):
    made = run("convert", finetuned, tmp_path / "out.safetensors", "--to", "hub")
    assert made.exit_code == 0
    assert "75 tensors, hub names" in made.output
    assert json.loads(run("inspect", tmp_path / "out.safetensors", "--json").output)["naming"] == "hub"


def test_a_file_that_is_none_is_one_message_and_exit_code_2(tmp_path, capsys):
    page = tmp_path / "page.pth"
    page.write_text("<html>sign in</html>")
    with pytest.raises(SystemExit) as left:
        main(["weights", "inspect", str(page)])
    assert left.value.code == 2
    assert "is a web page" in capsys.readouterr().err
