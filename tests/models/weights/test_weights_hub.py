"""Weights by id: pinned addresses, a cache that is checked, clear words without a network."""

import json
import sys
import types

import pytest
import torch
from safetensors.torch import save_file

from pcl_clora.io import sha256_file
from pcl_clora.models import WeightsError, create_model, load_weights
from pcl_clora.models.weights.hub import RECORD, fetch, hub_folder
from pcl_clora.models.weights.hub_catalogue import PRETRAINED, list_pretrained

ID = "point-mae-base.pretrain.yatian-pang"
SIZES = {"embed_dim": 48, "depth": 2, "num_heads": 3, "num_groups": 16, "group_size": 8}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PCL_CLORA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "hub"


def weights_of(seed=0):
    torch.manual_seed(seed)
    return create_model("point_mae", **SIZES).state_dict()


@pytest.fixture
def server(monkeypatch):
    """Stand in for huggingface-hub: writes a file, and notes what was asked for."""
    asked = []

    def hf_hub_download(repo_id, filename, *, revision, local_dir):
        asked.append((repo_id, filename, revision))
        save_file(weights_of(), local_dir / filename)
        return str(local_dir / filename)

    module = types.ModuleType("huggingface_hub")
    module.hf_hub_download = hf_hub_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return asked


def break_server(monkeypatch, error):
    def hf_hub_download(*args, **kwargs):
        raise error

    module = types.ModuleType("huggingface_hub")
    module.hf_hub_download = hf_hub_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)


def test_a_file_is_downloaded_once_from_its_pinned_address(cache, server):
    first, second = fetch(f"hub:{ID}"), fetch(f"hub:{ID}")
    assert server == [(f"torch-pointcloud/{ID}", "model.safetensors", PRETRAINED[ID].revision)]
    assert first.path == second.path == cache / ID / PRETRAINED[ID].revision / "model.safetensors"


def test_the_digest_is_recorded_at_first_use(cache, server):
    path = fetch(f"hub:{ID}").path
    record = json.loads((path.parent / RECORD).read_text())
    assert record["sha256"] == sha256_file(path)
    assert record["size_bytes"] == path.stat().st_size
    assert record["how"] == "downloaded"


def test_a_changed_file_is_refused(cache, server):
    path = fetch(f"hub:{ID}").path
    save_file(weights_of(seed=1), path)
    with pytest.raises(WeightsError, match=r"has SHA-256 .*; expected .* changed or damaged"):
        fetch(f"hub:{ID}")


@pytest.mark.parametrize("damage", ["", "{", "[]", "null", "{}", "[" * 100_000])
def test_a_damaged_record_is_refused(cache, server, damage):
    path = fetch(f"hub:{ID}").path
    (path.parent / RECORD).write_text(damage)
    with pytest.raises(WeightsError, match=r"record\.json is damaged"):
        fetch(f"hub:{ID}")


def test_a_published_digest_counts_before_a_recorded_one(cache, server, monkeypatch):
    from dataclasses import replace

    monkeypatch.setitem(PRETRAINED, ID, replace(PRETRAINED[ID], sha256="0" * 64))
    with pytest.raises(WeightsError, match="as published"):
        fetch(f"hub:{ID}")


def test_a_file_put_there_by_hand_needs_no_network(cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    place = cache / ID / PRETRAINED[ID].revision
    place.mkdir(parents=True)
    save_file(weights_of(), place / "model.safetensors")
    assert fetch(f"hub:{ID}").path.parent == place
    assert json.loads((place / RECORD).read_text())["how"] == "put there by hand"


@pytest.mark.parametrize("error", [ConnectionError("no route to host"), FileNotFoundError("offline")])
def test_without_a_network_the_message_names_the_file_and_its_place(cache, monkeypatch, error):
    break_server(monkeypatch, error)
    with pytest.raises(WeightsError) as raised:
        fetch(f"hub:{ID}")
    said = str(raised.value)
    assert str(error) in said
    assert f"torch-pointcloud/{ID} at revision {PRETRAINED[ID].revision}" in said
    assert str(cache / ID / PRETRAINED[ID].revision / "model.safetensors") in said


def test_without_the_package_the_message_names_the_extra_and_the_place(cache, monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(WeightsError, match=r"pip install 'pcl-clora\[hub\]'.*put it at .*model\.safetensors"):
        fetch(f"hub:{ID}")


def test_an_unknown_id_names_the_nearest(cache):
    with pytest.raises(WeightsError, match=r"nearest ids: point-mae-base\.pretrain\.yatian-pang"):
        fetch("hub:point-mae-base.pretrained.yatian-pang")


@pytest.mark.parametrize("name", ["hub:", "hub:../../x", "hub:a/b", "hub:x@main"])
def test_what_is_no_id_is_refused_before_any_folder_is_made(cache, name):
    with pytest.raises(WeightsError, match="is not an id"):
        fetch(name)
    assert not cache.exists()


def test_any_other_repository_is_named_with_its_revision(cache, server):
    revision = "0123456789abcdef0123456789abcdef01234567"
    fetched = fetch(f"hub:pointgpt-s.pretrain.guangyan-chen@{revision}")
    assert server == [("torch-pointcloud/pointgpt-s.pretrain.guangyan-chen", "model.safetensors", revision)]
    assert "licence: unknown" in fetched.notes[-1]


def test_create_model_takes_an_id_and_the_report_says_where_it_comes_from(cache, server):
    model = create_model("point_mae", weights=f"hub:{ID}", **SIZES)
    expected = weights_of()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    report = str(load_weights(model, f"hub:{ID}"))
    assert PRETRAINED[ID].revision in report
    assert "licence: MIT" in report
    assert "sha256" in report


def test_the_cache_folder_can_be_chosen(tmp_path, monkeypatch, server):
    monkeypatch.setenv("PCL_CLORA_CACHE", str(tmp_path / "elsewhere"))
    assert hub_folder() == tmp_path / "elsewhere" / "hub"
    assert fetch(f"hub:{ID}", folder=tmp_path / "given").path.is_relative_to(tmp_path / "given")


@pytest.mark.shared_data
def test_all_listed_addresses_are_known_and_pinned(shared):
    listed = (shared / "reference" / "hub_weights.txt").read_text().split()
    assert sorted(spec.url for spec in PRETRAINED.values()) == sorted(listed)


@pytest.mark.parametrize("spec", PRETRAINED.values(), ids=lambda spec: spec.id)
def test_a_known_file_says_who_takes_it_and_what_it_has_seen(spec):
    assert len(spec.revision) == 40
    assert set(spec.revision) <= set("0123456789abcdef")
    assert spec.licence
    assert spec.paper
    assert spec.training_data
    assert all(0 < result.value < 1 and result.protocol for result in spec.published)
    assert spec.measured is None  # nothing was measured yet; a number needs a result file


def test_known_files_are_listed_by_id_or_model():
    assert [spec.id for spec in list_pretrained("point-mae-base.pretrain*")] == [ID]
    assert {spec.model for spec in list_pretrained("point_bert")} == {"point_bert"}
    assert len(list_pretrained()) == len(PRETRAINED)
