"""LoRA in the layout of peft, there and back, with peft itself as the judge."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch import nn

from pcl_clora.adapters import AdapterFileError, AdapterStateError, attach_adapter, load_adapter
from pcl_clora.errors import UserValueError
from pcl_clora.models import describe_transformer
from tests.support import adapter_cases as cases

peft = pytest.importorskip("peft")
timm = pytest.importorskip("timm")

CLOSE = {"rtol": 1e-6, "atol": 1e-6}
OURS = {
    "lora": {"method": "lora", "rank": 4, "alpha": 6.0, "targets": ["q", "v", "fc1"]},
    "lora_pattern": {"method": "lora", "rank": 4, "targets": ["qkv", "proj"], "rank_pattern": {"proj": 2}},
    "lora_some_blocks": {"method": "lora", "rank": 3, "targets": ["fc2"], "blocks": [1]},
    "clora": {"method": "clora", "rank": 4, "num_spaces": 3},
    "clora_both": {"method": "clora", "rank": 2, "num_spaces": 2, "placement": "both", "scale": 0.5},
}
THEIRS = {
    "plain": {"r": 4, "lora_alpha": 8, "target_modules": ["qkv"]},
    "many": {"r": 3, "lora_alpha": 5, "target_modules": ["qkv", "fc1", "fc2"], "modules_to_save": ["head"]},
    "rslora": {"r": 4, "lora_alpha": 3, "target_modules": ["attn.proj"], "use_rslora": True},
    "patterns": {
        "r": 4, "lora_alpha": 8, "target_modules": ["qkv", "fc1"], "rank_pattern": {"fc1": 2},
        "alpha_pattern": {"blocks.1.attn.qkv": 3},
    },
}  # fmt: skip


def make_vit(depth=2):
    torch.manual_seed(0)
    sizes = {
        "img_size": 32,
        "patch_size": 8,
        "embed_dim": 48,
        "depth": depth,
        "num_heads": 3,
        "num_classes": 5,
    }
    model = timm.create_model("vit_tiny_patch16_224", **sizes).eval()
    model.interface = describe_transformer(model)
    return model


def images():
    return torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


def make_ours(name, train=("head",)):
    model = attach_adapter(make_vit(), {**OURS[name], "train": list(train)}).eval()
    return cases.shake(model, size=0.05)


def make_theirs(name, folder):
    model = peft.get_peft_model(make_vit(), peft.LoraConfig(**THEIRS[name])).eval()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if "lora_" in key or "modules_to_save" in key:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    model.save_pretrained(folder)
    return model


@torch.no_grad()
@pytest.mark.parametrize("name", OURS)
def test_peft_computes_what_our_adapter_computes(name, tmp_path):
    model = make_ours(name)
    model.save_adapter(tmp_path / "peft", layout="peft")

    theirs = peft.PeftModel.from_pretrained(make_vit(), str(tmp_path / "peft")).eval()

    expected = model(images())
    torch.testing.assert_close(theirs(images()), expected, **CLOSE)
    assert not torch.allclose(make_vit()(images()), expected, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("name", THEIRS)
def test_our_lora_computes_what_an_adapter_of_peft_computes(name, tmp_path):
    theirs = make_theirs(name, tmp_path / "peft")

    model = load_adapter(tmp_path / "peft", make_vit())

    assert model.config.method == "lora"
    assert model.config.train == (("head",) if name == "many" else ())
    torch.testing.assert_close(model(images()), theirs(images()), **CLOSE)
    with model.merged():
        torch.testing.assert_close(model(images()), theirs(images()), rtol=1e-5, atol=1e-5)  # folded


@torch.no_grad()
def test_clora_comes_back_as_the_lora_of_all_its_spaces(tmp_path):
    model = make_ours("clora")
    model.save_adapter(tmp_path / "peft", layout="peft")

    back = load_adapter(tmp_path / "peft" / "adapter_model.safetensors", make_vit(), "back")

    assert (back.active, back.config.method, back.config.rank) == ("back", "lora", 12)
    torch.testing.assert_close(back(images()), model(images()), **CLOSE)
    written = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert (written["r"], written["lora_alpha"]) == (12, 12)


@torch.no_grad()
def test_an_adapter_of_peft_is_saved_again_in_both_layouts(tmp_path):
    theirs = make_theirs("many", tmp_path / "peft")
    model = load_adapter(tmp_path / "peft", make_vit())
    model.save_adapter(tmp_path / "own.safetensors")
    model.save_adapter(tmp_path / "again", layout="peft")

    for place in ("own.safetensors", "again"):
        loaded = load_adapter(tmp_path / place, make_vit())
        torch.testing.assert_close(loaded(images()), theirs(images()), **CLOSE)


def test_what_peft_has_no_place_for_is_refused(tmp_path):
    biased = attach_adapter(make_vit(), {"method": "clora", "bias": True, "train": []})
    with pytest.raises(AdapterStateError, match=r"CLoRA has a bias.*bias=False"):
        biased.save_adapter(tmp_path / "peft", layout="peft")
    with pytest.raises(UserValueError, match=r"cls_token is trained besides.*train=\['head'\]"):
        make_ours("lora", train=("head", "tokens")).save_adapter(tmp_path / "peft", layout="peft")
    for settings in ({"method": "dora"}, {"method": "ssf"}, {"method": "linear_probe"}):
        model = cases.shake(attach_adapter(make_vit(), {**settings, "train": ["head"]}))
        with pytest.raises(AdapterStateError, match=r"no low-rank update|changes no linear layer"):
            model.save_adapter(tmp_path / "peft", layout="peft")
    with pytest.raises(UserValueError, match="layout='hugging' is not known"):
        make_ours("lora").save_adapter(tmp_path / "peft", layout="hugging")
    with pytest.raises(UserValueError, match="neither dtype, head_dtype nor metadata"):
        make_ours("lora").save_adapter(tmp_path / "peft", layout="peft", dtype="float16")
    (tmp_path / "file").write_text("there")
    with pytest.raises(UserValueError, match="is a file; the layout of peft is a folder"):
        make_ours("lora").save_adapter(tmp_path / "file", layout="peft")

    assert not (tmp_path / "peft").exists()


def test_an_untouched_class_token_does_not_hinder(tmp_path):
    model = attach_adapter(make_vit(), {"method": "lora"})

    model.save_adapter(tmp_path / "peft", layout="peft")

    assert json.loads((tmp_path / "peft" / "adapter_config.json").read_text())["modules_to_save"] == ["head"]


def change_config(folder, **values):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"peft_type": "IA3"}, "of type IA3.*only LORA"),
        ({"use_dora": True}, "use_dora=True, which has no counterpart"),
        ({"bias": "all"}, "bias='all', which has no counterpart"),
        ({"r": 5}, r"says r=5 .* but its lora_A has 4 rows"),
        ({"lora_alpha": None}, r"lora_alpha=None"),
    ],
)
def test_settings_without_a_counterpart_are_refused_and_nothing_is_attached(values, message, tmp_path):
    make_theirs("plain", tmp_path / "peft")
    change_config(tmp_path / "peft", **values)
    model = make_vit()
    names = list(model.state_dict())

    with pytest.raises(AdapterFileError, match=message):
        load_adapter(tmp_path / "peft", model)

    assert list(model.state_dict()) == names


def test_damaged_files_and_other_models_are_refused(tmp_path):
    make_theirs("many", tmp_path / "peft")
    other = make_vit()
    other.head = nn.Linear(48, 9)
    with pytest.raises(AdapterFileError, match=r"model\.head\.weight is \(5, 48\), expected \(9, 48\)"):
        load_adapter(tmp_path / "peft", other)
    shallow = make_vit(depth=1)
    with pytest.raises(AdapterFileError, match=r"changes blocks\.1\..*no layer of a role"):
        load_adapter(tmp_path / "peft", shallow)
    content = (tmp_path / "peft" / "adapter_model.safetensors").read_bytes()
    (tmp_path / "peft" / "adapter_model.safetensors").write_bytes(content[:100])
    with pytest.raises(AdapterFileError, match="cannot be read"):
        load_adapter(tmp_path / "peft", make_vit())
    (tmp_path / "peft" / "adapter_config.json").write_text("{")
    with pytest.raises(AdapterFileError, match="cannot be read"):
        load_adapter(tmp_path / "peft", make_vit())


def test_a_second_adapter_on_a_live_model_may_come_from_peft(tmp_path):
    theirs = make_theirs("plain", tmp_path / "peft")
    model = make_ours("clora")
    with torch.no_grad():
        first = model(images())

        load_adapter(tmp_path / "peft", model, "second")

        torch.testing.assert_close(model(images()), theirs(images()), **CLOSE)
        model.set_active("default")
        assert torch.equal(model(images()), first)
    before = copy.copy(model.adapter_names)
    change_config(tmp_path / "peft", peft_type="VERA")
    with pytest.raises(AdapterFileError, match="type VERA"):
        load_adapter(tmp_path / "peft", model, "third")
    assert (model.adapter_names, model.active) == (before, "default")
