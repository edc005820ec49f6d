"""Adapter files that are damaged, foreign or absurd: AdapterFileError, and the model is as it was."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from pcl_clora.adapters import AdapterFileError, attach_adapter, load_adapter, read_adapter
from pcl_clora.engine.run.checkpoint import save_checkpoint
from tests.support import adapter_cases as cases


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "adapter.safetensors"
    cases.shake(attach_adapter(cases.make_backbone("plain"), cases.SETTINGS["clora"])).save_adapter(path)
    return path


def refused(path: Path, message: str) -> None:
    base = cases.make_backbone("plain")
    before = cases.snapshot(base)

    with pytest.raises(AdapterFileError, match=message) as caught:
        load_adapter(path, base)

    assert str(path) in str(caught.value)
    assert list(base.state_dict()) == list(before)
    assert cases.changed_names(base, before) == set()


def body(file: Path) -> int:
    """Where the tensors begin."""
    return 8 + struct.unpack("<Q", file.read_bytes()[:8])[0]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.99])
@pytest.mark.parametrize("fill", [0, 0xFF])
def test_bytes_that_were_lost_are_found(file: Path, share: float, fill: int) -> None:
    content = bytearray(file.read_bytes())
    start = body(file) + int(share * (len(content) - body(file)))
    content[start : start + 64] = bytes([fill]) * len(content[start : start + 64])
    file.write_bytes(content)

    refused(file, "is damaged: its tensors have another SHA-256")


def test_one_flipped_bit_is_found(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-3] ^= 1
    file.write_bytes(content)

    refused(file, "SHA-256")
    with pytest.raises(AdapterFileError, match="SHA-256"):
        read_adapter(file)


def rewrite(file: Path, change: Callable[[dict[str, torch.Tensor]], object], *, digest: bool = False) -> None:
    """Change the tensors of a file; without a digest, as earlier versions wrote them."""
    with safe_open(str(file), framework="pt") as opened:
        metadata = opened.metadata()
    header = json.loads(metadata["header"])
    if not digest:
        del header["tensors_sha256"]
    state = load_file(str(file))
    change(state)
    save_file(state, str(file), metadata={"header": json.dumps(header)})


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_file_without_digest_loads_unless_its_values_are_not_finite(file: Path, value: float) -> None:
    rewrite(file, lambda state: None)
    load_adapter(file, cases.make_backbone("plain"))

    rewrite_nothing = read_adapter(file)[0].tensors_sha256
    with safe_open(str(file), framework="pt") as opened:
        metadata = opened.metadata()
    state = load_file(str(file))
    state["model.cls_pos"][0, 0, 3] = value
    save_file(state, str(file), metadata=metadata)

    assert rewrite_nothing == ""
    refused(file, r"model\.cls_pos has 1 of 24 values that are not finite")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.update({"model.cls_pos": s["model.cls_pos"].int()}),
            r"cls_pos is torch\.int32, expected",
        ),
        (lambda s: s.update({"model.cls_pos": s["model.cls_pos"] + 0j}), r"cls_pos is torch\.complex64"),
        (lambda s: s.update({"model.cls_pos": s["model.cls_pos"].bool()}), r"cls_pos is torch\.bool"),
        (lambda s: s.update({"model.cls_pos": s["model.cls_pos"].double() * 1e300}), "cannot hold"),
        (lambda s: s.update({"model.cls_pos": torch.zeros(0)}), r"\(0,\), expected \(1, 1, 24\)"),
        (lambda s: s.clear(), "missing"),
    ],
    ids=["int", "complex", "bool", "double", "empty", "nothing"],
)
def test_tensors_of_another_kind_are_refused(file: Path, change, message: str) -> None:
    rewrite(file, change)

    refused(file, message)


def write_raw(path: Path, header: bytes, length: int | None = None, tail: bytes = b"") -> Path:
    path.write_bytes(struct.pack("<Q", len(header) if length is None else length) + header + tail)
    return path


def entry(**changes: object) -> bytes:
    return json.dumps({"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16], **changes}}).encode()


@pytest.mark.parametrize(
    ("header", "length"),
    [
        (b"{}", 10**10),
        (b"{}", 2**64 - 1),
        (entry(shape=[10**10]), None),
        (entry(shape=[10**10], data_offsets=[0, 4 * 10**10]), None),
        (entry(shape=[-4]), None),
        (entry(dtype="F99"), None),
        (b"[" * 100_000, None),
        (b'{"a":' * 50_000, None),
        (b"\xff\xfe", None),
        (b"", 0),
    ],
    ids=lambda value: str(value)[:24],
)
def test_absurd_headers_are_refused(tmp_path: Path, header: bytes, length: int | None) -> None:
    refused(write_raw(tmp_path / "a.safetensors", header, length), "safetensors|json|header")


@pytest.mark.parametrize("opening", ["[", '{"a":'])
def test_a_deep_header_is_refused(tmp_path: Path, opening: str) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(1)}, str(path), metadata={"header": opening * 100_000})

    refused(path, "json|deep|header")


@pytest.mark.parametrize(
    "changes",
    [
        {"extra": 3}, {"classes": 7}, {"adapter": []}, {"adapter": {}}, {"num_classes": "many"},
        {"not_in_weights": ["nowhere.weight"]}, {"normalisation": "text", "extra": 3},
        {"adapter": {"method": 3}},
    ],
    ids=str,
)  # fmt: skip
def test_headers_with_other_values_are_refused(file: Path, changes: dict[str, object]) -> None:
    with safe_open(str(file), framework="pt") as opened:
        header = json.loads(opened.metadata()["header"])
    save_file(load_file(str(file)), str(file), metadata={"header": json.dumps({**header, **changes})})

    if "not_in_weights" in changes:  # names nothing that the base has: nothing is left out
        load_adapter(file, cases.make_backbone("plain"))
    else:
        refused(file, "header|adapter")


def test_weights_are_told_from_adapters(tmp_path: Path) -> None:
    state = cases.make_backbone("plain").state_dict()
    save_file(state, str(tmp_path / "w.safetensors"))
    torch.save(state, tmp_path / "w.pth")
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)

    for name in ("w.safetensors", "w.pth", "old.pth"):
        refused(tmp_path / name, r"this is a weights file: use load_weights\(\)")


def test_other_files_say_what_they_are(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "checkpoint.safetensors", {"a": torch.zeros(1)}, {})
    np.save(tmp_path / "a.npy", np.zeros(3))
    (tmp_path / "text").write_text("hello")

    refused(tmp_path / "checkpoint.safetensors", "checkpoint of a run.*best/adapter")
    refused(tmp_path / "a.npy", "safetensors")
    refused(tmp_path / "text", "safetensors")
    refused(tmp_path, "is a folder.*best/adapter")
