"""A run folder that was changed behind the run's back, and what starting over removes."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pcl_clora.engine import (
    CheckpointError,
    RunFolder,
    Trainer,
    evaluate_run,
    load_run,
    randomness,
    read_metrics,
)
from pcl_clora.engine.run.folder import DERIVED
from pcl_clora.errors import PclCloraError
from pcl_clora.io import DataError, sha256_file
from pcl_clora.predict import Predictor
from pcl_clora.report import make_table, write_report
from tests.support.engine_cases import CLORA, tiny_config

SHORT = {**CLORA, "optim": {"epochs": 1, "warmup_epochs": 0}}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run; copy it before changing it."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    Trainer(tiny_config(SHORT), run_dir=folder).fit()
    return folder


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(bytes(content))


def test_the_result_names_the_adapter_file_by_its_digest(run: Path) -> None:
    result = RunFolder(run).read_result()
    assert result["adapter_sha256"] == sha256_file(RunFolder(run).chosen)


@pytest.mark.parametrize("use", [load_run, evaluate_run, Predictor, lambda folder: make_table([folder])])
def test_a_damaged_or_swapped_adapter_is_refused_by_whatever_uses_the_run(
    run: Path, use: Callable[[Path], object]
) -> None:
    flip_a_bit(RunFolder(run).chosen)
    with pytest.raises(DataError, match="is not the file that the run wrote"):
        use(run)


def test_results_without_a_digest_are_taken(run: Path) -> None:
    files = RunFolder(run)
    result = files.read_result()
    del result["adapter_sha256"]
    files.result.write_text(json.dumps(result))
    assert evaluate_run(run)["metrics"] == result["metrics"]


def test_the_train_command_writes_a_lost_adapter_file_again(run: Path) -> None:
    before = RunFolder(run).chosen.read_bytes()
    flip_a_bit(RunFolder(run).chosen)
    Trainer(tiny_config(SHORT), run_dir=run).fit()
    assert RunFolder(run).chosen.read_bytes() == before


def test_loading_a_run_leaves_every_generator_of_the_caller_alone(run: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    load_run(run)
    assert torch.equal(torch.rand(3), expected)


def test_a_base_without_weights_is_the_same_whatever_was_drawn_before(run: Path) -> None:
    torch.manual_seed(11)
    one = load_run(run)[1].state_dict()
    torch.manual_seed(12)
    other = load_run(run)[1].state_dict()
    assert all(torch.equal(value, other[name]) for name, value in one.items())


def test_generators_of_gpus_that_are_not_here_are_told(caplog: pytest.LogCaptureFixture) -> None:
    state = randomness.capture_rng_state()
    caplog.set_level(logging.WARNING, "pcl_clora")
    randomness.restore_rng_state({**state, "cuda": [*state["cuda"], torch.get_rng_state()]})
    assert "goes on where it sees" in caplog.text
    assert "CUDA_VISIBLE_DEVICES" in caplog.text


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace('"kind"', '"kine"', 1),
        lambda text: "x" + text,
        lambda text: text.replace("\n", " ", 1),
        lambda text: "[1]\n" + text,
        lambda text: "[" * 5000 + "\n" + text,
    ],
)
def test_an_edited_metrics_file_is_refused_with_its_line(run: Path, damage: Callable[[str], str]) -> None:
    metrics = RunFolder(run).metrics
    metrics.write_text(damage(metrics.read_text()))
    with pytest.raises(DataError, match=r"line \d+ is no event as a run writes it"):
        read_metrics(metrics)
    with pytest.raises(DataError, match=r"line \d+ is no event as a run writes it"):
        Trainer(tiny_config(SHORT), run_dir=run).fit()


def edit_a_number(metrics: Path) -> None:
    text = metrics.read_text()
    place = text.index('"loss": ') + len('"loss": ')
    metrics.write_text(text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :])


@pytest.mark.parametrize(
    ("use", "message"),
    [
        (write_report, "is not the file that the run wrote"),
        (lambda run: Trainer(tiny_config(SHORT), run_dir=run).fit(), "was edited or damaged in its first"),
    ],
)
def test_an_edited_number_of_the_metrics_is_found(
    run: Path, use: Callable[[Path], object], message: str
) -> None:
    edit_a_number(RunFolder(run).metrics)
    with pytest.raises(DataError, match=message):
        use(run)


def test_metrics_of_a_run_from_before_their_digest_are_taken(run: Path) -> None:
    files = RunFolder(run)
    result = files.read_result()
    assert result.pop("metrics_sha256") == sha256_file(files.metrics)
    files.result.write_text(json.dumps(result))
    edit_a_number(files.metrics)
    assert write_report(run).is_file()


def test_lines_that_a_power_cut_took_leave_a_gap(run: Path, caplog: pytest.LogCaptureFixture) -> None:
    metrics = RunFolder(run).metrics
    metrics.write_bytes(metrics.read_bytes()[:900])
    Trainer(tiny_config(SHORT), run_dir=run).fit()
    assert "the file has a gap" in caplog.text
    assert read_metrics(metrics)[-1]["purpose"] == "result"


def test_a_folder_in_place_of_a_checkpoint_is_named(run: Path) -> None:
    path = RunFolder(run).checkpoint
    path.unlink()
    path.mkdir()
    with pytest.raises(CheckpointError, match="is a folder, where the file"):
        Trainer(tiny_config(SHORT), run_dir=run).fit()
    with pytest.raises(PclCloraError, match="cannot be removed"):
        Trainer(tiny_config(SHORT), run_dir=run, resume="never").fit()


@pytest.mark.parametrize("content", ["", "{", "[1]", "null", "\x00", '{"metrics": 3}'])
def test_a_damaged_result_is_an_error_for_the_user(run: Path, content: str) -> None:
    RunFolder(run).result.write_text(content)
    with pytest.raises(PclCloraError):
        make_table([run])


def test_starting_over_removes_what_was_made_of_the_old_model(run: Path) -> None:
    left = [*DERIVED, "nonfinite-step-3.safetensors"]
    for name in left:
        (run / name).write_text("old")
    (run / "notes.txt").write_text("mine")
    Trainer(tiny_config(SHORT), run_dir=run, resume="never").fit()
    assert [name for name in left if (run / name).exists()] == []
    assert (run / "notes.txt").exists()


def folder_of_clouds(root: Path, classes: dict[str, int]) -> None:
    """Write a data set of name folder: that many clouds a class, in train and in test."""
    generator = torch.Generator().manual_seed(0)
    for split in ("train", "test"):
        for name, count in classes.items():
            (root / split / name).mkdir(parents=True, exist_ok=True)
            for number in range(count):
                points = torch.rand(64, 3, generator=generator).tolist()
                lines = (" ".join(f"{value:.6f}" for value in point) for point in points)
                (root / split / name / f"{number}.xyz").write_text("\n".join(lines) + "\n")


def add_a_file(root: Path) -> None:
    shutil.copy(root / "train" / "box" / "0.xyz", root / "train" / "box" / "more.xyz")


def lengthen_a_file(root: Path) -> None:
    path = root / "train" / "box" / "0.xyz"
    path.write_text(path.read_text() + "0 0 0\n")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (add_a_file, r"train: '12 clouds .*-> '13 clouds"),
        (lengthen_a_file, r"files: .*24 files of"),
        (lambda root: (root / "train" / "box" / "0.xyz").rename(root / "train" / "box" / "9.xyz"), "files: "),
        (
            lambda root: [
                (root / split / "box").rename(root / split / "crate") for split in ("train", "test")
            ],
            r"classes: \['ball', 'box', 'pole'\] -> \['ball', 'crate', 'pole'\]",
        ),
    ],
)
def test_a_run_does_not_go_on_with_other_data(
    tmp_path: Path, change: Callable[[Path], object], message: str
) -> None:
    root, run = tmp_path / "data", tmp_path / "run"
    folder_of_clouds(root, {"ball": 4, "box": 4, "pole": 4})
    data = {"name": "folder", "root": str(root), "num_points": 64}
    cfg = tiny_config({**SHORT, "data": data})
    Trainer(cfg, run_dir=run).fit()
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    (root / "README.md").write_text("notes do not matter")
    change(root)
    with pytest.raises(CheckpointError, match=message):
        Trainer(cfg, run_dir=run).fit()
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_data_that_cannot_be_read_leave_the_earlier_run_alone(tmp_path: Path, run: Path) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    cfg = tiny_config({**SHORT, "data": {"name": "folder", "root": str(tmp_path / "none"), "num_points": 64}})
    with pytest.raises(DataError):
        Trainer(cfg, run_dir=run, resume="never").fit()
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
