"""Batches in an order that depends on (seed, epoch) only, from any batch on."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pcl_clora.data.dataset import Batch, PointDataset
from pcl_clora.errors import UserValueError
from pcl_clora.io import DataError


@runtime_checkable
class RedrawnDataset(Protocol):
    """A data set that draws the points of a cloud anew in every epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the draws; a sample is then a function of (epoch, index)."""
        ...


def derive_seed(*parts: int | str) -> int:
    """Turn several numbers or names into one seed below 2^63; neighbours give unrelated seeds."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


class _BatchReader(Dataset[Batch | DataError]):
    """Lets a worker process read whole batches; errors come back as values, torch would rewrap them."""

    def __init__(self, dataset: PointDataset, batches: list[Tensor]) -> None:
        self._dataset = dataset
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, position: int) -> Batch | DataError:
        try:
            return self._dataset.read_batch(self._batches[position])
        except DataError as error:
            return error


class PointLoader:
    """Cut a data set into batches.

    The order depends on (seed, epoch) only: not on the number of workers, not on where an epoch is entered,
    and not on the global random state, which stays untouched. Data sets read deterministically; augmentation
    happens on whole batches, outside.

    With several ranks every rank takes each world_size-th sample of the common order. When shuffling, the
    order is made divisible (shortened with drop_last, otherwise repeated from its start), so that all ranks
    take the same number of steps; unshuffled, nothing is repeated, so that sums over ranks count every
    sample once.

    Args:
        dataset: what to read.
        batch_size: clouds a batch, for each rank.
        indices: positions in the data set to use; None for all.
        shuffle: mix the order anew every epoch.
        drop_last: leave out a last batch that is not full.
        seed: decides the orders.
        num_workers: processes that read ahead; 0 reads in this process, which is fastest for data in memory.
        rank: number of this process.
        world_size: number of processes.

    Raises:
        ValueError: if a number is out of range, or there is no full batch though drop_last is set.
    """

    def __init__(
        self,
        dataset: PointDataset,
        batch_size: int,
        *,
        indices: Sequence[int] | Tensor | None = None,
        shuffle: bool = False,
        drop_last: bool = False,
        seed: int = 0,
        num_workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if batch_size < 1:
            raise UserValueError(f"batch_size={batch_size} must be at least 1.")
        if not 0 <= rank < world_size:
            raise UserValueError(f"rank={rank} must lie in 0..{world_size - 1} for world_size={world_size}.")
        if num_workers < 0:
            raise UserValueError(f"num_workers={num_workers} must be 0 (read in this process) or more.")
        self.dataset = dataset
        self.batch_size = batch_size
        self.indices = self._check_indices(indices, len(dataset))
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.seed = seed
        self.num_workers = num_workers
        self.rank = rank
        self.world_size = world_size
        if self.num_batches == 0 and len(self.indices) and drop_last:
            raise UserValueError(
                f"{len(self.indices)} samples on {world_size} process(es) give no full batch of "
                f"{batch_size}; lower the batch size or set drop_last=False."
            )

    @staticmethod
    def _check_indices(indices: Sequence[int] | Tensor | None, size: int) -> Tensor:
        if indices is None:
            return torch.arange(size)
        chosen = torch.as_tensor(indices, dtype=torch.int64).clone()
        if chosen.numel() and not (int(chosen.min()) >= 0 and int(chosen.max()) < size):
            raise UserValueError(
                f"indices {int(chosen.min())}..{int(chosen.max())} do not fit a data set of {size} samples."
            )
        return chosen

    @property
    def num_samples(self) -> int:
        """Samples of this rank in an epoch, dropped ones included."""
        total, rank, world = len(self.indices), self.rank, self.world_size
        if self.shuffle:
            return total // world if self.drop_last else math.ceil(total / world)
        return len(range(rank, total, world))

    @property
    def num_batches(self) -> int:
        """Batches of this rank in an epoch."""
        if self.drop_last:
            return self.num_samples // self.batch_size
        return math.ceil(self.num_samples / self.batch_size)

    def __len__(self) -> int:
        return self.num_batches

    def order(self, epoch: int) -> Tensor:
        """List the positions in the data set that this rank visits in an epoch, (num_samples,), int64."""
        order = self.indices
        if self.shuffle:
            generator = torch.Generator().manual_seed(derive_seed("order", self.seed, epoch))
            order = order[torch.randperm(len(order), generator=generator)]
            if self.world_size > 1:
                even = self.num_samples * self.world_size
                order = order[torch.arange(even) % len(order)] if len(order) else order
        return order[self.rank :: self.world_size]

    def batches(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Read the batches of an epoch.

        Args:
            epoch: which epoch, decides the order.
            start: number of batches to leave out at the beginning; the others are what they would have been.

        Yields:
            Batches with points (B, N, 3).

        Raises:
            ValueError: if start is not in 0..num_batches.
            DataError: if a file cannot be read, from whichever process reads it.
        """
        if not 0 <= start <= self.num_batches:
            raise UserValueError(f"start={start} is not in 0..{self.num_batches}, the batches of an epoch.")
        if isinstance(self.dataset, RedrawnDataset):
            self.dataset.set_epoch(epoch)
        order = self.order(epoch)
        cuts = [
            order[number * self.batch_size : (number + 1) * self.batch_size]
            for number in range(start, self.num_batches)
        ]
        if self.num_workers == 0 or not cuts:
            for cut in cuts:
                yield self.dataset.read_batch(cut)
            return
        generator = torch.Generator().manual_seed(derive_seed("workers", self.seed, epoch, self.rank))
        results = DataLoader(
            _BatchReader(self.dataset, cuts),
            batch_size=None,
            num_workers=min(self.num_workers, len(cuts)),
            generator=generator,  # seeds the workers; without it torch would draw from the global state
        )
        for result in results:
            if isinstance(result, DataError):
                raise result
            yield result
