"""Adapters that go to others: card, folder, hub (a stand-in, no network), and the commands on files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from typer.testing import CliRunner

from pcl_clora.adapters import AdapterFileError, attach_adapter, load_adapter
from pcl_clora.adapters.card import make_card, missing_from
from pcl_clora.adapters.differences import compare_adapters
from pcl_clora.adapters.files import read_header
from pcl_clora.adapters.share import NOVELTY, HubError, find_adapter, push_adapter, write_folder
from pcl_clora.cli import app
from pcl_clora.errors import UserValueError
from pcl_clora.io import save_tensors
from tests.support import adapter_cases as cases
from tests.support.fake_hub import FakeHub

METADATA = {
    "classes": ["chair", "table | lamp", "# sofa\n- x"],
    "metrics": {"oa": 0.8765, "macc": 0.8},
    "protocol": {"name": "honest", "select": "last"},
    "base_weights": {"source": "builtin", "sha256": "ab" * 32},
    "licence": "MIT",
    "novelty": {"threshold": 1.25},
}


def trained(seed: int = 3, **settings: object):
    config = {"method": "clora", "rank": 2, "num_spaces": 2, **settings}
    return cases.shake(attach_adapter(cases.make_backbone("point_mae"), config), seed=seed)


@pytest.fixture
def file(tmp_path) -> Path:
    """An adapter file with everything that a run says of itself."""
    trained().save_adapter(tmp_path / "run" / "a.safetensors", metadata=METADATA)
    return tmp_path / "run" / "a.safetensors"


@pytest.fixture
def hub(tmp_path, monkeypatch) -> FakeHub:
    return FakeHub.put_in_place(tmp_path / "hub", monkeypatch)


def test_a_card_has_figures_classes_licence_and_base(file):
    header = read_header(file)
    card = make_card(header, name="chairs", file_bytes=2048)
    front = yaml.safe_load(card.split("---")[1])
    assert front["license"] == "MIT"
    assert "clora" in front["tags"]
    for wanted in ("87.65 %", "honest", "1.25", header.base_sha256, "builtin", "2 KiB", "Classes (3)"):
        assert wanted in card


def test_a_card_says_what_the_novelty_score_beside_the_file_does(file, tmp_path):
    facts = {"score": "knn", "threshold": 0.5, "known": 80, "held_out": 20}
    beside = file.with_suffix(NOVELTY)
    save_tensors(beside, {"x": torch.ones(1)}, {**facts, "adapter_sha256": read_header(file).tensors_sha256})
    folder = write_folder(file, tmp_path / "shared")
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert "| novelty threshold | 0.5 of knn" in card
    assert "80 known and 20 held-out clouds" in card
    assert (folder / "adapter.novelty.safetensors").read_bytes() == beside.read_bytes()
    save_tensors(beside, {"x": torch.ones(1)}, {**facts, "adapter_sha256": "of another"})
    write_folder(file, tmp_path / "other")
    assert not (tmp_path / "other" / "adapter.novelty.safetensors").exists()


def test_what_a_card_lacks_is_said(file, tmp_path):
    assert missing_from(read_header(file), picture="a.png", novelty=True) == []
    trained().save_adapter(tmp_path / "bare.safetensors")
    said = run("card", tmp_path / "bare.safetensors", "--out", tmp_path / "bare")
    for what in ("figures", "names of the classes", "licence", "weights", "novelty threshold", "picture"):
        assert f"The card has no {what}" in said
    (tmp_path / "run" / "curve.png").write_bytes(b"png")
    assert "no picture" not in run("card", file, "--out", tmp_path / "shown")
    assert "![" in (tmp_path / "shown" / "README.md").read_text(encoding="utf-8")


def test_names_in_a_card_are_no_markdown(file):
    card = make_card(read_header(file), name="a\n# b", file_bytes=1)
    lines = card.splitlines()
    assert not any(line.startswith(("# b", "# sofa", "- x")) for line in lines)


def test_a_shared_folder_loads(file, tmp_path):
    folder = write_folder(file, tmp_path / "shared")
    assert (folder / "README.md").read_text(encoding="utf-8").count("# shared") == 1
    points = cases.make_points()
    loaded = load_adapter(folder, cases.make_backbone("point_mae"))
    assert torch.equal(loaded(points), load_adapter(file, cases.make_backbone("point_mae"))(points))


def test_what_is_pushed_comes_back_by_its_name_and_revision(hub):
    model = trained().eval()
    name = model.push_to_hub("me/chairs", metadata=METADATA)
    assert name == "hub:me/chairs@c0ffee"
    points = cases.make_points()
    assert torch.equal(load_adapter(name, cases.make_backbone("point_mae"))(points), model(points))
    assert "87.65 %" in (hub.root / "me" / "chairs" / "README.md").read_text(encoding="utf-8")


def test_another_revision_is_an_error_that_says_what_to_do(hub, file):
    push_adapter(file, "me/chairs")
    with pytest.raises(HubError, match=r"404 me/chairs 1234(.|\n)*Without network"):
        find_adapter("hub:me/chairs@1234")


def test_a_hub_that_refuses_is_one_message(hub, file, monkeypatch):
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError("401")

    monkeypatch.setattr(hub, "create_repo", refuse)
    with pytest.raises(HubError, match=r"PermissionError: 401.*Log in"):
        push_adapter(file, "me/chairs")


@pytest.mark.parametrize("name", ["hub:", "hub:chairs", "hub:../x", "hub:a/b/c", "hub:me/x@"])
def test_a_name_that_is_none_is_refused(name):
    with pytest.raises(UserValueError, match="names no adapter of the hub"):
        find_adapter(name)


def test_a_folder_without_an_adapter_is_named(tmp_path):
    with pytest.raises(AdapterFileError, match="is a folder"):
        load_adapter(tmp_path, cases.make_backbone("point_mae"))


def test_two_files_differ_in_settings_and_tensors(file, tmp_path):
    trained(seed=4, scale=0.5).save_adapter(tmp_path / "b.safetensors")
    found = compare_adapters(file, tmp_path / "b.safetensors")
    assert ("adapter.scale", 1.0, 0.5) in found.said
    assert "method.spaces.global.down" in found.changed
    assert not found.only_first
    same = compare_adapters(file, file)
    assert (same.said, same.changed) == ([], {})
    assert same.equal == len(load_adapter(file, cases.make_backbone("point_mae")).adapter_state())


def test_tensors_of_one_file_alone_are_listed(file, tmp_path):
    trained(rank=3, bias=True).save_adapter(tmp_path / "b.safetensors")
    found = compare_adapters(file, tmp_path / "b.safetensors")
    assert any(name.endswith(".bias") for name in found.only_second)
    assert any(name == "method.spaces.global.down" for name, _, _ in found.reshaped)


def run(*arguments: object) -> str:
    done = CliRunner().invoke(app, ["adapters", *map(str, arguments)], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_commands_list_show_and_write(file, tmp_path):
    (tmp_path / "run" / "other.safetensors").write_bytes(b"no adapter")
    listed = json.loads(run("list", tmp_path / "run", "--json"))
    assert [(row["method"], row["score"]) for row in listed] == [("clora", 0.8765)]
    assert json.loads(run("show", file, "--json"))["metrics"]["oa"] == 0.8765
    run("card", file, "--out", tmp_path / "shared", "--name", "Chairs")
    assert (tmp_path / "shared" / "README.md").read_text(encoding="utf-8").count("# Chairs") == 1
    assert json.loads(run("diff", file, tmp_path / "shared", "--json"))["said"] == []
