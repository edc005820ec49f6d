"""What a data set is: samples, batches, the protocol, clouds kept in memory, and the validation split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from pcl_clora.errors import UserIndexError, UserValueError

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
        mask: (N,), bool, True where a point belongs to the object and not to what stands around it; None
            where the data set does not say.
    """

    points: Tensor
    label: int
    index: int
    path: str = ""
    part_labels: Tensor | None = None
    category: int | None = None
    mask: Tensor | None = None


@dataclass(frozen=True)
class Batch:
    """Clouds stacked along a first dimension.

    Attributes:
        points: (B, N, 3), float32; a copy that may be changed. A data set of images gives (B, C, H, W) here.
        label: (B,), int64.
        index: (B,), int64, positions in the data set.
        part_labels: (B, N), int64, or None.
        category: (B,), int64, or None.
        mask: (B, N), bool, or None.
    """

    points: Tensor
    label: Tensor
    index: Tensor
    part_labels: Tensor | None = None
    category: Tensor | None = None
    mask: Tensor | None = None

    def __len__(self) -> int:
        return self.points.shape[0]

    @property
    def holds_images(self) -> bool:
        """Whether `points` are images, which go to the model as they were read."""
        return self.points.ndim == 4

    def take(self, index: Tensor) -> Batch:
        """Choose points of every cloud with what is known of them: index (B, M), int64 -> M points."""
        return replace(
            self,
            points=torch.gather(self.points, 1, index[..., None].expand(-1, -1, 3)),
            part_labels=None if self.part_labels is None else torch.gather(self.part_labels, 1, index),
            mask=None if self.mask is None else torch.gather(self.mask, 1, index),
        )

    @classmethod
    def join(cls, batches: Sequence[Batch]) -> Batch:
        """Put batches one behind another; what one of them lacks, the whole lacks."""
        joined: dict[str, Any] = {}
        for field in fields(cls):
            values = [getattr(batch, field.name) for batch in batches]
            joined[field.name] = None if any(value is None for value in values) else torch.cat(values)
        return cls(**joined)

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> Batch:
        """Copy all tensors to a device."""
        moved: dict[str, Any] = {}
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
        raise UserValueError(
            f"clouds of {sizes or 'no'} points cannot be stacked; set data.num_points so that all clouds "
            "have one size."
        )
    return Batch(
        points=torch.stack([sample.points for sample in samples]),
        label=torch.tensor([sample.label for sample in samples], dtype=torch.int64),
        index=torch.tensor([sample.index for sample in samples], dtype=torch.int64),
        part_labels=_stack_known([sample.part_labels for sample in samples]),
        category=_stack_known(
            [None if sample.category is None else torch.tensor(sample.category) for sample in samples]
        ),
        mask=_stack_known([sample.mask for sample in samples]),
    )


def _stack_known(values: Sequence[Tensor | None]) -> Tensor | None:
    """Stack what every sample has; None where one lacks it."""
    known = [value for value in values if value is not None]
    return torch.stack(known) if len(known) == len(values) else None


class ArrayDataset:
    """A data set whose clouds are one array in memory, or in a file mapped into memory; never changed.

    Args:
        points: (n, N, 3), float32; may be a read-only map of a file.
        labels: (n,), int64.
        class_names: in label order.
        paths: where each sample comes from; empty for none.
        masks: (n, N), bool, which points belong to the object; None where that is not known.
    """

    def __init__(
        self,
        points: np.ndarray,
        labels: Tensor,
        class_names: Sequence[str],
        paths: Sequence[str] = (),
        masks: np.ndarray | None = None,
    ) -> None:
        if points.ndim != 3 or points.shape[-1] != 3 or points.dtype != np.float32:
            raise UserValueError(f"points must be (n, N, 3) float32, not {points.shape} {points.dtype}.")
        if tuple(labels.shape) != points.shape[:1]:
            raise UserValueError(f"{points.shape[0]} clouds need as many labels, not {tuple(labels.shape)}.")
        if masks is not None and (masks.shape != points.shape[:2] or masks.dtype != np.bool_):
            raise UserValueError(f"masks must be {points.shape[:2]} bool, not {masks.shape} {masks.dtype}.")
        self.class_names = tuple(class_names)
        self.labels = labels.to(torch.int64)
        self._points = points
        self._paths = tuple(paths)
        self._masks = masks

    def __len__(self) -> int:
        return len(self._points)

    def __getitem__(self, index: int) -> Sample:
        if not -len(self) <= index < len(self):  # a for loop over a data set ends by this error
            raise UserIndexError(f"index {index} is out of range: the data set has {len(self)} samples.")
        index %= len(self)
        return Sample(
            points=torch.from_numpy(np.array(self._points[index])),
            label=int(self.labels[index]),
            index=index,
            path=self._paths[index] if self._paths else "",
            mask=None if self._masks is None else torch.from_numpy(np.array(self._masks[index])),
        )

    def read_batch(self, indices: Sequence[int] | Tensor) -> Batch:
        """Copy the clouds of several samples into one batch."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        points = np.asarray(self._points[index.numpy()])  # torch would wake its thread pool for a small copy
        mask = None if self._masks is None else torch.from_numpy(np.asarray(self._masks[index.numpy()]))
        return Batch(points=torch.from_numpy(points), label=self.labels[index], index=index, mask=mask)


def check_split(split: str) -> str:
    """Return the split if it is one.

    Raises:
        ValueError: if it is neither "train" nor "test".
    """
    if split not in SPLITS:
        raise UserValueError(f"split={split!r} is not known; use one of {', '.join(SPLITS)}.")
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
        raise UserValueError(f"fraction={fraction} must lie between 0 and 1, for example 0.1.")
    labels = torch.as_tensor(labels, dtype=torch.int64)
    generator = torch.Generator().manual_seed(seed)
    held_out = torch.zeros(labels.shape[0], dtype=torch.bool)
    for label in torch.unique(labels).tolist():
        members = torch.nonzero(labels == label).flatten()
        count = min(max(round(fraction * len(members)), 1), len(members) - 1)
        order = torch.randperm(len(members), generator=generator)
        held_out[members[order[:count]]] = True
    return torch.nonzero(~held_out).flatten(), torch.nonzero(held_out).flatten()


def split_folds(labels: Tensor, folds: int, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Divide samples for a cross-validation, every class as evenly as it goes.

    Args:
        labels: (n,), int64.
        folds: how many.
        seed: decides which.

    Returns:
        For every fold the indices of the other samples and of its own, int64, each ascending.

    Raises:
        ValueError: if a class has fewer samples than there are folds: some fold would not test it.
    """
    labels = torch.as_tensor(labels, dtype=torch.int64)
    generator = torch.Generator().manual_seed(seed)
    fold_of = torch.empty_like(labels)
    for label in torch.unique(labels).tolist():
        members = torch.nonzero(labels == label).flatten()
        if len(members) < folds:
            raise UserValueError(
                f"folds={folds}, but class {label} has {len(members)} samples; use at most as many folds."
            )
        order = torch.randperm(len(members), generator=generator)
        fold_of[members[order]] = (torch.arange(len(members)) + label) % folds
    return [
        (torch.nonzero(fold_of != fold).flatten(), torch.nonzero(fold_of == fold).flatten())
        for fold in range(folds)
    ]
