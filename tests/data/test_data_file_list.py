"""A csv of path,label as a data set."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pcl_clora.data import build_dataset, check_data, check_root, describe_root
from pcl_clora.io import DataError

LINES = [f"scans/{name}{k}.npy,{name}" for name in ("bee", "ant") for k in range(5)]


def write(root: Path, lines=LINES, *, name: str = "list.csv") -> Path:
    """A list, and the files that the lines of `LINES` name."""
    (root / "scans").mkdir(exist_ok=True)
    for number, line in enumerate(LINES):
        points = np.random.default_rng(number).normal(size=(40, 3)).astype(np.float32)
        np.save(root / line.partition(",")[0], points)
    path = root / name
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def build(path: Path, split: str = "train", **settings):
    return build_dataset(
        {"name": "file_list", "root": str(path), "num_points": 32, "repeat": True, **settings}, split
    )


def test_paths_are_relative_to_the_list_and_the_seed_splits(tmp_path, monkeypatch):
    path = write(tmp_path)
    monkeypatch.chdir("/")
    train, test = build(path), build(path, "test")
    assert train.class_names == ("ant", "bee")
    assert torch.bincount(train.labels).tolist() == [4, 4]
    assert torch.bincount(test.labels).tolist() == [1, 1]
    assert all(train.class_names[sample.label] in sample.path for sample in train)


@pytest.mark.parametrize(
    ("head", "mark", "turned"),
    [("path,label", ",", False), ("label;note;file", ";", True), ("", "\t", False)],
    ids=["header", "other order, semicolons", "no header, tabs"],
)
def test_a_header_may_name_the_columns(tmp_path, head, mark, turned):
    rows = [line.split(",") for line in LINES]
    lines = [mark.join([label, "old", file] if turned else [file, label]) for file, label in rows]
    path = write(tmp_path, [head, "", *lines] if head else lines)
    assert len(build(path)) + len(build(path, "test")) == 10


def test_a_split_column_is_kept_and_names_the_order_of_classes(tmp_path):
    lines = [f"{line},{'Test' if '0.npy' in line else 'train'}" for line in LINES]
    test = build(write(tmp_path, lines), "test", classes=["bee"])
    assert test.class_names == ("bee", "ant")
    assert sorted(Path(sample.path).stem for sample in test) == ["ant0", "bee0"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("scans/missing.npy,ant", r"line 11: names scans/missing.npy, which is not there"),
        ("scans/ant0.npy", r"line 11: has no label"),
        ("list.csv,ant", r"line 11: names list.csv, as ant|line 11"),
        ("scans/ant0.npy,bee", r"line 11: names scans/ant0.npy as bee, and line 6 as ant"),
        ("scans/ant0.npy,ant", r"line 11: names scans/ant0.npy again"),
        (",ant", r"line 11: has no path"),
        ("scans/ant0.npy,ant,dev", r"line 11: names the split 'dev'; known: train, test, val"),
    ],
)
def test_a_wrong_line_is_named_by_its_number(tmp_path, line, message):
    path = write(tmp_path, [*LINES, line])
    if line.startswith("list.csv"):
        (tmp_path / "notes.md").write_text("x")
        path.write_text(path.read_text().replace("list.csv,", "notes.md,"))
        message = r"line 11: names notes.md, which is not read"
    with pytest.raises(DataError, match=message):
        build(path)


def test_all_wrong_lines_are_listed_at_once(tmp_path):
    with pytest.raises(DataError, match=r"(?s)2 problems.*line 11.*line 12"):
        build(write(tmp_path, [*LINES, "scans/x.npy,ant", "scans/y.npy,ant"]))


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "names no files"),
        (["path,label"], "names no files"),
        (["file,where", "scans/ant0.npy,x"], "line 1: names the columns file, where"),
        ([LINES[0], f"{LINES[1]},train"], "line 1: names no split, and other lines do"),
    ],
)
def test_a_list_that_says_too_little_is_refused(tmp_path, lines, message):
    with pytest.raises(DataError, match=message):
        build(write(tmp_path, lines))


def test_a_missing_list_and_unknown_classes_are_refused(tmp_path):
    with pytest.raises(DataError, match="there is no such file, expected a csv"):
        build(tmp_path / "none.csv")
    with pytest.raises(DataError, match=r"has no file of wasp, which data\.classes names"):
        build(write(tmp_path), classes=["wasp"])


def test_a_row_of_an_h5_file_is_a_line(tmp_path):
    import h5py

    with h5py.File(tmp_path / "all.h5", "w") as file:
        file["data"] = np.random.default_rng(0).normal(size=(6, 40, 3)).astype(np.float32)
    lines = [f"all.h5#{k},{'ab'[k % 2]}" for k in range(6)]
    assert build(write(tmp_path, lines)).labels.tolist() == [0, 1, 0, 1]


def test_data_check_reads_the_list_and_its_files(tmp_path):
    path = write(tmp_path)
    assert describe_root(path).num_samples == {"all": 10}
    assert [finding.level for finding in check_root(path)] == ["info"]
    (tmp_path / "scans" / "ant3.npy").write_bytes(b"torn")
    found = check_data({"name": "file_list", "root": str(path), "num_points": 32})
    assert (found[0].level, Path(found[0].file).name) == ("error", "ant3.npy")
