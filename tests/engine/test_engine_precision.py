"""train.amp=auto: bfloat16 where the device computes in it itself, chosen once and kept."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from pcl_clora.config import ConfigError, config_hash
from pcl_clora.engine import CheckpointError, RunFolder, Trainer, TrainingInterrupted, evaluate_run, precision
from pcl_clora.engine.fewshot import run_fewshot
from pcl_clora.engine.precision import choose_precision, has_native_bfloat16, precision_of_run
from pcl_clora.engine.run.checkpoint import read_checkpoint
from pcl_clora.report import make_table
from tests.support.engine_cases import tiny_config

AUTO = {"train": {"amp": "auto"}, "optim": {"epochs": 2, "warmup_epochs": 0}}
CPU = torch.device("cpu")


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Sets whether the device is said to compute in bfloat16 itself."""

    def set_to(value: bool) -> None:
        monkeypatch.setattr(precision, "has_native_bfloat16", lambda device: value)

    return set_to


def interrupted(folder: Path, change: Mapping[str, Any]) -> None:
    """Train until step 3."""
    trainer = Trainer(tiny_config(AUTO, change), run_dir=folder, on_event=lambda event: stop(event))

    def stop(event: Mapping[str, Any]) -> None:
        if event["kind"] == "train" and event["step"] == 3:
            trainer._stop.requested = True

    with pytest.raises(TrainingInterrupted):
        trainer.fit()


@pytest.mark.parametrize(
    ("amp", "is_native", "expected"),
    [
        (False, True, "float32"),
        (True, False, "bfloat16"),
        ("auto", True, "bfloat16"),
        ("auto", False, "float32"),
    ],
)
def test_auto_takes_bfloat16_only_where_it_is_native(native, amp, is_native, expected) -> None:
    native(is_native)
    assert choose_precision(amp, CPU) == expected


@pytest.mark.parametrize(
    ("asked", "flags", "caps", "expected"),
    [
        ((False, True), "", {}, True),
        ((True, False), "", {}, True),
        ((False, False), "avx512_bf16", {}, False),  # torch knows better than a list of flags
        ((True,), "fpu avx2", {}, False),  # a torch that answers half: the system is asked
        ((), "fpu avx512_bf16 x", {}, True),
        ((), "fpu amx_bf16", {}, True),
        ((True, True), "", {"ONEDNN_MAX_CPU_ISA": "avx2"}, False),
        ((True, True), "", {"DNNL_MAX_CPU_ISA": "AVX512_CORE_VNNI"}, False),
        ((True, True), "", {"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_AMX"}, True),
    ],
)
def test_a_processor_is_asked_for_what_it_can_do(monkeypatch, tmp_path, asked, flags, caps, expected) -> None:
    names = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    for name in names:
        monkeypatch.delattr(torch.cpu, name, raising=False)
    for name, answer in zip(names, asked, strict=False):
        monkeypatch.setattr(torch.cpu, name, lambda answer=answer: answer, raising=False)
    (tmp_path / "cpuinfo").write_text(f"processor: 0\nflags\t\t: {flags}\n")
    monkeypatch.setattr(precision, "_CPUINFO", tmp_path / "cpuinfo")
    for name in ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in caps.items():
        monkeypatch.setenv(name, value)
    assert has_native_bfloat16(CPU) is expected


def test_other_devices_count_as_emulating() -> None:
    assert not has_native_bfloat16(torch.device("meta"))


def test_the_precision_is_in_result_checkpoint_and_identity(tmp_path, native) -> None:
    native(True)
    told: list[str] = []
    listen = lambda event: told.append(event["text"]) if event["kind"] == "message" else None  # noqa: E731
    result = Trainer(tiny_config(AUTO), run_dir=tmp_path, on_event=listen).fit().result
    assert result["precision"] == "bfloat16"
    assert read_checkpoint(RunFolder(tmp_path).checkpoint)[1]["train.amp"] is True
    assert precision_of_run(tmp_path, tiny_config(AUTO)) == "bfloat16"
    assert [text for text in told if "amp=auto: bfloat16" in text]


@pytest.mark.parametrize("began", [True, False])
def test_a_run_goes_on_elsewhere_in_the_precision_in_which_it_began(tmp_path, native, began, caplog) -> None:
    native(began)
    Trainer(tiny_config(AUTO), run_dir=tmp_path / "whole").fit()
    interrupted(tmp_path / "parts", {})
    native(not began)
    caplog.set_level(logging.WARNING, "pcl_clora")
    result = Trainer(tiny_config(AUTO), run_dir=tmp_path / "parts").fit().result
    assert result["precision"] == ("bfloat16" if began else "float32")
    whole = json.loads((tmp_path / "whole" / "result.json").read_text())
    assert whole["metrics"] == json.loads((tmp_path / "parts" / "result.json").read_text())["metrics"]
    warned = [text for text in caplog.messages if "13 times" in text and "--resume never" in text]
    assert bool(warned) == began  # only that one computes slowly now


def test_a_precision_given_as_true_or_false_is_a_setting_like_others(tmp_path, native) -> None:
    native(True)
    interrupted(tmp_path, {})
    with pytest.raises(CheckpointError, match=r"train.amp: True -> False"):
        Trainer(tiny_config(AUTO, {"train": {"amp": False}}), run_dir=tmp_path).fit()
    Trainer(tiny_config(AUTO, {"train": {"amp": True}}), run_dir=tmp_path).fit()


def test_true_where_it_is_emulated_warns_with_factor_and_machine(tmp_path, native, caplog) -> None:
    native(False)
    caplog.set_level(logging.WARNING, "pcl_clora")
    Trainer(tiny_config(AUTO, {"train": {"amp": True}, "optim": {"epochs": 1}}), run_dir=tmp_path).fit()
    assert [text for text in caplog.messages if "13 times" in text and "AVX2 only" in text and "amp" in text]


def test_eval_repeats_the_precision_of_the_run(tmp_path, native) -> None:
    native(True)
    trained = Trainer(tiny_config(AUTO), run_dir=tmp_path).fit().result
    native(False)
    again = evaluate_run(tmp_path)
    assert again["precision"] == "bfloat16"
    assert again["metrics"] == trained["metrics"]
    assert evaluate_run(tmp_path, ["train.amp=false"])["precision"] == "float32"


def test_a_report_never_averages_two_precisions(tmp_path, native) -> None:
    folders = []
    for seed, is_native in enumerate((True, False, False)):
        native(is_native)
        folders.append(tmp_path / str(seed))
        Trainer(tiny_config(AUTO, {"seed": seed, "optim": {"epochs": 1}}), run_dir=folders[-1]).fit()
    assert [row.seeds for row in make_table(folders).rows] == [(0,), (1, 2)]


def test_folds_are_all_of_the_precision_of_the_first(tmp_path, native) -> None:
    def run(folds: Sequence[int]) -> None:
        few = {"optim": {"epochs": 1, "batch_size": 2}, "output": str(tmp_path), "data": {"test_size": 60}}
        run_fewshot(tiny_config(AUTO, few), ways=3, shots=2, folds=folds)

    native(False)
    run([0])
    native(True)
    run([0, 1])
    results = sorted(tmp_path.glob("*/fold_*/result.json"))
    assert [json.loads(path.read_text())["precision"] for path in results] == ["float32", "float32"]


def test_auto_is_no_default_and_other_words_are_refused() -> None:
    assert config_hash(tiny_config()) == config_hash(tiny_config({"train": {"amp": False}}))
    with pytest.raises(ConfigError, match=r"train.amp: use true, false or auto"):
        tiny_config({"train": {"amp": "sometimes"}})
