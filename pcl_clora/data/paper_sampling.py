"""The draws that published code takes from numpy's global generator, taken from one of our own.

Published data classes shuffle the points of every training cloud by numpy.random, whose state runs on from
item to item. The same algorithm runs here on a `RandomState` that belongs to the data set, so that the clouds
are the same, point for point, and the global generator stays untouched.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.random import RandomState
from torch import Tensor

from pcl_clora.data.dataset import Batch, PointDataset, Sample, stack_samples
from pcl_clora.data.loader import derive_seed
from pcl_clora.data.part_taxonomy import PartDataset
from pcl_clora.errors import UserValueError

_KEYS = 624  # 32-bit words of the state of the Mersenne twister


def draw_order(num_points: int, state: RandomState) -> np.ndarray:
    """Draw an order of points as numpy.random.shuffle(numpy.arange(n)) does.

    Returns:
        (num_points,), int64, a permutation; the state moves on.
    """
    order = np.arange(num_points)
    state.shuffle(order)
    return order


def draw_with_replacement(num_points: int, count: int, state: RandomState) -> np.ndarray:
    """Draw points as numpy.random.choice(n, count, replace=True) does.

    Returns:
        (count,), int64, indices below num_points; the state moves on.
    """
    return state.choice(num_points, count, replace=True)


class PaperOrder:
    """A data set whose points are in the order that published code gives them in the first pass.

    The order of a cloud is the one it gets when all clouds are visited from the first to the last after
    numpy.random.seed(seed). Here it depends on (seed, epoch, index) only: any sample can be read at any time,
    in any process, and is the same every time; the state before each cloud is remembered (2.5 kB a cloud).
    Published code goes on with the same stream in later epochs; here every one has a stream of its own.

    Args:
        dataset: clouds of one size; labels of points and masks move with their points.
        seed: what numpy.random.seed would be given.

    Raises:
        ValueError: if clouds have different sizes, when one is read.

    Source: the data classes of the Point-MAE family, which agree in this; making it a function of the index
        is our choice, because reading has to be repeatable.
    """

    def __init__(self, dataset: PointDataset, seed: int) -> None:
        self._dataset, self._seed = dataset, seed
        self.class_names, self.labels = dataset.class_names, dataset.labels
        if isinstance(dataset, PartDataset):
            self.taxonomy = dataset.taxonomy
        self._keys = np.empty((len(dataset) + 1, _KEYS), dtype=np.uint32)
        self._position = np.empty(len(dataset) + 1, dtype=np.int64)
        self._num_points = 0
        self._epoch = -1
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Choose the orders of an epoch; epoch 0 has those that numpy.random.seed(seed) leads to."""
        if epoch != self._epoch:
            self._epoch = epoch
            seed = self._seed if epoch == 0 else derive_seed("order", self._seed, epoch) % 2**32
            self._keys[0], self._position[0] = _state_of(RandomState(seed))
            self._known = 0  # clouds whose order was drawn once in this epoch

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Sample:
        sample = self._dataset[index]
        order = torch.from_numpy(self._order(sample.index, sample.points.shape[0], sample.path))
        return replace(
            sample,
            points=sample.points[order],
            part_labels=None if sample.part_labels is None else sample.part_labels[order],
            mask=None if sample.mask is None else sample.mask[order],
        )

    def read_batch(self, indices: Sequence[int] | Tensor) -> Batch:
        """Read several samples into one batch, in the order given."""
        return stack_samples([self[index] for index in torch.as_tensor(indices).tolist()])

    def _order(self, index: int, num_points: int, path: str) -> np.ndarray:
        if self._num_points not in (0, num_points):
            raise UserValueError(
                f"{path}: has {num_points} points, another cloud {self._num_points}; sampling=paper needs "
                "clouds of one size, set data.num_points."
            )
        self._num_points = num_points
        state = RandomState()
        while self._known <= index:
            self._restore(state, self._known)
            draw_order(num_points, state)
            self._known += 1
            self._keys[self._known], self._position[self._known] = _state_of(state)
        self._restore(state, index)
        return draw_order(num_points, state)

    def _restore(self, state: RandomState, index: int) -> None:
        state.set_state(("MT19937", self._keys[index], int(self._position[index]), 0, 0.0))


def _state_of(state: RandomState) -> tuple[np.ndarray, int]:
    """Return keys and position; the rest of a state is a normal number in store, which no order draws."""
    content: Any = state.get_state(legacy=False)["state"]
    return content["key"], content["pos"]
