"""A folder of labelled files as a data set for part segmentation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from pcl_clora.data import PartDataset, build_dataset, build_validation, check_root, describe_root
from pcl_clora.data.part_names import read_part_names
from pcl_clora.io import DataError, write_points

PARTS = {3: "foot", 7: "shade"}


def lamp(seed: int, count: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Points over [0, 1], of which those above 0.5 are of the shade."""
    points = np.random.default_rng(seed).uniform(size=(count, 3))
    return points, np.where(points[:, 1] > 0.5, 7, 3)


def write_folder(root: Path, *, parts=PARTS, suffixes=(".ply", ".csv", ".npz"), where=(".",), each=6) -> Path:
    """Labelled files of mixed formats."""
    for folder in where:
        (root / folder).mkdir(parents=True, exist_ok=True)
        for number in range(each):
            points, labels = lamp(number)
            write_points(
                root / folder / f"{number}{suffixes[number % len(suffixes)]}", points, {"label": labels}
            )
    (root / "parts.yaml").write_text(yaml.safe_dump(parts, sort_keys=False))
    return root


def build(root: Path, split: str = "train", **settings):
    values = {"name": "labelled_folder", "root": str(root), "num_points": 48, **settings}
    return build_dataset(values, split)


def test_every_point_keeps_the_part_that_its_file_says(tmp_path):
    dataset = build(write_folder(tmp_path), normalize=False)
    assert isinstance(dataset, PartDataset)
    assert dataset.taxonomy.part_names == ("foot", "shade")
    assert (len(dataset), len(build(tmp_path, "test"))) == (5, 1)
    for sample in dataset:
        assert torch.equal(sample.part_labels, (sample.points[:, 1] > 0.5).long())
    batch = dataset.read_batch([0, 1])
    assert batch.points.shape == (2, 48, 3)
    assert batch.part_labels.shape == (2, 48)


@pytest.mark.parametrize("field", ["3", "-1", ""])
def test_labels_are_found_by_column(tmp_path, field):
    write_folder(tmp_path, each=0)
    for number in range(4):
        points, labels = lamp(number)
        np.savetxt(tmp_path / f"{number}.xyz", np.column_stack([points, labels]))
    sample = build(tmp_path, labels=field, normalize=False)[0]
    assert torch.equal(sample.part_labels, (sample.points[:, 1] > 0.5).long())


def test_labels_are_found_by_the_name_of_a_field(tmp_path):
    write_folder(tmp_path, each=0)
    for number in range(4):
        points, labels = lamp(number)
        fields = {"label": np.zeros(60, np.int32), "what": labels}
        write_points(tmp_path / f"{number}.ply", points, fields)
    assert len(build(tmp_path, labels="what")[0].part_labels.unique()) == 2


def test_a_mesh_gives_points_of_its_surface_with_the_labels_of_its_corners(tmp_path):
    write_folder(tmp_path, each=0)
    corners = np.array([[0, 0, 0], [1, 0, 0], [0, 0, 1], [0, 5, 0], [1, 5, 0], [0, 5, 1]], float)
    faces = np.array([[0, 1, 2], [3, 4, 5]])
    for number in range(2):
        labels = np.array([3, 3, 3, 7, 7, 7])
        write_points(tmp_path / f"{number}.ply", corners + number, {"label": labels}, faces)
    sample = build(tmp_path, normalize=False)[0]
    assert torch.equal(sample.part_labels, (sample.points[:, 1] > 3).long())
    assert 0 < sample.part_labels.float().mean() < 1


def test_folders_of_splits_are_kept(tmp_path):
    root = write_folder(tmp_path, where=("train", "test", "val"), each=2)
    assert [len(build(root, split)) for split in ("train", "test")] == [2, 2]
    assert all("/test/" in sample.path for sample in build(root, "test"))
    assert len(build_validation({"name": "labelled_folder", "root": str(root), "num_points": 48})) == 2


def test_categories_are_folders_with_parts_of_their_own(tmp_path):
    parts = {"Lamp": {"foot": 3, "shade": 7}, "Chair": {3: "seat", 7: "back"}}
    dataset = build(write_folder(tmp_path, parts=parts, where=("Chair", "Lamp")))
    assert dataset.taxonomy.categories == ("Lamp", "Chair")
    assert dataset.taxonomy.part_names == ("Lamp/foot", "Lamp/shade", "Chair/seat", "Chair/back")
    for sample in dataset:
        assert dataset.taxonomy.categories[sample.category] in sample.path
        assert set(sample.part_labels.tolist()) == set(dataset.taxonomy.ids[sample.category])


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("[foot, shade]", {0: 0, 1: 1}),
        ("3: foot\n7: shade", {3: 0, 7: 1}),
        ("shade: 7\nfoot: 3", {3: 0, 7: 1}),
    ],
)
def test_the_yaml_names_labels_in_any_of_three_ways(tmp_path, text, values):
    path = tmp_path / "parts.yaml"
    path.write_text(text)
    names = read_part_names(path)
    assert names.taxonomy.part_names == ("foot", "shade")
    assert names.values == (values,)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected the names of parts"),
        ("[foot]", "names 1 part, expected two or more"),
        ("[foot, foot]", "twice"),
        ("{1.5: foot, 2: shade}", "expected a whole number and a name"),
        ("{1: [a, b], 2: shade}", "expected a whole number and a name|names"),
        ("{a: [", "is not yaml"),
    ],
)
def test_a_yaml_that_names_no_parts_is_refused(tmp_path, text, message):
    path = tmp_path / "parts.yaml"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_part_names(path)


def broken(root: Path, suffix: str, points: np.ndarray, **fields: np.ndarray) -> Path:
    write_folder(root, each=0)
    for number in range(3):
        if suffix == ".npz":
            np.savez(root / f"{number}.npz", points=points, **fields)
        else:
            write_points(root / f"{number}{suffix}", points, fields)
    return root


@pytest.mark.parametrize(
    ("suffix", "fields", "field", "message"),
    [
        (".npz", {"labels": np.zeros(59, int)}, "", "has 59 labels in 'labels' and 60 points; give every"),
        (".ply", {}, "", "has no labels beside its points, but nothing; name it: data.labels"),
        (".ply", {"label": np.full(60, 3)}, "part", "the labels were to be 'part'"),
        (
            ".ply",
            {"label": np.full(60, 9)},
            "",
            r"labels without a name: 9 \(60 points\); parts.yaml names 3, 7",
        ),
        (".npz", {"labels": np.full(60, 0.5)}, "", "has the label 0.5 at point 0, expected whole numbers"),
        (".npz", {"labels": np.full(60, np.nan)}, "", "has the label nan at point 0"),
        (".ply", {"label": np.full(60, 3)}, "4", "has no columns without a name"),
        (".xyz", {"a": np.full(60, 3), "b": np.full(60, 3)}, "part", "the labels were to be 'part'"),
    ],
    ids=str,
)
def test_wrong_labels_are_named_with_the_remedy(tmp_path, suffix, fields, field, message):
    root = broken(tmp_path, suffix, lamp(0)[0], **fields)
    with pytest.raises(DataError, match=message):
        build(root, labels=field)[0]


def test_columns_without_names_have_to_be_told(tmp_path):
    write_folder(tmp_path, each=0)
    for number in range(3):
        np.savetxt(tmp_path / f"{number}.xyz", np.column_stack([lamp(number)[0], np.ones((60, 3))]))
    with pytest.raises(DataError, match="columns 3 to 5, none with a name; which one holds the labels"):
        build(tmp_path)[0]
    with pytest.raises(DataError, match="has the columns 0 to 5, of which 0 to 2 are x, y, z; not 6"):
        build(tmp_path, labels="6")[0]


def test_a_folder_that_says_too_little_is_refused(tmp_path):
    (tmp_path / "parts.yaml").write_text("[a, b]")
    with pytest.raises(DataError, match="holds no point files"):
        build(tmp_path)
    write_folder(tmp_path, where=(".", "train"))
    with pytest.raises(DataError, match="lies beside the folders of splits"):
        build(tmp_path)
    with pytest.raises(DataError, match=r"parts.yaml: there is no such file, and it was to name the parts"):
        build(tmp_path / "train")
    (tmp_path / "cats.yaml").write_text("{a: [x, y], b: [z]}")
    with pytest.raises(DataError, match="lies in 0 folders of categories, which are a, b"):
        build(tmp_path / "train", parts=str(tmp_path / "cats.yaml"))


def test_data_check_knows_the_folder_and_says_all_that_is_wrong(tmp_path):
    root = write_folder(tmp_path, parts={**PARTS, 9: "cord"})
    assert describe_root(root).layout == "labelled_folder"
    write_points(root / "bad.ply", lamp(0)[0], {"label": np.full(60, 4)})
    write_points(root / "none.ply", lamp(0)[0])
    found = [(one.level, Path(one.file).name) for one in check_root(root)]
    assert found[:2] == [("error", "bad.ply"), ("error", "none.ply")]
    assert any("no point is labelled cord" in one.message for one in check_root(root))
