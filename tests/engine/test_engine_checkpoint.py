"""Checkpoints: what goes in comes out; torn, foreign and impossible ones are refused with a reason."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from pcl_clora.engine import CheckpointError, load_checkpoint, save_checkpoint
from pcl_clora.engine.randomness import (
    capture_rng_state,
    deterministic_mode,
    make_generator,
    restore_rng_state,
)
from pcl_clora.io import write_json

IDENTITY = {"seed": 0, "optim.lr": 1e-3}


def tree() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    return {
        "plain": {"none": None, "flag": True, "count": 3, "text": "a/b", "list": [1, [2.5, "x"]]},
        "exact": [0.1, 1e-300, float("inf"), 2**70],
        "state": {0: {"step": torch.tensor(3.0)}, 7: {"avg": torch.randn(3, 4, generator=generator)}},
        "kinds": [
            torch.arange(5),
            torch.randn(2, 3, generator=generator).to(torch.bfloat16),
            torch.zeros(0, 3),
            torch.tensor(True),
            torch.arange(12.0).view(3, 4).t(),
        ],
        "empty": {},
    }


def same(one: Any, two: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return one.dtype == two.dtype and torch.equal(one, two)
    if isinstance(one, dict):
        return list(one) == list(two) and all(same(one[key], two[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(two) and all(same(a, b) for a, b in zip(one, two, strict=True))
    return type(one) is type(two) and one == two


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "last" / "checkpoint.safetensors"
    save_checkpoint(path, tree(), IDENTITY)
    return path


def test_a_tree_comes_back_value_for_value(saved: Path) -> None:
    assert same(load_checkpoint(saved, IDENTITY), tree())


def test_tensors_that_share_memory_come_back_apart(tmp_path: Path) -> None:
    whole = torch.arange(6.0)
    save_checkpoint(tmp_path / "c.safetensors", {"a": whole, "b": whole[2:4], "c": whole}, {})
    back = load_checkpoint(tmp_path / "c.safetensors")
    back["a"].zero_()
    assert back["b"].tolist() == [2.0, 3.0]
    assert torch.equal(back["c"], whole)


def test_a_value_that_needs_pickling_is_refused_by_its_place(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="'a/1', a complex"):
        save_checkpoint(tmp_path / "c.safetensors", {"a": [1, 2j]}, {})


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.999])
def test_a_truncated_file_is_refused(saved: Path, share: float) -> None:
    content = saved.read_bytes()
    saved.write_bytes(content[: int(len(content) * share)])
    with pytest.raises(CheckpointError, match=r"is damaged .*--resume never"):
        load_checkpoint(saved, IDENTITY)


def position_of(name: str) -> Callable[[bytes], int]:
    places = {
        "length": lambda content: 2,
        "header": lambda content: content.index(b'"state'),
        "settings": lambda content: content.index(b"optim.lr") + 1,
        "first tensor": lambda content: 8 + int.from_bytes(content[:8], "little") + 1,
        "last byte": lambda content: len(content) - 1,
    }
    return places[name]


@pytest.mark.parametrize("place", ["length", "header", "settings", "first tensor", "last byte"])
def test_one_flipped_bit_is_refused(saved: Path, place: str) -> None:
    content = bytearray(saved.read_bytes())
    content[position_of(place)(bytes(content))] ^= 1
    saved.write_bytes(content)
    with pytest.raises(CheckpointError, match="is damaged"):
        load_checkpoint(saved, IDENTITY)


def test_a_file_of_another_run_is_refused_with_the_difference(saved: Path) -> None:
    now = {"seed": 0, "optim.lr": 2e-3, "augment": "none"}
    with pytest.raises(CheckpointError) as caught:
        load_checkpoint(saved, now)
    assert "optim.lr: 0.001 -> 0.002" in str(caught.value)
    assert "augment: '(not set)' -> 'none'" in str(caught.value)
    assert "seed" not in str(caught.value)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"a": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match="not a checkpoint of a run"):
        load_checkpoint(path)


def test_another_version_of_the_format_is_refused(saved: Path) -> None:
    with safe_open(saved, framework="pt") as file:
        metadata = {**file.metadata(), "version": "99"}
    save_file({"a": torch.zeros(2)}, saved, metadata=metadata)
    with pytest.raises(CheckpointError, match="checkpoint format 99, this version reads 1"):
        load_checkpoint(saved)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="There is no checkpoint"):
        load_checkpoint(tmp_path / "gone.safetensors")


def test_an_interrupted_write_leaves_the_old_file_whole(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", die)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(saved, {"other": 1}, IDENTITY)
    assert same(load_checkpoint(saved, IDENTITY), tree())


def test_json_is_written_whole_and_with_nothing_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    write_json(path, {"a": [[1, 2], [3, 4]], "b": None, "c": {"d": (float("nan"), 0.5)}})
    expected = {"a": [[1, 2], [3, 4]], "b": None, "c": {"d": [None, 0.5]}}
    assert json.loads(path.read_text(encoding="utf-8")) == expected
    assert [file.name for file in tmp_path.iterdir()] == ["result.json"]


@pytest.mark.skipif(os.name != "posix", reason="rights are of posix file systems")
def test_written_files_have_the_rights_of_the_users_files(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, {}, {})
    assert path.stat().st_mode == (tmp_path / "plain").stat().st_mode


def draw() -> list[float]:
    normal = np.random.standard_normal()
    return [random.random(), random.gauss(0, 1), normal, float(torch.rand(())), float(torch.randn(()))]


def test_all_generators_continue_from_a_saved_state(tmp_path: Path) -> None:
    random.seed(3)
    np.random.seed(3)
    torch.manual_seed(3)
    draw()  # an odd number of normal draws: the second of a pair is waiting in python and numpy
    save_checkpoint(tmp_path / "c.safetensors", {"rng": capture_rng_state()}, {})
    expected = [draw(), draw()]
    restore_rng_state(load_checkpoint(tmp_path / "c.safetensors")["rng"])
    assert [draw(), draw()] == expected


def test_generators_of_neighbouring_purposes_differ() -> None:
    keys = [(0, "augment", 0, 1), (0, "augment", 1, 0), (1, "augment", 0, 1), (0, "vote", 0, 1)]
    assert len({float(torch.rand((), generator=make_generator(*key))) for key in keys}) == len(keys)
    again = [torch.rand(3, generator=make_generator(*keys[0])) for _ in range(2)]
    assert torch.equal(*again)


def test_deterministic_mode_gives_the_old_state_back() -> None:
    before = torch.get_deterministic_debug_mode()
    with deterministic_mode():
        assert torch.are_deterministic_algorithms_enabled()
    assert torch.get_deterministic_debug_mode() == before


def test_deterministic_mode_can_be_off() -> None:
    with deterministic_mode(enabled=False):
        assert not torch.are_deterministic_algorithms_enabled()
