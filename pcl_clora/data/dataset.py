"""What a data set is: samples, batches, the protocol, clouds kept in memory, and the validation split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

SPLITS = ("train", "test")


@dataclass(frozen=True)
class Sample:
    """One cloud with what is known about it.

    Attributes:
        points: (N, 3), float32, in the unit of the data set (unit sphere where it normalises).
        label: class, an index into the data set's class_names.
        index: position in the data set.
        path: where it comes from, for messages: a file, `file.h5#row` or `procedural:seed/index`.
        part_labels: (N,), int64, part of each point; None where the data set has none.
        category: category whose parts these are; None where the data set has no parts.
    """

    points: Tensor
    label: int
    index: int
    path: str = ""
    part_labels: Tensor | None = None
    category: int | None = None


@dataclass(frozen=True)
class Batch:
    """Clouds stacked along a first dimension.

    Attributes:
        points: (B, N, 3), float32; a copy that may be changed.
        label: (B,), int64.
        index: (B,), int64, positions in the data set.
        part_labels: (B, N), int64, or None.
        category: (B,), int64, or None.
    """

    points: Tensor
    label: Tensor
    index: Tensor
    part_labels: Tensor | None = None
    category: Tensor | None = None

    def __len__(self) -> int:
        return self.points.shape[0]

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """Copy all tensors to a device."""
        moved = {}
        for field in fields(self):
            value = getattr(self, field.name)
            moved[field.name] = None if value is None else value.to(device, non_blocking=non_blocking)
        return replace(self, **moved)


@runtime_checkable
class PointDataset(Protocol):
    """What the rest of the package needs of a data set. Reading is deterministic: no randomness in here.

    Attributes:
        class_names: names of the classes, in label order.
        labels: (n,), int64, the class of every sample, known without reading points.
    """

    class_names: tuple[str, ...]
    labels: Tensor

    def __len__(self) -> int:
        """Count the samples."""
        ...

    def __getitem__(self, index: int) -> Sample:
        """Read one sample; its tensors are copies."""
        ...

    def read_batch(self, indices: Sequence[int] | Tensor) -> Batch:
        """Read several samples of equal size into one batch, in the order given."""
        ...


def stack_samples(samples: Sequence[Sample]) -> Batch:
    """Stack samples of equal size into a batch.

    Raises:
        ValueError: if there are none, or their numbers of points differ.
    """
    sizes = sorted({sample.points.shape[0] for sample in samples})
    if len(sizes) != 1:
        raise ValueError(
            f"clouds of {sizes or 'no'} points cannot be stacked; set data.num_points so that all clouds "
            "have one size."
        )
    with_parts = all(sample.part_labels is not None for sample in samples)
    with_category = all(sample.category is not None for sample in samples)
    return Batch(
        points=torch.stack([sample.points for sample in samples]),
        label=torch.tensor([sample.label for sample in samples], dtype=torch.int64),
        index=torch.tensor([sample.index for sample in samples], dtype=torch.int64),
        part_labels=torch.stack([s.part_labels for s in samples if s.part_labels is not None])
        if with_parts
        else None,
        category=torch.tensor([s.category for s in samples if s.category is not None], dtype=torch.int64)
        if with_category
        else None,
    )


class ArrayDataset:
    """A data set whose clouds are one array in memory, or in a file mapped into memory; never changed.

    Args:
        points: (n, N, 3), float32; may be a read-only map of a file.
        labels: (n,), int64.
        class_names: in label order.
        paths: where each sample comes from; empty for none.
    """

    def __init__(
        self, points: np.ndarray, labels: Tensor, class_names: Sequence[str], paths: Sequence[str] = ()
    ) -> None:
        if points.ndim != 3 or points.shape[-1] != 3 or points.dtype != np.float32:
            raise ValueError(f"points must be (n, N, 3) float32, not {points.shape} {points.dtype}.")
        if tuple(labels.shape) != points.shape[:1]:
            raise ValueError(f"{points.shape[0]} clouds need as many labels, not {tuple(labels.shape)}.")
        self.class_names = tuple(class_names)
        self.labels = labels.to(torch.int64)
        self._points = points
        self._paths = tuple(paths)

    def __len__(self) -> int:
        return self._points.shape[0]

    def __getitem__(self, index: int) -> Sample:
        if not -len(self) <= index < len(self):  # a for loop over a data set ends by this error
            raise IndexError(f"index {index} is out of range: the data set has {len(self)} samples.")
        index %= len(self)
        return Sample(
            points=torch.from_numpy(np.array(self._points[index])),
            label=int(self.labels[index]),
            index=index,
            path=self._paths[index] if self._paths else "",
        )

    def read_batch(self, indices: Sequence[int] | Tensor) -> Batch:
        """Copy the clouds of several samples into one batch."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        points = np.asarray(self._points[index.numpy()])  # torch would wake its thread pool for a small copy
        return Batch(points=torch.from_numpy(points), label=self.labels[index], index=index)


def check_split(split: str) -> str:
    """Return the split if it is one.

    Raises:
        ValueError: if it is neither "train" nor "test".
    """
    if split not in SPLITS:
        raise ValueError(f"split={split!r} is not known; use one of {', '.join(SPLITS)}.")
    return split


def split_validation(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Hold a part of every class out of the training set.

    Every class gives round(fraction * its size) samples, at least one and never all of them; a class with a
    single sample stays in training. Depends on (labels, fraction, seed) only.

    Args:
        labels: (n,), int64.
        fraction: share to hold out, 0 < fraction < 1.
        seed: decides which.

    Returns:
        Indices of the training part and of the held-out part, int64, each ascending; together all of 0..n-1.

    Raises:
        ValueError: if fraction is out of range.
    """
    if not 0.0 < fraction < 1.0:
        raise ValueError(f"fraction={fraction} must lie between 0 and 1, for example 0.1.")
    labels = torch.as_tensor(labels, dtype=torch.int64)
    generator = torch.Generator().manual_seed(seed)
    held_out = torch.zeros(labels.shape[0], dtype=torch.bool)
    for label in torch.unique(labels).tolist():
        members = torch.nonzero(labels == label).flatten()
        count = min(max(round(fraction * len(members)), 1), len(members) - 1)
        order = torch.randperm(len(members), generator=generator)
        held_out[members[order[:count]]] = True
    return torch.nonzero(~held_out).flatten(), torch.nonzero(held_out).flatten()
