"""Loading official and own files: complete reports, clear refusals, nothing executed."""

import json
import os
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pcl_clora.models import WeightsError, create_model, load_weights

SIZES = {"embed_dim": 48, "depth": 3, "num_heads": 3, "num_groups": 16, "group_size": 8}


def make(num_classes=15, **changes):
    torch.manual_seed(0)
    return create_model("point_mae", num_classes=num_classes, **{**SIZES, **changes}).eval()


def snapshot(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_unchanged(model, before):
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_an_official_pretrained_file_gives_the_golden_logits(golden):
    archive = np.load(golden / "pointmae_cls_tiny.npz")
    model = make()
    report = load_weights(model, golden / "ckpt_pointmae_pretrain_tiny.pth")
    rest = {k[2:]: torch.from_numpy(archive[k]).float() for k in archive.files if k.startswith(("w:cls_",))}
    load_weights(model, rest, allow_partial=True)

    assert report.container == "base_model"
    assert {name.split(".")[0] for name in report.missing} == {"prefix", "head"}
    assert set(report.unexpected.values()) == {"used in pre-training only"}
    assert "matched" in str(report)
    np.testing.assert_allclose(
        model(torch.from_numpy(archive["points"])).detach(), archive["output"], atol=2e-5
    )


def test_an_official_finetuned_file_gives_the_golden_logits(golden):
    archive = np.load(golden / "pointmae_cls_tiny.npz")
    model = make()
    report = load_weights(model, golden / "ckpt_pointmae_finetuned_tiny.pth")

    assert not report.missing
    assert not report.unexpected
    np.testing.assert_allclose(
        model(torch.from_numpy(archive["points"])).detach(), archive["output"], atol=2e-5
    )


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("keys", "matched", "missing", "unexpected"),
    [("pmae_pretrain", 156, 18, 53), ("pmae_cls_scan", 174, 0, 0)],
)
def test_official_key_lists_match_as_the_official_loader_does(shared, keys, matched, missing, unexpected):
    entries = json.loads((shared / "reference" / "keys" / f"{keys}.json").read_text())
    state = {name: torch.zeros(entry["shape"]) for name, entry in entries["keys"].items()}
    report = load_weights(create_model("point_mae", num_classes=15), state)
    assert (len(report.matched), len(report.missing), len(report.unexpected)) == (
        matched,
        missing,
        unexpected,
    )


def test_own_state_dict_round_trips_through_safetensors(tmp_path):
    model = make()
    save_file(model.state_dict(), tmp_path / "own.safetensors")
    other = create_model("point_mae", num_classes=15, **SIZES)
    report = load_weights(other, tmp_path / "own.safetensors")
    assert not report.missing
    assert_unchanged(other, snapshot(model))


def test_a_head_for_other_classes_is_left_out_as_a_whole(golden):
    model = make(num_classes=7)
    before = snapshot(model)
    report = load_weights(model, golden / "ckpt_pointmae_finetuned_tiny.pth")
    after = model.state_dict()
    assert all(torch.equal(after[n], before[n]) for n in before if n.startswith("head."))
    assert {name.split(".")[0] for name in report.missing} == {"head"}
    assert any("head for other classes" in reason for reason in report.unexpected.values())


def test_a_foreign_file_is_refused_and_changes_nothing():
    model = make()
    before = snapshot(model)
    with pytest.raises(WeightsError, match="none of its 1 keys belongs to this model"):
        load_weights(model, {"features.0.weight": torch.ones(3)})
    assert_unchanged(model, before)


def test_a_partial_backbone_is_refused_unless_told():
    model = make()
    state = {name: value for name, value in make().state_dict().items() if not name.startswith("blocks.2")}
    with pytest.raises(WeightsError, match=r"tensors of the backbone are not in the file \(first: blocks.2"):
        load_weights(model, state)
    assert load_weights(model, state, allow_partial=True).missing


def test_another_size_is_refused_and_changes_nothing():
    model = make()
    before = snapshot(model)
    with pytest.raises(WeightsError, match=r"have another shape, first patch_embed\.linear4"):
        load_weights(model, make(embed_dim=96).state_dict())
    assert_unchanged(model, before)


def test_the_content_of_a_file_loads_as_the_file_does(golden):
    file = golden / "ckpt_pointmae_finetuned_tiny.pth"
    model, other = make(), make()
    report = load_weights(model, torch.load(file, weights_only=True))
    assert report.container == "base_model"
    assert report.matched == load_weights(other, file).matched
    assert_unchanged(model, snapshot(other))


def test_half_precision_is_cast():
    model, source = make(), make()
    with torch.no_grad():
        source.norm.weight.fill_(0.5)
    load_weights(model, {name: value.half() for name, value in source.state_dict().items()})
    assert model.norm.weight.dtype == torch.float32
    assert torch.equal(model.norm.weight, source.norm.weight)


def test_numpy_scalars_in_an_official_file_are_admitted(tmp_path):
    model = make()
    torch.save({"model_state_dict": model.state_dict(), "test_acc": np.float64(0.5)}, tmp_path / "seg.pth")
    assert load_weights(model, tmp_path / "seg.pth").container == "model_state_dict"


class Evil:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_a_pickle_that_wants_to_run_code_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"base_model": make().state_dict(), "extra": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(WeightsError, match=r"asks to run code while loading \((posix|nt)\.mkdir\)"):
        load_weights(make(), tmp_path / "evil.pth")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_truncated_file_is_named(tmp_path, suffix):
    path = tmp_path / f"torn{suffix}"
    if suffix == ".pth":
        torch.save({"model": make().state_dict()}, path)
    else:
        save_file(make().state_dict(), path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(WeightsError, match="torn"):
        load_weights(make(), path)


def test_a_page_saved_in_place_of_a_file_is_not_called_hostile(tmp_path):
    (tmp_path / "page.pth").write_text("<html><body>404 not found</body></html>")
    with pytest.raises(WeightsError, match=r"page\.pth is not a torch or safetensors file: it is a web page"):
        load_weights(make(), tmp_path / "page.pth")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(WeightsError, match=r"gone\.pth does not exist"):
        load_weights(make(), tmp_path / "gone.pth")


def test_a_file_without_tensors_is_named(tmp_path):
    (tmp_path / "list.pth").write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(WeightsError, match=r"list\.pth"):
        load_weights(make(), tmp_path / "list.pth")


@pytest.mark.parametrize("state", [{}, {"norm.weight": np.ones(48, dtype=np.float32)}])
def test_a_state_dict_without_tensors_is_named(state):
    with pytest.raises(WeightsError, match="state dict holds no tensors"):
        load_weights(make(), state)
