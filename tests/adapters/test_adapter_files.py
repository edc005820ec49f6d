"""Adapter files: what they say, how small they are, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pcl_clora.adapters import (
    AdaptedModel,
    AdapterFileError,
    AdapterStateError,
    attach_adapter,
    load_adapter,
    read_adapter,
)
from pcl_clora.adapters.files import hash_tensors
from pcl_clora.config import ConfigError
from pcl_clora.models import create_model
from tests.support import adapter_cases as cases

CLORA = {"method": "clora", "rank": 4, "num_spaces": 3}


@pytest.fixture
def model() -> AdaptedModel:
    return cases.shake(attach_adapter(cases.make_backbone("point_mae"), CLORA))


@pytest.fixture
def file(model: AdaptedModel, tmp_path: Path) -> Path:
    path = tmp_path / "adapter.safetensors"
    model.save_adapter(path)
    return path


def rewrite(file: Path, **changes: object) -> None:
    """Write the file again with another header; None takes an entry out."""
    with safe_open(str(file), framework="pt") as opened:
        metadata = opened.metadata()
    header = {**json.loads(metadata["header"]), **changes}
    metadata["header"] = json.dumps({k: v for k, v in header.items() if v is not None})
    save_file(load_file(str(file)), str(file), metadata=metadata)


def test_the_header_says_what_it_is_and_where_it_belongs(model: AdaptedModel, tmp_path: Path) -> None:
    file = tmp_path / "adapter.safetensors"
    metadata = {
        "base_id": "point_mae pre-trained",
        "classes": ["a", "b", "c", "d", "e"],
        "input_rule": {"frame": "unit_sphere", "num_points": 1024},
        "protocol": {"name": "honest", "votes": 1},
        "metrics": {"oa": 0.9},
        "licence": "Apache-2.0",
        "git": "0123abc",
        "seed": 3,
    }

    model.save_adapter(file, metadata=metadata)
    header, state = read_adapter(file)

    assert header.format_version == 1
    assert header.adapter == model.config.model_dump(mode="json")
    assert header.base_sha256 == model.base_hash()
    assert header.base_model == model.base.config.model_dump(mode="json")
    assert header.num_classes == 5
    assert header.extra == {"seed": 3}
    assert {key: getattr(header, key) for key in metadata if key not in ("seed", "classes")} == {
        key: value for key, value in metadata.items() if key not in ("seed", "classes")
    }
    assert list(header.classes) == metadata["classes"]
    assert set(state) == set(model.adapter_state())


def test_what_a_file_says_of_itself_can_be_read_without_this_package(file: Path) -> None:
    with safe_open(str(file), framework="np") as opened:
        metadata = opened.metadata()

    header = json.loads(metadata["header"])
    assert header["format"] == "pcl_clora.adapter"
    assert header["adapter"]["method"] == "clora"


@pytest.mark.slow
def test_the_default_adapter_of_the_full_size_model_is_small(tmp_path: Path) -> None:
    model = attach_adapter(create_model("point_mae", num_classes=15), {"method": "clora"})
    file, half = tmp_path / "adapter.safetensors", tmp_path / "half.safetensors"

    model.save_adapter(file)
    model.save_adapter(half, head_dtype="float16")

    assert file.stat().st_size < 2_000_000
    assert half.stat().st_size < 1_000_000


def test_a_half_precision_head_is_rounded_and_nothing_else(model: AdaptedModel, tmp_path: Path) -> None:
    file, state = tmp_path / "half.safetensors", model.adapter_state()

    model.save_adapter(file, head_dtype="float16")
    loaded = load_adapter(file, cases.make_backbone("point_mae")).adapter_state()
    header, stored = read_adapter(file)

    assert header.head_dtype == "float16"
    assert {key for key, value in stored.items() if value.dtype == torch.float16} == {
        key for key, value in state.items() if key.startswith("model.head.") and value.is_floating_point()
    }
    assert all(loaded[key].dtype == value.dtype for key, value in state.items())
    for key, value in state.items():
        head = key.startswith("model.head.") and value.is_floating_point()
        assert torch.equal(loaded[key], value.half().float() if head else value), key


@pytest.mark.parametrize("setting", cases.FEW_SETTINGS)
def test_a_file_in_half_precision_moves_logits_by_less_than_a_hundredth(setting: str, tmp_path: Path) -> None:
    model, points = cases.make_backbone("point_mae"), cases.make_points()
    model = cases.shake(attach_adapter(model, cases.SETTINGS[setting]))

    model.save_adapter(tmp_path / "half.safetensors", dtype="float16")
    loaded = load_adapter(tmp_path / "half.safetensors", cases.make_backbone("point_mae"))

    expected = model(points)
    assert (loaded(points) - expected).abs().max() < 0.01 * expected.std()


def test_a_head_that_half_precision_cannot_hold_is_refused(model: AdaptedModel, tmp_path: Path) -> None:
    model.base.head[1].running_var[0] = 1e6

    with pytest.raises(ValueError, match=r"model\.head\.1\.running_var.*65504.*float32"):
        model.save_adapter(tmp_path / "half.safetensors", head_dtype="float16")

    assert list(tmp_path.iterdir()) == []


def test_another_base_is_refused_with_both_hashes_and_left_as_it_was(file: Path) -> None:
    other = cases.make_backbone("point_mae", seed=7)
    before = cases.snapshot(other)
    header, _ = read_adapter(file)

    with pytest.raises(AdapterFileError, match="allow_other_base=True") as caught:
        load_adapter(file, other)

    hashes = {word.strip(",;.") for word in str(caught.value).split() if len(word.strip(",;.")) == 64}
    assert header.base_sha256 in hashes
    assert len(hashes) == 2
    assert list(other.state_dict()) == list(before)
    assert cases.changed_names(other, before) == set()
    assert all(parameter.requires_grad for parameter in other.parameters())


def test_another_base_can_be_allowed(file: Path, model: AdaptedModel) -> None:
    loaded = load_adapter(file, cases.make_backbone("point_mae", seed=7), allow_other_base=True)

    assert all(
        torch.equal(value, loaded.adapter_state()[key]) for key, value in model.adapter_state().items()
    )


def test_one_changed_bit_of_the_base_is_another_base(file: Path) -> None:
    other = cases.make_backbone("point_mae")
    with torch.no_grad():
        other.blocks[1].mlp.fc2.bias.view(torch.int32)[0] ^= 1

    with pytest.raises(AdapterFileError, match="SHA-256"):
        load_adapter(file, other)


@pytest.mark.parametrize(
    "other",
    [
        {"b": torch.zeros(2, 3)},
        {"a": torch.zeros(3, 2)},
        {"a": torch.zeros(2, 3, dtype=torch.int32)},
        {"a": torch.ones(2, 3)},
        {"a": torch.zeros(2, 3), "b": torch.zeros(0)},
    ],
    ids=["name", "shape", "dtype", "bytes", "more"],
)
def test_the_hash_of_a_base_sees_every_difference(other: dict[str, torch.Tensor]) -> None:
    assert hash_tensors({"a": torch.zeros(2, 3)}, without=()) != hash_tensors(other, without=())


def test_the_hash_of_a_base_sees_neither_order_nor_layout_nor_what_is_left_out() -> None:
    one = {"a": torch.arange(6.0).view(2, 3), "b": torch.ones(1), "head.x": torch.ones(2)}
    other = {"b": torch.ones(1), "a": torch.arange(6.0).view(2, 3).t().contiguous().t()}

    assert hash_tensors(one, without=["head"]) == hash_tensors(other, without=["head"])


def test_what_the_adapter_carries_is_no_part_of_the_base(file: Path, model: AdaptedModel) -> None:
    other = cases.make_backbone("point_mae")
    torch.nn.init.zeros_(other.prefix.token)
    other.reset_classifier(11)
    other.eval()

    loaded = load_adapter(file, other)

    assert torch.equal(loaded(cases.make_points()), model(cases.make_points()))
    assert loaded.num_classes == 5


def test_a_failed_load_leaves_other_adapters_alone(file: Path) -> None:
    model = cases.shake(attach_adapter(cases.make_backbone("point_mae", seed=7), {"method": "lora"}, "mine"))
    output = model(cases.make_points())

    with pytest.raises(AdapterFileError):
        load_adapter(file, model, "new")

    assert model.adapter_names == ("mine",)
    assert model.active == "mine"
    assert torch.equal(model(cases.make_points()), output)


@pytest.mark.parametrize("value", [float("nan"), torch.ones(2), object()], ids=["nan", "tensor", "object"])
def test_metadata_that_json_cannot_hold_is_refused(
    model: AdaptedModel, tmp_path: Path, value: object
) -> None:
    with pytest.raises(ConfigError, match="cannot be written as json"):
        model.save_adapter(tmp_path / "a.safetensors", metadata={"metrics": {"oa": value}})

    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("length", [0, 5, 200, -1])
def test_a_torn_file_is_refused(file: Path, length: int) -> None:
    file.write_bytes(file.read_bytes()[:length])

    with pytest.raises(AdapterFileError, match="not a complete safetensors file"):
        load_adapter(file, cases.make_backbone("point_mae"))


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AdapterFileError, match="no such file; check the path"):
        load_adapter(tmp_path / "absent.safetensors", cases.make_backbone("point_mae"))


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}, {"header": "{}"}], ids=str)
def test_a_foreign_file_is_refused(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    file = tmp_path / "weights.safetensors"
    save_file({"weight": torch.zeros(2)}, str(file), metadata=metadata)

    with pytest.raises(AdapterFileError, match="no adapter of pcl_clora"):
        load_adapter(file, cases.make_backbone("point_mae"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": 2}, "format version 2; the newest known here is 1; update pcl_clora"),
        ({"format_version": None}, "format version None"),
        ({"base_sha256": None}, "base_sha256"),
        ({"unheard_of": 1}, "unheard_of"),
    ],
    ids=str,
)
def test_a_header_that_is_not_understood_is_refused(
    file: Path, changes: dict[str, object], message: str
) -> None:
    rewrite(file, **changes)

    with pytest.raises(AdapterFileError, match=message):
        load_adapter(file, cases.make_backbone("point_mae"))


def test_a_method_that_is_not_known_is_named(file: Path) -> None:
    rewrite(file, adapter={"method": "cloray"})

    with pytest.raises(AdapterFileError, match="'cloray' is not a fine-tuning method; did you mean 'clora'"):
        load_adapter(file, cases.make_backbone("point_mae"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("method.spaces.global.up"), r"missing method\.spaces\.global\.up"),
        (lambda state: state.update(more=torch.zeros(1)), "unexpected more"),
        (
            lambda state: state.update({"model.prefix.pos": torch.zeros(1, 1, 3)}),
            r"\(1, 1, 3\), expected \(1, 1, 48\)",
        ),
    ],
    ids=["missing", "unexpected", "shape"],
)
def test_tensors_that_do_not_fit_are_listed(file: Path, change, message: str) -> None:
    with safe_open(str(file), framework="pt") as opened:
        metadata = opened.metadata()
    state = load_file(str(file))
    change(state)
    save_file(state, str(file), metadata=metadata)

    with pytest.raises(AdapterFileError, match=message):
        load_adapter(file, cases.make_backbone("point_mae"))


def test_writing_replaces_the_file_whole_and_leaves_nothing_else(model: AdaptedModel, file: Path) -> None:
    before = file.read_bytes()
    cases.shake(model, seed=9)

    model.save_adapter(file)

    assert file.read_bytes() != before
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_without_an_active_adapter_there_is_nothing_to_save(model: AdaptedModel, tmp_path: Path) -> None:
    model.set_active(None)

    with pytest.raises(AdapterStateError, match=r"No adapter is active.*default"):
        model.save_adapter(tmp_path / "a.safetensors")


def test_a_state_of_another_shape_copies_nothing(model: AdaptedModel) -> None:
    before = cases.snapshot(model)
    state = {key: value + 1 for key, value in model.adapter_state().items()}
    state.pop("model.prefix.pos")

    with pytest.raises(ValueError, match=r"missing model\.prefix\.pos"):
        model.load_adapter_state(state)

    assert cases.changed_names(model, before) == set()
