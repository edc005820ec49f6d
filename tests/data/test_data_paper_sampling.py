"""The draws of published code. numpy's global generator is used here as the thing to compare with."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.random import RandomState

from pcl_clora.config import ConfigError
from pcl_clora.data import build_dataset, parse_data_config
from pcl_clora.data.paper_sampling import draw_order, draw_with_replacement
from tests.support.scan_layouts import make_scan


@pytest.fixture
def global_numpy():
    """Give the global generator back as it was."""
    state = np.random.get_state()
    yield
    np.random.set_state(state)


def same_state(one, other):
    return one[0] == other[0] and np.array_equal(one[1], other[1]) and one[2:] == other[2:]


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), sizes=st.lists(st.integers(1, 400), min_size=1, max_size=4))
def test_the_draws_are_those_of_the_global_generator(seed, sizes):
    before = np.random.get_state()
    try:
        np.random.seed(seed)
        expected = []
        for size in sizes:
            order = np.arange(size)
            np.random.shuffle(order)
            expected += [order, np.random.choice(size, 7, replace=True)]
    finally:
        np.random.set_state(before)
    state = RandomState(seed)
    drawn = [part for n in sizes for part in (draw_order(n, state), draw_with_replacement(n, 7, state))]
    assert all(np.array_equal(a, b) for a, b in zip(drawn, expected, strict=True))


def build(root, split="train", **more):
    base = {
        "name": "scanobjectnn",
        "root": str(root),
        "num_points": 32,
        "sampling": "paper",
        "sampling_seed": 5,
    }
    return build_dataset({**base, **more}, split)


@pytest.fixture
def shuffled(tmp_path, global_numpy):
    """Clouds as a loop in the published manner gives them: one generator, shuffled in the order of items."""
    plain = build(make_scan(tmp_path), sampling="stored")
    np.random.seed(5)
    clouds = []
    for sample in plain:
        order = np.arange(32)
        np.random.shuffle(order)
        clouds.append((sample.points[order], sample.mask[order]))
    return tmp_path, clouds


@pytest.mark.parametrize("visits", [[0, 1, 2, 3, 4, 5, 6], [6, 0, 3, 3, 5], [4]])
def test_a_cloud_is_shuffled_as_in_the_first_pass_whenever_it_is_read(shuffled, visits):
    root, clouds = shuffled
    dataset = build(root)
    for index in visits:
        sample = dataset[index]
        assert torch.equal(sample.points, clouds[index][0])
        assert torch.equal(sample.mask, clouds[index][1])
    batch = dataset.read_batch(visits)
    assert torch.equal(batch.points, torch.stack([clouds[index][0] for index in visits]))


def test_the_global_generator_is_untouched(tmp_path):
    before = np.random.get_state()
    dataset = build(make_scan(tmp_path))
    dataset.read_batch(range(7))
    assert same_state(before, np.random.get_state())


def test_test_clouds_are_not_shuffled(tmp_path):
    make_scan(tmp_path)
    assert torch.equal(
        build(tmp_path, "test")[1].points, build(tmp_path, "test", sampling="stored")[1].points
    )


def test_every_epoch_has_orders_of_its_own_and_they_come_back(tmp_path):
    dataset = build(make_scan(tmp_path))
    first = dataset[2].points
    dataset.set_epoch(3)
    third = dataset[2].points
    dataset.set_epoch(0)
    assert torch.equal(dataset[2].points, first)
    assert not torch.equal(third, first)
    assert torch.equal(third.sort(0).values, first.sort(0).values)


def test_a_worker_reads_the_same_clouds(shuffled):
    root, clouds = shuffled
    copy = pickle.loads(pickle.dumps(build(root)))
    assert torch.equal(copy[3].points, clouds[3][0])


@pytest.mark.parametrize("data", [{"name": "procedural"}, {"name": "modelnet40_hdf5", "root": "x"}])
def test_data_that_published_code_does_not_read_has_no_paper_sampling(data):
    with pytest.raises(ConfigError, match="sampling=paper is not defined"):
        parse_data_config({**data, "sampling": "paper"})


def test_with_shots_the_chosen_clouds_are_the_items(tmp_path, global_numpy):
    chosen = build(make_scan(tmp_path), shots=2, sampling="stored")
    np.random.seed(5)
    expected = []
    for sample in chosen:
        order = np.arange(32)
        np.random.shuffle(order)
        expected.append(sample.points[order])
    dataset = build(tmp_path, shots=2)
    assert len(dataset) == 6
    assert torch.equal(dataset.read_batch(range(6)).points, torch.stack(expected))


OFFICIAL = {
    "modelnet": {
        "name": "modelnet40_txt",
        "root": "ModelNet/modelnet40_normal_resampled",
        "source": "dat",
        "pool_points": 8192,
        "cache": "none",
    },
    "fewshot": {"name": "modelnet_fewshot", "root": "ModelNetFewshot", "num_points": 1100},
    "scan_objbg": {"name": "scanobjectnn", "root": "ScanObjectNN", "num_points": 2048, "variant": "obj_bg"},
    "scan_objonly": {
        "name": "scanobjectnn",
        "root": "ScanObjectNN",
        "num_points": 2048,
        "variant": "obj_only",
    },
    "scan_hardest": {"name": "scanobjectnn", "root": "ScanObjectNN", "num_points": 2048},
}


@pytest.mark.shared_data
@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("name", OFFICIAL)
def test_every_layout_gives_what_the_published_code_returns(mini_layouts, shared, name, split):
    expected = np.load(shared / "fixtures" / "datasets_mini_expected.npz")
    config = {**OFFICIAL[name], "sampling": "paper", "sampling_seed": 11}
    dataset = build_dataset({**config, "root": str(mini_layouts / config["root"])}, split)
    assert len(dataset) == expected[f"{name}_{split}_len"]
    known = [index for index in range(len(dataset)) if f"{name}_{split}_{index}_label" in expected]
    assert known
    for index in known:
        sample, key = dataset[index], f"{name}_{split}_{index}"
        assert sample.label == expected[f"{key}_label"]
        assert tuple(sample.points.shape) == tuple(expected[f"{key}_shape"])
        np.testing.assert_allclose(sample.points[:16], expected[f"{key}_first16"], rtol=0, atol=2e-7)
        mean_square = float(sample.points.double().square().mean())
        assert mean_square == pytest.approx(float(expected[f"{key}_mean_sq"]), abs=1e-7)
