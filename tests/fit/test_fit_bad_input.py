"""What a user can get wrong with `pcl-clora fit`: a clear line with the remedy, and nothing written."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from pcl_clora.cli import app
from pcl_clora.errors import PclCloraError
from pcl_clora.fit import fit
from tests.support.fit_cases import write_folder, write_labelled


def no_classes(root: Path) -> list[str]:
    root.mkdir()
    np.save(root / "scan.npy", np.zeros((9, 3)))
    return []


def only_notes(root: Path) -> list[str]:
    root.mkdir()
    (root / "notes.md").write_text("none")
    return []


def one_class(root: Path) -> list[str]:
    write_folder(root, kinds=("ball",))
    return []


def one_file_a_class(root: Path) -> list[str]:
    write_folder(root, each=1)
    return []


def torn_files(root: Path) -> list[str]:
    write_folder(root, each=3)
    for name in ("ball/0.npy", "rod/2.npy"):
        (root / name).write_bytes(b"torn")
    return []


def labels_of_other_length(root: Path) -> list[str]:
    root.mkdir()
    write_labelled(root, each=0)
    for number in range(3):
        np.savez(
            root / f"{number}.npz",
            points=np.random.default_rng(0).normal(size=(70, 3)),
            labels=np.ones(60, int),
        )
    return []


def unknown_field(root: Path) -> list[str]:
    write_labelled(root)
    return ["--labels", "what"]


def label_without_a_name(root: Path) -> list[str]:
    write_labelled(root)
    (root / "parts.yaml").write_text("{1: plate, 5: rod}")
    return []


def missing_yaml(root: Path) -> list[str]:
    write_labelled(root)
    return ["--parts", str(root / "names.yaml")]


def no_run_to_extend(root: Path) -> list[str]:
    write_folder(root, each=2)
    return ["--extend", str(root)]


CASES = [
    (no_classes, r"no folders with point files .* set data\.root to the folder above the classes"),
    (only_notes, r"no folders with point files"),
    (one_class, r"holds one class \(ball\); give the files of each class, two or more"),
    (one_file_a_class, r"One file a class .* leaves none that judges the model; give five or more"),
    (torn_files, r"(?s)2 problems:.*ball/0\.npy.*rod/2\.npy.*mend them"),
    (labels_of_other_length, r"has 60 labels in 'labels' and 70 points; give every point one label"),
    (unknown_field, r"the labels were to be 'what'; name one of these"),
    (label_without_a_name, r"labels without a name: 4 \(96 points\); parts\.yaml names 1, 5"),
    (missing_yaml, r"names\.yaml: there is no such file, and it was to name the parts"),
    (no_run_to_extend, r"is not the folder of a finished run"),
]


@pytest.mark.parametrize(("prepare", "message"), CASES, ids=lambda value: getattr(value, "__name__", ""))
def test_a_clear_line_and_nothing_written(tmp_path, prepare, message):
    root, out = tmp_path / "scans", tmp_path / "run"
    more = prepare(root)
    done = CliRunner().invoke(
        app, ["fit", str(root), "--out", str(out), "--points", "64", "--up", "y", *more]
    )
    assert isinstance(done.exception, PclCloraError)
    assert re.search(message, str(done.exception)), str(done.exception)
    assert not out.exists()


def test_the_same_file_in_two_classes_is_named_before_training(tmp_path):
    root = write_folder(tmp_path / "scans", each=3)
    shutil.copy(root / "ball" / "0.npy", root / "rod" / "copy.npy")
    lines: list[str] = []

    def stop(line: str) -> None:
        lines.append(line)
        if "same file" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(root, tmp_path / "run", num_points=64, up="y", tell=stop)
    assert "are the same file under two classes (ball, rod); remove one." in lines[-1]
    assert not (tmp_path / "run").exists()
