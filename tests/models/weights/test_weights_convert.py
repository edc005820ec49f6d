"""Weights under other names and in the other format: the same bits there and back."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from pcl_clora.models import WeightsError, create_model, load_weights
from pcl_clora.models.method_files import ADAPTER
from pcl_clora.models.weights._containers import open_checkpoint
from pcl_clora.models.weights._hub_names import hub_table_of, hub_tables
from pcl_clora.models.weights._left_out import unwrap
from pcl_clora.models.weights._official_view import view_officially
from pcl_clora.models.weights.convert import convert_weights, renamed

REFERENCE = Path(__file__).resolve().parents[4] / "shared" / "reference"
LISTS = [str(path.relative_to(REFERENCE))[:-5] for path in sorted(REFERENCE.glob("keys*/*.json"))]
FIXTURES = [path.name for path in sorted((REFERENCE.parent / "fixtures").glob("ckpt_*.pth"))]
SIZES = {"embed_dim": 48, "depth": 3, "num_heads": 3, "num_groups": 16, "group_size": 8}


def read_list(path, device="meta"):
    """Make the tensors of a key list: without content, or each full of a number of its own."""
    entries = json.loads((REFERENCE / f"{path}.json").read_text())
    shapes = {k: e["shape"] for k, e in entries["keys"].items()} if "keys" in entries else entries
    return {key: torch.full(shape, float(i), device=device) for i, (key, shape) in enumerate(shapes.items())}


def same_bits(first, second):
    return (
        first.keys() == second.keys()
        and all(first[key].dtype == second[key].dtype for key in first)
        and all(torch.equal(first[key], second[key]) for key in first)
    )


def without_module(tensors):
    return {key.removeprefix("module."): value for key, value in tensors.items()}


@pytest.mark.parametrize("to", ["hub", "native", "official"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("name", ["pretrain", "finetuned"])
def test_an_official_file_comes_back_bit_by_bit(golden, tmp_path, name, suffix, to):
    source = golden / f"ckpt_pointmae_{name}_tiny.pth"
    there, back = tmp_path / f"there{suffix}", tmp_path / "back.pth"
    convert_weights(source, there, to=to)
    made = convert_weights(there, back, to="official")
    before, after = torch.load(source, weights_only=True), torch.load(back, weights_only=True)
    assert same_bits(without_module(before["base_model"]), after["base_model"])
    assert made.left_out == {}
    assert made.naming == (to, "official")


@pytest.mark.shared_data
@pytest.mark.parametrize("to", ["native", "official"])
@pytest.mark.parametrize("name", FIXTURES)
def test_what_is_kept_of_any_official_file_comes_back_bit_by_bit(shared, tmp_path, name, to):
    source = shared / "fixtures" / name
    made = convert_weights(source, tmp_path / "there.safetensors", to=to)
    convert_weights(tmp_path / "there.safetensors", tmp_path / "back.safetensors", to="official")
    left_out = {
        unwrap(key) for key in made.left_out if not key.startswith(("transformer_k", "dvae", "queue"))
    }
    before = {
        unwrap(key): value
        for key, value in open_checkpoint(source).tensors.items()
        if not key.removeprefix("module.").startswith(("transformer_k", "dvae", "queue"))
    }
    after = {unwrap(key): v for key, v in open_checkpoint(tmp_path / "back.safetensors").tensors.items()}
    after = {key: value for key, value in after.items() if key in before}
    assert same_bits({key: value for key, value in before.items() if key not in left_out}, after)


@pytest.mark.shared_data
@pytest.mark.parametrize("path", LISTS)
def test_native_names_of_every_key_list_lead_back(path):
    view = view_officially(open_checkpoint(read_list(path)))
    tensors, left_out = renamed(view, "native")
    beside = {ADAPTER: json.dumps(dict(view.adapter))}
    back, _ = renamed(view_officially(open_checkpoint({**tensors, **beside})), "official")
    kept = {unwrap(key) for key in view.keys if getattr(left_out.get(key), "kind", "second") == "second"}
    if not view.adapter:  # ACT's names of the segmentation head become the usual ones
        kept = {key.replace("_cls.", ".") for key in kept}
    assert {unwrap(key) for key in back} == kept


@pytest.mark.shared_data
@pytest.mark.parametrize("path", [path for path in LISTS if "keys_hub" in path])
def test_hub_names_of_every_hub_list_lead_back(path):
    state = read_list(path)
    official, _ = renamed(view_officially(open_checkpoint(state)), "official")
    back, left_out = renamed(view_officially(open_checkpoint(official)), "hub")
    assert {key: value.shape for key, value in back.items()} == {k: v.shape for k, v in state.items()}
    assert left_out == {}


@pytest.mark.shared_data
@pytest.mark.parametrize("to", ["hub", "native"])
@pytest.mark.parametrize("path", ["keys/pmae_pretrain", "keys/pbert_cls", "keys/pmae_seg"])
def test_full_size_files_come_back_bit_by_bit(path, to):
    state = read_list(path, device="cpu")
    there, left_out = renamed(view_officially(open_checkpoint(state)), to)
    back, _ = renamed(view_officially(open_checkpoint(there)), "official")
    assert left_out == {}
    assert same_bits(back, state)


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("official", "hub"),
    [
        ("pmae_pretrain", "point-mae-base.pretrain.yatian-pang"),
        ("pmae_cls_scan", "point-mae-base.scanobjectnn-hardest.yatian-pang"),
        ("pmae_seg", "point-mae-base.shapenetpart.yatian-pang"),
        ("pbert_pretrain", "point-bert-base.pretrain.xumin-yu"),
        ("pbert_cls", "point-bert-base.modelnet40.xumin-yu"),
    ],
)
def test_the_hub_names_of_an_official_list_are_those_of_the_hub(official, hub):
    made, _ = renamed(view_officially(open_checkpoint(read_list(f"keys/{official}"))), "hub")
    theirs = read_list(f"keys_hub/{hub}")
    assert {key: value.shape for key, value in made.items()} == {k: v.shape for k, v in theirs.items()}


@given(st.sampled_from(sorted(hub_tables())), st.data())
def test_hub_tables_are_inverse(kind, data):
    table = hub_tables()[kind]
    rule = data.draw(st.sampled_from(table.rules))
    key = rule.first.replace("*", "3") + ("weight" if rule.first.endswith(".") else "")
    name = table.translate(key, to="hub")
    assert name is None or table.translate(name, to="official") == key


def test_a_file_of_our_own_is_not_taken_for_one_of_the_hub():
    state = create_model("point_mae", **SIZES).state_dict()
    assert hub_table_of(state, naming="hub") is None
    assert view_officially(open_checkpoint(state)).naming == "native"


@pytest.mark.parametrize(
    ("model", "task"),
    [
        ("point_mae", "classification"),
        ("point_mae", "part_segmentation"),
        ("point_mae", "pretraining"),
        ("pcp_mae", "classification"),
        ("recon", "classification"),
        ("recon", "part_segmentation"),
        ("point_bert", "classification"),
        ("pointgpt_s", "classification"),
    ],
)
def test_our_own_state_dicts_are_recognised(model, task):
    with torch.device("meta"):
        state = create_model(model, task=task, **SIZES).state_dict()
    view = view_officially(open_checkpoint(state))
    assert (view.identity.model, view.identity.task) == (model, task)


def test_a_converted_file_loads_as_the_source_does(golden, tmp_path):
    source = golden / "ckpt_pointmae_finetuned_tiny.pth"
    convert_weights(source, tmp_path / "native.safetensors", to="native")
    first, second = (create_model("point_mae", num_classes=15, **SIZES) for _ in range(2))
    load_weights(first, source)
    report = load_weights(second, tmp_path / "native.safetensors")
    assert report.naming == "native"
    assert same_bits(first.state_dict(), second.state_dict())


def test_a_hub_file_loads_as_the_official_one_does(golden, tmp_path):
    source = golden / "ckpt_pointmae_pretrain_tiny.pth"
    convert_weights(source, tmp_path / "hub.safetensors", to="hub")
    models = []
    for file in (source, tmp_path / "hub.safetensors"):
        torch.manual_seed(0)
        models.append(create_model("point_mae", num_classes=15, **SIZES))
        load_weights(models[-1], file)
    assert same_bits(models[0].state_dict(), models[1].state_dict())


@pytest.mark.parametrize(
    ("target", "options", "match"),
    [
        ("out.bin", {}, r"must end in one of \.safetensors"),
        ("there.pth", {}, "exists; choose another name"),
        ("out.pth", {"to": "theirs"}, "to='theirs' is not known"),
    ],
)
def test_what_cannot_be_written_is_refused(golden, tmp_path, target, options, match):
    (tmp_path / "there.pth").write_text("kept")
    with pytest.raises(WeightsError, match=match):
        convert_weights(golden / "ckpt_pointmae_finetuned_tiny.pth", tmp_path / target, **options)
    assert (tmp_path / "there.pth").read_text() == "kept"


def test_a_file_is_not_converted_onto_itself(tmp_path):
    file = tmp_path / "own.safetensors"
    save_file(create_model("point_mae", **SIZES).state_dict(), file)
    before = file.read_bytes()
    (tmp_path / "link.safetensors").symlink_to(file)
    for target in (file, tmp_path / "link.safetensors"):
        with pytest.raises(ValueError, match="would be written over the input"):
            convert_weights(file, target, to="official", overwrite=True)
    assert file.read_bytes() == before


def test_names_that_a_network_does_not_have_are_refused(tmp_path):
    torch.save(create_model("recon", **SIZES).state_dict(), tmp_path / "recon.pth")
    with pytest.raises(WeightsError, match=r"ReCon with its contrast branch.*no hub names are known"):
        convert_weights(tmp_path / "recon.pth", tmp_path / "hub.safetensors", to="hub")
    assert not (tmp_path / "hub.safetensors").exists()


def test_tensors_that_share_memory_are_written_one_by_one(golden, tmp_path):
    state = torch.load(golden / "ckpt_pointmae_finetuned_tiny.pth", weights_only=True)["base_model"]
    state["module.blocks.cls.bn1.weight"] = state["module.norm.weight"]
    torch.save({"base_model": state}, tmp_path / "alias.pth")
    made = convert_weights(tmp_path / "alias.pth", tmp_path / "flat.safetensors", to="official")
    assert made.num_tensors == len(state)
