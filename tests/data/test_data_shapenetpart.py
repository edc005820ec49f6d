"""Part data in the text and in the hdf5 layout: what is read, what is drawn, what is refused, all at once."""

import json
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from numpy.random import RandomState

from pcl_clora.data import (
    SHAPENETPART,
    PartDataset,
    PartTaxonomy,
    PointLoader,
    build_dataset,
    build_validation,
    check_data,
    check_root,
    describe_root,
    read_taxonomy,
)
from pcl_clora.io import DataError
from tests.support.part_layouts import COUNTS, FOLDERS, IDS, TAXONOMY, make_part_hdf5, make_part_text

MAKERS = {"shapenetpart_txt": make_part_text, "shapenetpart_hdf5": make_part_hdf5}


@pytest.fixture(params=MAKERS)
def config(request, tmp_path):
    root = MAKERS[request.param](tmp_path / "parts")
    return {"name": request.param, "root": str(root), "num_points": 48}


def errors(root, **settings):
    found = check_data({**settings, "root": str(root)}) if settings else check_root(root)
    return [str(finding) for finding in found if finding.level == "error"]


# What is read


def test_both_layouts_give_clouds_with_parts_of_their_category(config):
    train = build_dataset(config, "train")
    assert isinstance(train, PartDataset)
    assert (len(train), len(build_dataset(config, "test"))) == (8, 4)
    assert train.class_names == ("Cap", "Mug")
    batch = train.read_batch(range(8))
    assert batch.points.shape == (8, 48, 3)
    assert batch.points.norm(dim=-1).max() <= 1 + 1e-6
    assert torch.equal(batch.category, train.labels)
    mask = train.taxonomy.mask()
    assert bool(mask[batch.category[:, None], batch.part_labels].all())
    assert torch.equal(train[3].points, batch.points[3])
    assert torch.equal(train[3].part_labels, batch.part_labels[3])


def test_labels_are_those_of_the_same_rows_of_the_file(tmp_path):
    root = make_part_text(tmp_path / "parts")
    test = build_dataset({"name": "shapenetpart_txt", "root": str(root), "num_points": 90}, "test")
    large = next(s for s in (test[i] for i in range(4)) if len(np.loadtxt(s.path)) == 90)
    rows = np.loadtxt(large.path)
    points = rows[:, :3] - rows[:, :3].mean(0)
    points /= np.linalg.norm(points, axis=1).max()
    np.testing.assert_allclose(large.points, points, atol=1e-6)
    np.testing.assert_array_equal(large.part_labels, rows[:, 6])


@pytest.mark.parametrize("wanted", [20, 48, 90])
def test_stored_sampling_repeats_points_only_where_it_must(tmp_path, wanted):
    root = make_part_text(tmp_path / "parts")
    data = build_dataset({"name": "shapenetpart_txt", "root": str(root), "num_points": wanted}, "test")
    for index in range(len(data)):
        available = len(np.loadtxt(data[index].path))
        distinct = len(torch.unique(data[index].points, dim=0))
        assert distinct == min(wanted, available)
        assert torch.equal(data[index].points, data[index].points)


def test_stored_sampling_depends_on_the_name_and_not_on_the_place(tmp_path):
    roots = [make_part_text(tmp_path / name) for name in ("one", "another")]
    first, second = (
        build_dataset({"name": "shapenetpart_txt", "root": str(root), "num_points": 40}, "train")
        for root in roots
    )
    assert all(torch.equal(first[i].points, second[i].points) for i in range(len(first)))


def test_paper_sampling_is_seeded_and_new_in_every_epoch(config):
    def read(epoch, seed=0):
        data = build_dataset({**config, "sampling": "paper", "sampling_seed": seed}, "train")
        return torch.cat([batch.points for batch in PointLoader(data, 4).batches(epoch)])

    assert torch.equal(read(0), read(0))
    assert not torch.equal(read(0), read(1))
    assert not torch.equal(read(0), read(0, seed=1))
    assert len(torch.unique(read(0)[0], dim=0)) < 48  # drawn with replacement


@pytest.mark.shared_data
@pytest.mark.parametrize(("split", "official"), [("train", "trainval"), ("test", "test")])
def test_draws_equal_those_of_the_published_loader(shared, tmp_path, split, official):
    script = shared / "fixtures" / "make_mini_data.py"
    subprocess.run([sys.executable, str(script), str(tmp_path / "mini")], check=True)
    root = tmp_path / "mini" / "shapenetcore_partanno_segmentation_benchmark_v0_normal"
    settings = {"name": "shapenetpart_txt", "root": str(root), "num_points": 256, "sampling": "paper"}
    data = build_dataset(settings, split)
    expected = np.load(shared / "fixtures" / "datasets_mini_expected.npz")
    assert data.taxonomy == SHAPENETPART
    assert len(data) == expected[f"part_{official}_len"]
    state = RandomState(5)
    for index, file in enumerate(expected[f"part_{official}_files"]):
        assert data[index].path.endswith(str(file))
        if index not in (0, 3, 7):
            continue
        sample = data.draw(index, state)
        np.testing.assert_allclose(sample.points[:32], expected[f"part_{official}_{index}_points"], atol=1e-6)
        np.testing.assert_array_equal(sample.part_labels, expected[f"part_{official}_{index}_seg"])
        assert sample.category == expected[f"part_{official}_{index}_cls"][0]


def test_the_validation_split_is_trained_on_unless_it_is_kept(config):
    kept = {**config, "train_on": "train"}
    assert build_validation(config) is None
    validation = build_validation(kept)
    assert (len(build_dataset(kept, "train")), len(validation)) == (2 * COUNTS["train"], 2 * COUNTS["val"])


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("folder", "name", "sizes", "parts"),
    [
        ("partseg_coseg_hdf5", "shapenetpart_hdf5", (570, 60, 128), 11),
        ("partseg_labeled_psb_hdf5", "shapenetpart_hdf5", (187, 38, 76), 94),
        ("partseg_coseg_txt_slice", "shapenetpart_txt", (15, 6, 9), 11),
        ("shapenetcore_partanno_segmentation_benchmark_v0_normal", "shapenetpart_txt", (3, 5, 12), 50),
    ],
)
def test_real_data_are_read_and_found_fine(shared, folder, name, sizes, parts):
    root = shared / "data" / folder
    info = describe_root(root)
    assert (info.layout, tuple(info.num_samples.values())) == (name, sizes)
    assert errors(root) == []
    config = {"name": name, "root": str(root), "train_on": "train"}
    read = (build_dataset(config, "train"), build_validation(config), build_dataset(config, "test"))
    assert tuple(map(len, read)) == sizes
    assert read[0].taxonomy.num_parts == parts
    assert read[2][0].points.shape == (2048, 3)


# Taxonomies


def test_the_table_of_shapenetpart_has_the_published_numbers():
    ids = dict(zip(SHAPENETPART.categories, SHAPENETPART.ids, strict=True))
    assert (SHAPENETPART.num_categories, SHAPENETPART.num_parts) == (16, 50)
    assert ids["Airplane"] == (0, 1, 2, 3)
    assert ids["Motorbike"] == (30, 31, 32, 33, 34, 35)
    assert ids["Table"] == (47, 48, 49)
    assert SHAPENETPART.category_of_part()[36] == SHAPENETPART.categories.index("Mug")


@pytest.mark.parametrize(
    "content",
    [
        TAXONOMY,
        IDS,
        {"Cap": {"panel": 0, "peak": 1}, "Mug": {"handle": 2, "body": 3, "rim": 4}},
        {"Cap": {"panel": 4, "peak": 0}, "Mug": [1, 2, 3]},
    ],
)
def test_a_taxonomy_is_read_from_names_or_labels(tmp_path, content):
    file = tmp_path / "parts.yaml"
    file.write_text(json.dumps(content))
    taxonomy = read_taxonomy(file)
    assert taxonomy.categories == ("Cap", "Mug")
    assert (taxonomy.num_parts, len(taxonomy.ids[1])) == (5, 3)
    assert taxonomy.mask().sum(0).tolist() == [1] * 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Cap: [a, b]\nMug: []\n", "category 'Mug' has no parts"),
        ("Cap: [0, 1]\nMug: [1, 2]\n", r"the part labels are 0, 1, 1, 2, expected 0\.\.3, each in one"),
        ("Cap: 3\n", "category 'Cap' has 3, expected a list or a mapping"),
        ("Cap: [0, 1]\nMug: [rim]\n", "some categories have labels and others names only"),
        ("- Cap\n", "holds a list, expected a mapping"),
        ("Cap: [\n", "is not valid yaml"),
    ],
)
def test_what_is_no_taxonomy_is_refused(tmp_path, text, message):
    file = tmp_path / "parts.yaml"
    file.write_text(text)
    with pytest.raises(DataError, match=message):
        read_taxonomy(file)


def test_a_given_taxonomy_replaces_that_of_the_folder(config, tmp_path):
    file = tmp_path / "parts.yaml"
    file.write_text(json.dumps(TAXONOMY))
    train = build_dataset({**config, "taxonomy": str(file)}, "train")
    assert train.taxonomy.part_names == ("Cap/panel", "Cap/peak", "Mug/handle", "Mug/body", "Mug/rim")


def test_a_folder_with_categories_unknown_to_the_taxonomy_asks_for_one(tmp_path):
    root = make_part_text(tmp_path / "parts")
    (root / "seg_classes.json").write_text(json.dumps({"Cap": [0, 1]}))
    with pytest.raises(DataError, match=r"does not have: Mug; set data\.taxonomy to a yaml file"):
        build_dataset({"name": "shapenetpart_txt", "root": str(root)}, "train")


def test_procedural_shapes_have_a_taxonomy():
    data = build_dataset({"name": "procedural", "test_size": 8, "num_points": 32}, "test")
    batch = data.read_batch(range(8))
    assert isinstance(data.taxonomy, PartTaxonomy)
    assert data.taxonomy.part_names == data.part_names
    assert bool(data.taxonomy.mask()[batch.category[:, None], batch.part_labels].all())


# What is wrong


def break_text(root: Path) -> list[str]:
    """Spoil five things; returns what must be said of each."""
    cap, mug = (sorted((root / folder).glob("*.txt")) for folder in FOLDERS.values())
    rows = np.loadtxt(cap[0])
    rows[4, 6] = 3  # a part of mugs
    np.savetxt(cap[0], rows, fmt="%.6f")
    np.savetxt(cap[1], np.loadtxt(cap[1])[:, :6], fmt="%.6f")
    cap[2].unlink()
    mug[0].write_text(mug[0].read_text()[:200] + " x")
    rows = np.loadtxt(mug[1])
    rows[0, 6] = 2.5
    np.savetxt(mug[1], rows, fmt="%.6f")
    return [
        f"{cap[0]}: part label 3 at point 4 (1 such points), expected one of 0, 1, the parts of Cap",
        f"{cap[1]}: has 6 columns, expected 7",
        f"{cap[2]}: the file is missing, a split list names",
        str(mug[0]),
        f"{mug[1]}: has the part label 2.5, expected a whole number",
    ]


def test_all_problems_of_text_files_are_listed_at_once(tmp_path):
    root = make_part_text(tmp_path / "parts")
    expected = break_text(root)
    found = "\n".join(errors(root))
    assert all(text in found for text in expected)
    with pytest.raises(DataError, match="5 problems:") as caught:
        build_dataset({"name": "shapenetpart_txt", "root": str(root)}, "train")
    assert all(text in str(caught.value) for text in expected)


def test_all_problems_of_hdf5_files_are_listed_at_once(tmp_path):
    root = make_part_hdf5(tmp_path / "parts")
    with h5py.File(root / "ply_data_train0.h5", "r+") as file:
        file["pid"][0, 7] = 4
        file["label"][1] = 9
        file["data"][2, 0] = np.nan
    content = (root / "ply_data_val0.h5").read_bytes()
    (root / "ply_data_val0.h5").write_bytes(content[: len(content) // 2])
    expected = [
        "ply_data_train0.h5#0: part label 4 at point 7",
        "ply_data_train0.h5#1: has category 9, expected 0..1",
        "ply_data_train0.h5#2: holds values that are not finite",
        "ply_data_val0.h5: cannot be read as hdf5, it may be truncated",
    ]
    found = "\n".join(errors(root))
    assert all(text in found for text in expected)
    with pytest.raises(DataError, match="4 problems:"):
        build_dataset({"name": "shapenetpart_hdf5", "root": str(root), "num_points": 48}, "train")


def test_a_missing_hdf5_dataset_and_another_shape_are_named(tmp_path):
    root = make_part_hdf5(tmp_path / "parts")
    with h5py.File(root / "ply_data_train0.h5", "r+") as file:
        del file["pid"]
    with h5py.File(root / "ply_data_val0.h5", "r+") as file:
        file["pid"][...] = 0
        del file["label"]
        file["label"] = np.zeros((1, 1), np.uint8)
    found = "\n".join(errors(root))
    assert "has data, label, expected datasets data, label and pid" in found
    assert "expected (n, N, 3), (n, 1) and (n, N)" in found


def test_a_category_without_clouds_is_an_error(tmp_path):
    root = make_part_text(tmp_path / "parts")
    for split in COUNTS:
        listing = root / "train_test_split" / f"shuffled_{split}_file_list.json"
        kept = [line for line in json.loads(listing.read_text()) if FOLDERS["Cap"] in line]
        listing.write_text(json.dumps(kept))
    assert any("category 'Mug' has no clouds" in text for text in errors(root))


def test_a_list_that_names_a_foreign_folder_or_is_missing_is_an_error(tmp_path):
    root = make_part_text(tmp_path / "parts")
    lists = root / "train_test_split"
    (lists / "shuffled_val_file_list.json").write_text('["shape_data/999/1"]')
    (lists / "shuffled_test_file_list.json").unlink()
    found = "\n".join(errors(root))
    assert "has the entry 'shape_data/999/1'" in found
    assert "shuffled_test_file_list.json: the file is missing" in found


def test_a_name_in_two_lists_is_an_error(tmp_path):
    root = make_part_text(tmp_path / "parts")
    lists = root / "train_test_split"
    (lists / "shuffled_val_file_list.json").write_text((lists / "shuffled_train_file_list.json").read_text())
    assert any("6 names are in the lists of train and val" in text for text in errors(root))


def test_too_few_stored_points_are_refused(tmp_path):
    root = make_part_hdf5(tmp_path / "parts")
    with pytest.raises(DataError, match="stores 64 points a shape, but 65 were asked for"):
        build_dataset({"name": "shapenetpart_hdf5", "root": str(root), "num_points": 65}, "train")


def test_an_empty_split_is_refused(tmp_path):
    root = make_part_text(tmp_path / "parts")
    (root / "train_test_split" / "shuffled_test_file_list.json").write_text("[]")
    with pytest.raises(DataError, match="the split 'test' is empty"):
        build_dataset({"name": "shapenetpart_txt", "root": str(root)}, "test")
