import os
import pickle

import numpy as np
import pytest
import torch

from pcl_clora.data import build_dataset
from pcl_clora.data.readers.modelnet_txt import ModelNet40TxtConfig
from pcl_clora.io import DataError
from tests.support.data_layouts import CLASSES, clouds, make_text


@pytest.fixture
def root(tmp_path):
    return make_text(tmp_path / "modelnet40_normal_resampled", dat=True)


@pytest.fixture
def cache(tmp_path):
    return tmp_path / "cache"


def build(root, cache="none", split="train", **settings):
    values = {"name": "modelnet40_txt", "root": str(root), "num_points": 48, "cache": str(cache), **settings}
    return build_dataset(values, split)


def published_normalisation(points):
    points = points - points.mean(axis=0)
    return points / np.sqrt((points**2).sum(axis=1)).max()


@pytest.mark.parametrize("cached", [True, False])
@pytest.mark.parametrize("split", ["train", "test"])
def test_the_first_rows_are_read_and_normalised(root, cache, split, cached):
    dataset = build(root, cache if cached else "none", split)
    raw = np.round(clouds(len(dataset), len(dataset), 64, 6), 6)  # the text has six decimals
    expected = np.stack([published_normalisation(cloud[:48, :3]) for cloud in raw])
    np.testing.assert_allclose(dataset.read_batch(range(len(dataset))).points, expected, atol=1e-6)
    assert dataset.labels.tolist() == [0, 1, 2, 0, 1, 2, 0][: len(dataset)]
    assert dataset.class_names == CLASSES


def test_a_class_is_the_name_without_its_number(root):
    sample = build(root)[1]
    assert sample.path == str(root / "night_stand" / "night_stand_0002.txt")
    assert sample.label == 1


def test_normalising_can_be_left_out(root):
    expected = np.loadtxt(root / "airplane" / "airplane_0001.txt", delimiter=",", dtype=np.float32)[:48, :3]
    assert np.array_equal(build(root, normalize=False)[0].points.numpy(), expected)


def test_official_pickles_give_their_own_points(root):
    dataset = build(root, source="dat", normalize=False)
    assert np.array_equal(dataset[2].points.numpy(), clouds(7, 7, 64, 6)[2, ::-1][:48, :3])
    assert dataset[2].path.endswith("modelnet40_train_8192pts_fps.dat#2")


def test_the_second_reading_comes_from_the_cache(root, cache, monkeypatch):
    first = build(root, cache)
    monkeypatch.setattr("pcl_clora.data.readers.modelnet_txt.read_points", None)
    assert torch.equal(build(root, cache)[3].points, first[3].points)


def test_the_cache_is_not_beside_the_data(root, cache):
    before = sorted(root.rglob("*"))
    build(root, cache)
    assert sorted(root.rglob("*")) == before
    assert [file.suffix for file in cache.rglob("*") if file.is_file()] == [".npy"]


def test_without_a_folder_the_cache_is_the_users(root, tmp_path, monkeypatch):
    monkeypatch.setenv("PCL_CLORA_CACHE", str(tmp_path / "mine"))
    build(root, "")
    assert list((tmp_path / "mine").rglob("*.npy"))


def change_content(root):
    file = root / "airplane" / "airplane_0001.txt"
    file.write_text(file.read_text().replace("0.", "0.0", 1))


def change_time(root):
    file = root / "airplane" / "airplane_0001.txt"
    os.utime(file, ns=(1, 1))


def change_list(root):
    listing = root / "modelnet40_train.txt"
    listing.write_text("\n".join(reversed(listing.read_text().split())))


@pytest.mark.parametrize("change", [change_content, change_time, change_list])
def test_a_changed_source_is_read_again_and_the_stale_array_removed(root, cache, change):
    build(root, cache)
    (old,) = cache.rglob("*.npy")
    change(root)
    again = build(root, cache)
    (new,) = cache.rglob("*.npy")
    assert new != old
    assert torch.equal(again.read_batch(range(7)).points, build(root).read_batch(range(7)).points)


def test_other_settings_have_arrays_of_their_own(root, cache):
    build(root, cache)
    build(root, cache, num_points=32)
    build(root, cache, split="test")
    build(root, cache, source="dat")
    build(root, cache, normalize=False)
    assert len(list(cache.rglob("*.npy"))) == 5


def test_a_damaged_cache_is_made_again_with_a_warning(root, cache, caplog):
    expected = build(root, cache)[0].points
    (file,) = cache.rglob("*.npy")
    file.write_bytes(file.read_bytes()[:200])
    assert torch.equal(build(root, cache)[0].points, expected)
    assert "made again" in caplog.text


def test_an_interrupted_reading_leaves_nothing_in_the_cache(root, cache):
    (root / "airplane" / "airplane_0004.txt").write_text("1,2,3\n")
    with pytest.raises(DataError):
        build(root, cache)
    assert not [file for file in cache.rglob("*") if file.is_file()]


def test_other_lists_can_be_used(root):
    for name in ("train", "test", "shape_names"):
        (root / f"modelnet40_{name}.txt").rename(root / f"modelnet10_{name}.txt")
    assert len(build(root, variant="modelnet10")) == 7


def spoil(text, number=1):
    def damage(root):
        file = root / "airplane" / f"airplane_{number:04d}.txt"
        lines = file.read_text().splitlines()
        file.write_text("\n".join(text(lines)))

    return damage


def foreign_class(root):
    with (root / "modelnet40_train.txt").open("a") as file:
        file.write("glider_0009\n")


@pytest.mark.parametrize(
    ("damage", "file", "message"),
    [
        (
            spoil(lambda lines: lines[:20]),
            "airplane_0001.txt",
            r"has 20 rows, but 48 points.*data\.num_points",
        ),
        (spoil(lambda lines: []), "airplane_0001.txt", "holds no points"),
        (
            spoil(lambda lines: ["nan," + lines[0].split(",", 1)[1], *lines[1:]]),
            "airplane_0001.txt",
            "point 0",
        ),
        (
            spoil(lambda lines: [*lines[:9], "0.1,0.2", *lines[9:]]),
            "airplane_0001.txt",
            "does not have the 6 numbers",
        ),
        (
            spoil(lambda lines: [line.split(",")[0] for line in lines]),
            "airplane_0001.txt",
            r"at least x, y, z",
        ),
        (
            lambda root: (root / "airplane" / "airplane_0004.txt").unlink(),
            "airplane_0004.txt",
            "missing, the train",
        ),
        (
            lambda root: (root / "modelnet40_train.txt").unlink(),
            "modelnet40_train.txt",
            "the list is missing",
        ),
        (
            lambda root: (root / "modelnet40_train.txt").write_text(""),
            "modelnet40_train.txt",
            "the list is empty",
        ),
        (foreign_class, "modelnet40_train.txt", r"'glider_0009' is of class 'glider'"),
    ],
)
def test_a_damaged_folder_names_file_expectation_and_remedy(root, damage, file, message):
    damage(root)
    with pytest.raises(DataError, match=message) as caught:
        build(root)
    assert caught.value.file.endswith(file)


def rewrite(change):
    def damage(file):
        content = pickle.loads(file.read_bytes())
        change(content)
        file.write_bytes(pickle.dumps(content))

    return damage


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (rewrite(lambda content: content.append(1)), "a list of clouds and a list of labels"),
        (rewrite(lambda content: content[0].pop()), "6 clouds and 7 labels, the list 7"),
        (
            rewrite(lambda content: content[1].reverse() or content[1].pop(0) or content[1].insert(0, 2)),
            "label of",
        ),
        (
            rewrite(lambda content: content[0].insert(1, content[0].pop(1)[:30])),
            r"cloud 1 is float32 \(30, 6\)",
        ),
        (rewrite(lambda content: content[0][3].fill(np.inf)), "cloud 3 has values that are not finite"),
        (lambda file: file.write_bytes(file.read_bytes()[:3000]), "not a complete pickle"),
        (lambda file: file.write_bytes(pickle.dumps(os.system)), r"asks for (posix|nt)\.system"),
        (lambda file: file.unlink(), "missing"),
    ],
)
def test_a_damaged_pickle_names_file_expectation_and_remedy(root, damage, message):
    damage(root / "modelnet40_train_8192pts_fps.dat")
    with pytest.raises(DataError, match=message):
        build(root, source="dat")


@pytest.mark.parametrize(
    "settings", [{"num_points": 9000}, {"pool_points": 8193}, {"source": "dat", "variant": "modelnet10"}]
)
def test_settings_beyond_the_release_are_refused(settings):
    with pytest.raises(ValueError, match=r"at most 8192|modelnet40 only"):
        ModelNet40TxtConfig(**settings)


@pytest.mark.shared_data
@pytest.mark.parametrize(("split", "count"), [("train", 77), ("test", 17)])
def test_real_text_files_give_what_numpy_reads(shared, split, count):
    root = shared / "data" / "modelnet40_normal_resampled"
    dataset = build(root, split=split, num_points=1024)
    assert (len(dataset), len(dataset.class_names)) == (count, 40)
    raw = np.loadtxt(dataset[11].path, delimiter=",", dtype=np.float32)[:1024, :3]
    np.testing.assert_allclose(dataset[11].points, published_normalisation(raw), atol=1e-6)
    assert dataset.class_names[dataset[11].label] in dataset[11].path


@pytest.fixture
def mini(mini_layouts):
    return mini_layouts / "ModelNet" / "modelnet40_normal_resampled"


@pytest.mark.shared_data
@pytest.mark.parametrize("index", [0, 1])
def test_official_pickles_give_what_the_published_code_returns(mini, shared, index):
    expected = np.load(shared / "fixtures" / "datasets_mini_expected.npz")
    dataset = build(mini, split="test", source="dat", num_points=8192)
    sample = dataset[index]
    assert len(dataset) == int(expected["modelnet_test_len"])
    assert sample.label == int(expected[f"modelnet_test_{index}_label"])
    assert sample.points.shape == tuple(expected[f"modelnet_test_{index}_shape"])
    np.testing.assert_allclose(sample.points[:16], expected[f"modelnet_test_{index}_first16"], atol=1e-6)
    mean_square = float(sample.points.double().square().mean())
    assert mean_square == pytest.approx(float(expected[f"modelnet_test_{index}_mean_sq"]), abs=1e-6)


@pytest.mark.shared_data
def test_text_of_the_shared_script_is_read(mini):
    dataset = build(mini, num_points=1500)
    assert [dataset.class_names[label] for label in dataset.labels] == [
        "airplane",
        "night_stand",
        "chair",
        "tv_stand",
    ]
    raw = np.loadtxt(dataset[1].path, delimiter=",", dtype=np.float32)[:, :3]
    np.testing.assert_allclose(dataset[1].points, published_normalisation(raw), atol=1e-6)
