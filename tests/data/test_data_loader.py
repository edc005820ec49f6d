from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pcl_clora.data import ArrayDataset, PointLoader, build_dataset


def make(count=23):
    points = np.random.default_rng(0).random((count, 4, 3)).astype(np.float32)
    return ArrayDataset(points, torch.arange(count) % 3, ("a", "b", "c"))


def indices(loader, epoch=0, start=0):
    return [batch.index.tolist() for batch in loader.batches(epoch, start)]


@pytest.mark.parametrize("drop_last", [False, True])
def test_an_epoch_visits_every_sample_once(drop_last):
    loader = PointLoader(make(), 5, shuffle=True, drop_last=drop_last)
    seen = list(chain.from_iterable(indices(loader)))
    assert len(set(seen)) == len(seen) == (20 if drop_last else 23)
    assert len(loader) == loader.num_batches == len(indices(loader))


def test_without_shuffling_the_order_is_that_of_the_data_set():
    assert list(chain.from_iterable(indices(PointLoader(make(), 5)))) == list(range(23))


def test_the_order_depends_on_seed_and_epoch():
    orders = {
        (seed, epoch): tuple(PointLoader(make(), 5, shuffle=True, seed=seed).order(epoch).tolist())
        for seed in (0, 1)
        for epoch in (0, 1)
    }
    assert len(set(orders.values())) == 4


def test_the_order_is_the_same_in_every_version():
    # Written down once: a change would make interrupted runs continue with other batches.
    loader = PointLoader(make(), 5, shuffle=True, seed=3)
    assert loader.order(2).tolist()[:6] == [0, 6, 15, 4, 19, 16]


@pytest.mark.parametrize("start", [0, 1, 3, 5])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_epoch_entered_later_goes_on_with_the_same_batches(start, num_workers):
    whole = indices(PointLoader(make(), 5, shuffle=True, seed=1), epoch=4)
    entered = indices(PointLoader(make(), 5, shuffle=True, seed=1, num_workers=num_workers), 4, start)
    assert entered == whole[start:]


def test_workers_give_the_batches_of_one_process():
    dataset = build_dataset({"name": "procedural", "num_points": 32, "train_size": 12}, "train")
    alone, helped = (
        list(PointLoader(dataset, 5, shuffle=True, num_workers=workers).batches(1)) for workers in (0, 2)
    )
    assert len(alone) == len(helped) == 3
    assert all(torch.equal(a.points, b.points) for a, b in zip(alone, helped, strict=True))
    assert all(torch.equal(a.part_labels, b.part_labels) for a, b in zip(alone, helped, strict=True))


@pytest.mark.parametrize("num_workers", [0, 1])
def test_reading_leaves_the_global_random_state_alone(num_workers):
    before = torch.get_rng_state()
    indices(PointLoader(make(), 5, shuffle=True, num_workers=num_workers))
    assert torch.equal(torch.get_rng_state(), before)


def test_only_the_given_indices_are_read():
    seen = list(chain.from_iterable(indices(PointLoader(make(), 2, indices=[7, 3, 11], shuffle=True))))
    assert sorted(seen) == [3, 7, 11]


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 40),
    batch=st.integers(1, 7),
    world=st.integers(1, 4),
    shuffle=st.booleans(),
    epoch=st.integers(0, 3),
)
def test_ranks_together_visit_every_sample(count, batch, world, shuffle, epoch):
    dataset = make(count)
    loaders = [PointLoader(dataset, batch, shuffle=shuffle, rank=r, world_size=world) for r in range(world)]
    seen = [index for loader in loaders for index in loader.order(epoch).tolist()]
    assert set(seen) == set(range(count))
    if shuffle:
        assert len({loader.num_batches for loader in loaders}) == 1
        assert len(seen) - count < world
    else:
        assert len(seen) == count
    assert [loader.num_samples for loader in loaders] == [len(loader.order(epoch)) for loader in loaders]


def test_ranks_that_drop_share_nothing():
    loaders = [
        PointLoader(make(), 4, shuffle=True, drop_last=True, rank=rank, world_size=3) for rank in range(3)
    ]
    seen = [index for loader in loaders for index in list(chain.from_iterable(indices(loader)))]
    assert len(seen) == len(set(seen)) == 12


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": 2, "rank": 2, "world_size": 2}, "rank=2"),
        ({"batch_size": 2, "num_workers": -1}, "num_workers=-1"),
        ({"batch_size": 2, "indices": [0, 23]}, "23 samples"),
        ({"batch_size": 24, "drop_last": True}, "no full batch of 24"),
    ],
)
def test_numbers_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        PointLoader(make(), **settings)


@pytest.mark.parametrize("start", [-1, 6])
def test_a_start_beyond_the_epoch_is_refused(start):
    with pytest.raises(ValueError, match=f"start={start}"):
        next(PointLoader(make(), 5).batches(0, start))


class Torn(ArrayDataset):
    def read_batch(self, indices):
        from pcl_clora.io import DataError

        raise DataError("some/file.h5", "is torn", "get it again")


class Counting(ArrayDataset):
    def read_batch(self, indices):
        batch = super().read_batch(indices)
        return replace(batch, label=torch.full_like(batch.label, torch.get_num_threads()))


def test_a_worker_computes_with_one_thread():
    dataset, before = (
        Counting(np.zeros((4, 2, 3), np.float32), torch.zeros(4), ("a",)),
        torch.get_num_threads(),
    )
    torch.set_num_threads(2)
    try:
        (batch,) = PointLoader(dataset, 4, num_workers=1).batches(0)
        assert batch.label.tolist() == [1, 1, 1, 1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_an_error_of_a_worker_keeps_its_message():
    dataset = Torn(np.zeros((4, 2, 3), np.float32), torch.zeros(4), ("a",))
    with pytest.raises(ValueError, match=r"^some/file.h5: is torn; get it again\.$"):
        next(PointLoader(dataset, 2, num_workers=1).batches(0))
