"""Files of released fine-tuning code: read into an adapted model, told what they are, and written back."""

from __future__ import annotations

import json

import pytest
import torch

from pcl_clora.adapters import AdapterFileError, attach_adapter, load_adapter
from pcl_clora.cli import main
from pcl_clora.engine.setup import adapter_on_weights
from pcl_clora.models import WeightsError, create_model, load_weights
from pcl_clora.models.weights._containers import open_checkpoint
from pcl_clora.models.weights._official_view import view_officially
from pcl_clora.models.weights.convert import convert_weights, renamed, tensors_of_model
from pcl_clora.models.weights.inspect import inspect_weights
from tests.support import adapter_cases as cases

SIZES = {
    "num_classes": 5, "embed_dim": 48, "depth": 4, "num_heads": 3, "num_groups": 16, "group_size": 8,
    "encoder_widths": (16, 32, 64),
}  # fmt: skip
SMALL_SEGMENTER = {
    "task": "part_segmentation", "num_parts": 6, "propagation_widths": (24, 16),
    "segmentation_widths": (16, 8),
}  # fmt: skip
PAPER = {
    "vpt": {"method": "vpt", "num_prompts": 3},
    "dapt": {"method": "dapt", "mode": "paper", "rank": 4},
    "idpt": {"method": "idpt", "mode": "paper", "neighbors": 4},
    "pointgst": {"method": "pointgst", "mode": "paper", "rank": 4, "local": 4},
    "stag": {"method": "stag", "rank": 4, "per_down": 2, "start": 2, "per_graph": 1, "neighbors": 4},
    "gft": {
        "method": "gft", "mode": "paper", "num_prompts": 3, "cross_blocks": [0, 2], "width": 4,
        "num_heads": 2, "neighbors": 4, "edge_layers": 2, "edge_width": 6, "graph_width": 8,
    },
    "point_peft": {"method": "point_peft", "mode": "paper", "rank": 3, "neighbors": 3, "num_heads": 3},
    "ppt": {"method": "ppt", "mode": "paper", "width": 6},
    "pointlora": {
        "method": "pointlora", "mode": "paper", "rank": 3, "width": 6, "keep": [4, 2], "num_second": 8,
        "second_size": 8,
    },
}  # fmt: skip
SEGMENTATION = {
    "idpt seg": {"method": "idpt", "mode": "paper"},
    "ppt seg": {"method": "ppt", "mode": "paper", "width": 6},
    "gft seg": {
        **PAPER["gft"],
        "decoder": {"width": 8, "propagation_widths": [12, 10], "head_widths": [8, 6], "category_width": 4},
    },
}  # fmt: skip
ALL = {**PAPER, **SEGMENTATION}
NOT_SHOWN = {
    "neighbors",
    "num_heads",
    "local",
    "keep",
    "num_second",
    "second_size",
}  # settings that no shape shows
LISTS = {
    "vpt_cls": {"method": "vpt"},
    "dapt_cls": {"method": "dapt", "mode": "paper"},
    "idpt_cls": {"method": "idpt", "mode": "paper"},
    "pgst_cls": {"method": "pointgst", "mode": "paper"},
    "ppeft_cls": {"method": "point_peft", "mode": "paper"},
    "ppt_cls": {"method": "ppt", "mode": "paper"},
    "plora_cls": {"method": "pointlora", "mode": "paper"},
    "idpt_seg": {"method": "idpt", "mode": "paper"},
    "ppt_seg": {"method": "ppt", "mode": "paper", "width": 128},
}


def make_base(seed, **more):
    torch.manual_seed(seed)
    sizes = {key: value for key, value in SIZES.items() if "task" not in more or key != "num_classes"}
    return create_model("point_mae", **sizes, **more).eval()


def make_adapted(name, seed=0):
    """An adapted model none of whose numbers is that of a fresh one."""
    base = make_base(seed, **(SMALL_SEGMENTER if name in SEGMENTATION else {}))
    return cases.shake(attach_adapter(base, ALL[name]), seed=seed).eval()


@torch.no_grad()
def answer(model):
    """What a model says of some clouds."""
    points = cases.make_points()
    return model(points, torch.arange(4)) if model.interface.takes_category else model(points)


def written(model, path):
    """The tensors that released code reads of a model."""
    convert_weights(model, path)
    content = torch.load(path, weights_only=True)
    return content["model_state_dict" if model.interface.takes_category else "base_model"]


@pytest.mark.parametrize("name", ALL)
def test_what_is_written_for_released_code_comes_back_bit_by_bit(name, tmp_path):
    model = make_adapted(name)
    tensors = written(model, tmp_path / "official.pth")
    other = make_adapted(name, seed=5)
    before = answer(other)

    report = load_weights(other, {"base_model": {f"module.{key}": v for key, v in tensors.items()}})

    assert report.missing == ()
    assert {reason.kind for reason in report.unexpected.values()} <= {"second"}
    assert torch.equal(answer(other), answer(model))
    assert not torch.equal(before, answer(other))
    assert all(torch.equal(other.adapter_state()[key], v) for key, v in model.adapter_state().items())


@pytest.mark.parametrize("name", ALL)
def test_native_names_and_back_keep_every_tensor(name, tmp_path):
    tensors = written(make_adapted(name), tmp_path / "official.pth")

    made = convert_weights(tmp_path / "official.pth", tmp_path / "native.safetensors", to="native")
    convert_weights(tmp_path / "native.safetensors", tmp_path / "back.pth")

    content = torch.load(tmp_path / "back.pth", weights_only=True)
    back = content.get("base_model") or content["model_state_dict"]
    assert {reason.kind for reason in made.left_out.values()} <= {"second"}
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[key], tensors[key]) for key in tensors)


@pytest.mark.parametrize("name", ["idpt", "stag", "pointlora", "gft seg"])
def test_native_files_fill_an_adapted_model(name, tmp_path):
    model, other = make_adapted(name), make_adapted(name, seed=5)
    convert_weights(model, tmp_path / "native.safetensors", to="native")

    report = load_weights(other, tmp_path / "native.safetensors")

    assert (report.naming, report.missing, dict(report.unexpected)) == ("native", (), {})
    assert torch.equal(answer(other), answer(model))


@pytest.mark.shared_data
@pytest.mark.parametrize("name", LISTS)
def test_the_layout_of_released_code_is_written_to_the_letter(name, shared):
    listed = json.loads((shared / "reference" / "keys" / f"{name}.json").read_text())["keys"]
    task = {"task": "part_segmentation"} if name.endswith("seg") else {"num_classes": 15}
    with torch.device("meta"):
        model = attach_adapter(create_model("point_mae", **task), LISTS[name])
        tensors, left_out = renamed(view_officially(open_checkpoint(tensors_of_model(model))), "official")

    assert {key: list(value.shape) for key, value in tensors.items()} == {
        k: e["shape"] for k, e in listed.items()
    }
    assert left_out == {}


@pytest.mark.parametrize("name", ALL)
def test_a_file_says_its_method_and_settings(name, tmp_path):
    written(make_adapted(name), tmp_path / "official.pth")

    info = inspect_weights(tmp_path / "official.pth")

    expected = {key: value for key, value in ALL[name].items() if key not in NOT_SHOWN}
    found = {key: list(value) if isinstance(value, tuple) else value for key, value in info.adapter.items()}
    assert expected.items() <= found.items()
    assert f'"{name.split()[0]}"' in info.attach.replace("'", '"')
    assert info.create.startswith('create_model("point_mae"')


@pytest.mark.parametrize("name", [name for name in ALL if "mode" in ALL[name]])
def test_the_mended_form_reads_released_files_and_names_what_it_leaves_out(name, tmp_path):
    tensors = written(make_adapted(name), tmp_path / "official.pth")
    base = make_base(3, **(SMALL_SEGMENTER if name in SEGMENTATION else {}))
    model = attach_adapter(base, {**ALL[name], "mode": "corrected", "freeze": {"norm_stats": "frozen"}})

    report = load_weights(model, tensors)

    assert report.missing == ()
    assert {reason.kind for reason in report.unexpected.values()} <= {"second", "method", "scalar"}
    assert torch.isfinite(answer(model.eval())).all()


def test_of_two_names_of_a_layer_the_one_read_last_counts(tmp_path):
    model = make_adapted("idpt")
    tensors = written(model, tmp_path / "official.pth")
    assert torch.equal(tensors["blocks.cls.bn5.weight"], tensors["blocks.cls.conv5.1.weight"])
    wins, loses = torch.full((48,), 2.0), torch.full((48,), 3.0)
    there = "layers.blocks.3.graph.norm.weight"

    load_weights(model, {**tensors, "blocks.cls.bn5.weight": loses, "blocks.cls.conv5.1.weight": wins})
    assert torch.equal(model.adapter_state()[there], wins)

    del tensors["blocks.cls.conv5.1.weight"]
    load_weights(model, {**tensors, "blocks.cls.bn5.weight": loses})
    assert torch.equal(model.adapter_state()[there], loses)


@pytest.mark.parametrize("name", PAPER)
def test_a_small_file_on_the_pretrained_weights_is_the_large_file(name, tmp_path):
    released = written(make_adapted(name), tmp_path / "official.pth")
    known = make_base(7).official_keys
    frozen = {key: value for key, value in released.items() if known.translate(key, to="ours")}
    frozen = {f"MAE_encoder.{key}": value for key, value in frozen.items() if not key.startswith("cls_")}
    adapted = attach_adapter(make_base(7), PAPER[name]).eval()
    load_weights(adapted, released)
    adapted.save_adapter(tmp_path / "small.safetensors")

    # Pre-trained weights have the frozen tensors, and neither a class token nor a head.
    base = make_base(8)
    load_weights(base, {"base_model": frozen})
    again = load_adapter(tmp_path / "small.safetensors", base)

    assert torch.equal(answer(again), answer(adapted))
    assert (tmp_path / "small.safetensors").stat().st_size < (tmp_path / "official.pth").stat().st_size


def test_half_precision_halves_an_adapter_file_and_loads(tmp_path):
    model = make_adapted("idpt")
    model.save_adapter(tmp_path / "whole.safetensors")
    model.save_adapter(tmp_path / "half.safetensors", dtype="float16")
    sizes = [(tmp_path / f"{name}.safetensors").stat().st_size for name in ("half", "whole")]
    expected = model.adapter_state()["layers.blocks.3.graph.fuse.weight"].clone()

    loaded = load_adapter(tmp_path / "half.safetensors", make_base(0))

    assert sizes[0] < 0.6 * sizes[1]
    found = loaded.adapter_state()["layers.blocks.3.graph.fuse.weight"]
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-6)  # half precision


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 6}, r"have another shape.*'rank': 4"),
        ({"method": "vpt", "num_prompts": 2}, r"have another shape.*'num_prompts': 3"),
    ],
)
def test_other_settings_than_the_files_are_refused_with_those_of_the_file(change, message, tmp_path):
    name = str(change.get("method", "dapt"))
    tensors = written(make_adapted(name), tmp_path / "official.pth")
    model = attach_adapter(make_base(1), {**PAPER[name], **change})
    before = {key: value.clone() for key, value in model.state_dict().items()}

    with pytest.raises(WeightsError, match=message):
        load_weights(model, tensors)

    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_a_file_that_lacks_a_tensor_of_the_method_is_refused(tmp_path):
    tensors = written(make_adapted("dapt"), tmp_path / "official.pth")
    del tensors["blocks.blocks.1.Adapter_MLP.scale.weight"]

    with pytest.raises(
        WeightsError, match=r"1 tensors .* not in the file .*layers\.blocks\.1\.adapter\.scale"
    ):
        load_weights(make_adapted("dapt"), tensors)


def test_a_part_of_a_released_file_still_says_its_method(tmp_path):
    tensors = written(make_adapted("gft"), tmp_path / "official.pth")
    torch.save({key: value for key, value in tensors.items() if "prompt" not in key}, tmp_path / "part.pth")

    assert inspect_weights(tmp_path / "part.pth").adapter == {"method": "gft"}


def test_a_file_of_another_method_fills_the_backbone_and_says_so(tmp_path):
    tensors = written(make_adapted("dapt"), tmp_path / "official.pth")
    model = make_adapted("vpt", seed=4)
    before = {key: value.clone() for key, value in model.adapter_state().items()}

    report = load_weights(model, tensors)

    assert "what DAPT added is left out" in report.notes[0]
    assert all(torch.equal(model.adapter_state()[key], value) for key, value in before.items())


def test_a_method_without_released_code_has_no_official_file(tmp_path):
    model = attach_adapter(make_base(0), {"method": "lora"})

    with pytest.raises(WeightsError, match=r"lora adds tensors.*merge_and_unload\(\)"):
        convert_weights(model, tmp_path / "official.pth")
    convert_weights(model.merge_and_unload(), tmp_path / "official.pth")

    assert inspect_weights(tmp_path / "official.pth").adapter == {}


def test_weights_and_an_adapter_file_make_an_official_file(tmp_path, capsys):
    base = make_base(3)
    convert_weights(base, tmp_path / "base.pth")
    model = cases.shake(attach_adapter(base, PAPER["pointgst"])).eval()
    model.save_adapter(tmp_path / "adapter.safetensors")
    files = [str(tmp_path / name) for name in ("base.pth", "official.pth")]
    with pytest.raises(SystemExit) as left:
        main(["weights", "convert", *files, "--adapter", str(tmp_path / "adapter.safetensors")])
    assert left.value.code == 0

    other = make_adapted("pointgst", seed=5)
    load_weights(other, tmp_path / "official.pth")

    assert "fine-tuned with PointGST" in capsys.readouterr().out
    assert torch.equal(answer(other), answer(model))
    convert_weights(make_base(9), tmp_path / "wrong.pth")
    with pytest.raises(AdapterFileError, match="was made for base"):
        adapter_on_weights(tmp_path / "adapter.safetensors", str(tmp_path / "wrong.pth"))
