import pickle
import re
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pcl_clora.config import ConfigError
from pcl_clora.data import build_dataset, check_data, check_root, describe_root, parse_data_config
from pcl_clora.data.folds import FewshotConfig, choose_fold
from pcl_clora.io import DataError
from tests.support.scan_layouts import fold, make_fewshot

SOURCE = {"name": "procedural", "classes": ["chair", "sofa", "mug", "bed"], "train_size": 32, "test_size": 24}


def build_official(root, split="train", **more):
    base = {"name": "modelnet_fewshot", "root": str(root), "ways": 5, "shots": 2, "num_points": 24}
    return build_dataset({**base, **more}, split)


def folds_of(**more):
    return {
        "name": "fewshot",
        "source": SOURCE,
        "ways": 2,
        "shots": 3,
        "test_per_class": 5,
        "num_points": 16,
        **more,
    }


# ---- official pickles


def test_official_folds_are_read_and_normalised_over_all_points(tmp_path):
    dataset = build_official(make_fewshot(tmp_path), num_points=10)
    raw = fold()["train"][3][0][:, :3].astype(np.float64)
    centred = raw - raw.mean(0)
    expected = centred / np.linalg.norm(centred, axis=1).max()
    np.testing.assert_allclose(dataset[3].points, expected[:10], atol=1e-6)
    assert dataset.labels.tolist() == [0, 1, 2, 3, 4] * 2
    assert dataset[3].path.endswith("0.pkl#train/3")


def test_the_folder_name_without_underscore_is_found(tmp_path):
    (make_fewshot(tmp_path) / "5way_2shot").rename(tmp_path / "5way2shot")
    assert len(build_official(tmp_path, "test", fold=1)) == 100


def test_the_head_may_keep_forty_outputs(tmp_path):
    assert len(build_official(make_fewshot(tmp_path), num_classes=40).class_names) == 40
    with pytest.raises(ConfigError, match="num_classes=3 is less than ways=5"):
        build_official(tmp_path, num_classes=3)


def change(part, number, item):
    def damage(content):
        content[part][number] = item
        return content

    return damage


POINTS = fold()["train"][0][0]
DAMAGES = [
    (lambda content: [content], "not a dict with lists"),
    (lambda content: {"train": content["train"]}, "not a dict with lists"),
    (change("train", 1, (POINTS[:, :2], 1, 1)), r"train item 1 is not \(points, label"),
    (change("train", 1, (POINTS[:9], 1, 1)), r"train item 1 is \(9, 6\), the first \(24, 6\)"),
    (change("test", 4, (POINTS, 5, 1)), r"test item 4 has label 5, expected 0\.\.4"),
    (change("test", 4, (POINTS * np.nan, 4, 1)), "test item 4 has values that are not finite"),
    (lambda content: {**content, "train": content["train"][:4]}, r"no clouds of the classes \[4\]"),
    (lambda content: {**content, "extra": Fraction(1, 3)}, "asks for fractions.Fraction"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGES)
def test_a_damaged_pickle_is_named_by_the_reader_and_by_the_check(tmp_path, damage, message):
    file = make_fewshot(tmp_path) / "5way_2shot" / "0.pkl"
    file.write_bytes(pickle.dumps(damage(fold())))
    with pytest.raises(DataError, match=message):
        [build_official(tmp_path, split) for split in ("train", "test")]
    errors = [str(one) for one in check_root(tmp_path) if one.level == "error"]
    assert any(re.search(message, one) for one in errors), errors


def test_a_truncated_and_a_missing_fold_are_named(tmp_path):
    file = make_fewshot(tmp_path) / "5way_2shot" / "0.pkl"
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(DataError, match="not a complete pickle"):
        build_official(tmp_path)
    with pytest.raises(DataError, match=r"9\.pkl: the file is missing"):
        build_official(tmp_path, fold=9)


def test_folds_of_another_size_than_their_name_says_are_a_warning(tmp_path):
    folder = make_fewshot(tmp_path) / "5way_2shot"
    (folder / "1.pkl").write_bytes(pickle.dumps(fold(shots=1, test=19)))
    found = [one for one in check_root(tmp_path) if one.file.endswith("1.pkl")]
    assert [one.level for one in found if "expected 2 of each" in one.message] == ["warning"]
    assert [one.level for one in found if "expected 20 of each" in one.message] == ["warning"]


def test_a_folder_of_folds_is_recognised(tmp_path):
    info = describe_root(make_fewshot(tmp_path))
    assert (info.layout, info.num_samples) == ("modelnet_fewshot", {"train": 10, "test": 100})
    assert (info.variants, info.settings) == (("5way_2shot",), {"ways": 5, "shots": 2, "fold": 0})
    assert check_root(tmp_path) == []
    settings = {"name": "modelnet_fewshot", "root": str(tmp_path), "ways": 5, "shots": 2, "num_points": 24}
    assert check_data(settings) == []
    assert "4.pkl" in check_data({**settings, "fold": 4})[0].file


# ---- generated folds


@settings(max_examples=40, deadline=None)
@given(
    ways=st.integers(2, 6),
    shots=st.integers(1, 5),
    number=st.integers(0, 20),
    seed=st.integers(0, 3),
    own_test=st.booleans(),
)
def test_a_fold_has_equally_many_clouds_of_its_classes_and_shares_none(ways, shots, number, seed, own_test):
    train, test = torch.arange(100) % 7, torch.arange(80) % 7
    config = FewshotConfig(
        source={"name": "procedural"}, ways=ways, shots=shots, fold=number, seed=seed, test_per_class=4
    )
    names = tuple("abcdefg")
    made = choose_fold(train, test if own_test else None, names, config)
    again = choose_fold(train, test if own_test else None, names, config)
    assert torch.equal(made.train, again.train)
    assert torch.equal(made.test, again.test)
    assert len(set(made.classes)) == ways
    where = test if own_test else train
    assert torch.bincount(train[made.train], minlength=7)[list(made.classes)].tolist() == [shots] * ways
    assert torch.bincount(where[made.test], minlength=7)[list(made.classes)].tolist() == [4] * ways
    if not own_test:
        assert not set(made.train.tolist()) & set(made.test.tolist())


def test_more_shots_contain_fewer_and_leave_classes_and_test_as_they_are():
    labels = torch.arange(200) % 5
    few, many = (
        choose_fold(labels, None, tuple("abcde"), FewshotConfig(source=SOURCE, ways=3, shots=shots))
        for shots in (2, 9)
    )
    assert few.classes == many.classes
    assert set(few.train.tolist()) < set(many.train.tolist())
    assert torch.equal(few.test, many.test)


def test_folds_differ():
    labels = torch.arange(400) % 20
    classes = {
        choose_fold(
            labels, labels, tuple("abcdefghijklmnopqrst"), FewshotConfig(source=SOURCE, fold=k)
        ).classes
        for k in range(10)
    }
    assert len(classes) == 10


def test_a_generated_fold_has_labels_of_its_own_and_the_clouds_of_the_source():
    dataset = build_dataset(folds_of(), "train")
    source = build_dataset({**SOURCE, "num_points": 16}, "train")
    paths = {sample.path: sample for sample in source}
    assert (len(dataset), sorted(set(dataset.labels.tolist()))) == (6, [0, 1])
    for sample in dataset:
        twin = paths[sample.path]
        assert torch.equal(sample.points, twin.points)
        assert dataset.class_names[sample.label] == source.class_names[twin.label]
    batch = dataset.read_batch([4, 1])
    assert torch.equal(batch.points[0], dataset[4].points)
    assert batch.index.tolist() == [4, 1]


def test_the_source_takes_points_and_root_from_the_fold():
    config = parse_data_config(folds_of(root="somewhere", pool_points=20))
    assert (config.source.num_points, config.source.pool_points) == (16, 20)
    assert config.source.root == "somewhere"
    assert parse_data_config(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"shots": 9}, r"9 clouds of every class are needed, 4 of 4 have fewer: chair \(8\)"),
        ({"test_per_class": 7}, r"data\.source \(test\): 7 clouds .*data\.test_from=train"),
        ({"test_from": "train", "shots": 4}, r"9 clouds of every class"),
        ({"ways": 5}, "5 classes are asked for, the source has 4"),
    ],
)
def test_a_fold_that_cannot_be_made_is_an_error_of_reader_and_check(more, message):
    with pytest.raises(DataError, match=message):
        build_dataset(folds_of(**more), "train")
    assert re.search(message, str(check_data(folds_of(**more))[0]))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ({**SOURCE, "shots": 2}, "source.shots has no place"),
        ({**SOURCE, "nmae": 1}, "'nmae'"),
        ("procedural", "expected the settings of a data set"),
    ],
)
def test_a_wrong_source_is_refused(source, message):
    with pytest.raises(ConfigError, match=message):
        parse_data_config(folds_of(source=source))


@pytest.mark.slow
@pytest.mark.shared_data
def test_folds_are_made_out_of_modelnet40(shared):
    config = {
        "name": "fewshot",
        "root": str(shared / "data" / "modelnet40_ply_hdf5_1024"),
        "source": {"name": "modelnet40_hdf5"},
        "ways": 10,
        "shots": 20,
        "test_from": "train",
    }
    train, test = build_dataset(config, "train"), build_dataset(config, "test")
    assert (len(train), len(test), len(train.class_names)) == (200, 200, 10)
    assert not {one.path for one in train} & {one.path for one in test}
    with pytest.raises(DataError, match=r"18 of 40 have fewer: bench \(10\)"):
        build_dataset({**config, "test_from": "test"}, "train")


def test_small_classes_are_left_out_where_that_is_asked_for():
    labels = torch.tensor([0] * 9 + [1] * 2 + [2] * 9 + [3] * 9)
    config = FewshotConfig(source=SOURCE, ways=2, shots=4, test_per_class=5, skip_small=True)
    seen = {
        label
        for k in range(12)
        for label in choose_fold(labels, None, tuple("abcd"), config.model_copy(update={"fold": k})).classes
    }
    assert seen == {0, 2, 3}
    with pytest.raises(DataError, match=r"1 of 4 have fewer: b \(2\)"):
        choose_fold(labels, None, tuple("abcd"), config.model_copy(update={"ways": 4}))


# ---- k-shot training of any data set


def test_shots_leave_equally_many_training_clouds_of_every_class():
    config = {**SOURCE, "num_points": 16, "shots": 3}
    train, test = build_dataset(config, "train"), build_dataset(config, "test")
    assert torch.bincount(train.labels).tolist() == [3, 3, 3, 3]
    assert len(test) == 24
    assert [sample.label for sample in train] == train.labels.tolist()


def test_shots_depend_on_their_seed_only_and_grow_by_adding():
    def paths(**more):
        return {sample.path for sample in build_dataset({**SOURCE, "num_points": 16, **more}, "train")}

    assert paths(shots=3) == paths(shots=3)
    assert paths(shots=3) != paths(shots=3, shots_seed=1)
    assert paths(shots=3) < paths(shots=5)


def test_too_many_shots_name_every_class_that_is_short():
    with pytest.raises(
        DataError, match=r"data\.shots: 9 training clouds .* 4 of 4 have fewer: chair \(8\), sofa"
    ):
        build_dataset({**SOURCE, "num_points": 16, "shots": 9}, "train")
    assert check_data({**SOURCE, "num_points": 16, "shots": 9})[0].file == "data.shots"
    assert check_data({**SOURCE, "num_points": 16, "shots": 8}) == []
