"""A part of a data set: a seeded number of clouds a class, or any list of samples, under other labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from pcl_clora.data.config import DataConfig
from pcl_clora.data.dataset import Batch, PointDataset, Sample
from pcl_clora.data.loader import RedrawnDataset
from pcl_clora.data.part_taxonomy import PartDataset, PartTaxonomy
from pcl_clora.errors import UserIndexError
from pcl_clora.io import DataError
from pcl_clora.io.text import line_of


class SubsetDataset:
    """Some samples of a data set, in a given order; read from it when they are asked for.

    Args:
        dataset: where the samples are.
        indices: which ones.
        classes: label of the data set -> label here, of every class that the samples have; None keeps labels.
        class_names: in the order of the labels here; by default those of the data set.
    """

    def __init__(
        self,
        dataset: PointDataset,
        indices: Tensor,
        *,
        classes: Mapping[int, int] | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        self._dataset = dataset
        self._indices = torch.as_tensor(indices, dtype=torch.int64)
        labels = dataset.labels[self._indices]
        if classes is not None:
            labels = torch.tensor([classes[label] for label in labels.tolist()], dtype=torch.int64)
        self.labels = labels
        self.class_names = tuple(dataset.class_names if class_names is None else class_names)
        if isinstance(dataset, PartDataset):
            self.taxonomy = dataset.taxonomy

    def set_epoch(self, epoch: int) -> None:
        """Tell the data set the epoch, if it draws points anew in every one."""
        if isinstance(self._dataset, RedrawnDataset):
            self._dataset.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Sample:
        if not -len(self) <= index < len(self):
            raise UserIndexError(f"index {index} is out of range: the data set has {len(self)} samples.")
        index %= len(self)
        sample = self._dataset[int(self._indices[index])]
        return replace(sample, label=int(self.labels[index]), index=index)

    def read_batch(self, indices: Sequence[int] | Tensor) -> Batch:
        """Read several samples into one batch, in the order given."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        batch = self._dataset.read_batch(self._indices[index])
        return replace(batch, label=self.labels[index], index=index)


class PartsRelabelled(SubsetDataset):
    """Clouds with part labels under the categories and parts of another taxonomy.

    Args:
        dataset: whose clouds these are, all of them and in their order.
        taxonomy: the other one.
        categories: category of the data set -> category there, of every one that the clouds have.
        parts: (parts of the data set,), int64, the label of each part there.
    """

    def __init__(
        self, dataset: PartDataset, taxonomy: PartTaxonomy, *, categories: Mapping[int, int], parts: Tensor
    ) -> None:
        every = torch.arange(len(dataset), device="cpu")
        super().__init__(dataset, every, classes=categories, class_names=taxonomy.categories)
        self.taxonomy, self._parts = taxonomy, parts

    def __getitem__(self, index: int) -> Sample:
        sample = super().__getitem__(index)
        return replace(sample, category=sample.label, part_labels=self._relabel(sample.part_labels))

    def read_batch(self, indices: Sequence[int] | Tensor) -> Batch:
        """Read several samples into one batch, in the order given."""
        batch = super().read_batch(indices)
        return replace(batch, category=batch.label, part_labels=self._relabel(batch.part_labels))

    def _relabel(self, labels: Tensor | None) -> Tensor | None:
        return None if labels is None else self._parts[labels]


def without_classes(dataset: PointDataset, names: Sequence[str]) -> SubsetDataset:
    """Leave the clouds of some classes out; the other classes are numbered anew, in their order.

    Raises:
        DataError: if a name is no class of the data, two classes or more are not left, or points have labels.
    """
    known, place = dataset.class_names, "data.leave_out"
    if isinstance(dataset, PartDataset):
        raise DataError(place, "is for classes, and these are categories of parts", "leave it empty")
    wrong = [name for name in names if name not in known]
    if wrong:
        raise DataError(place, f"names {line_of(wrong)}; the classes are {line_of(known)}", "name these")
    kept = [label for label, name in enumerate(known) if name not in names]
    if len(kept) < 2:
        raise DataError(place, f"leaves {len(kept)} classes, expected two or more", "leave out fewer")
    chosen = torch.nonzero(torch.isin(dataset.labels, torch.tensor(kept))).flatten()
    classes = {label: number for number, label in enumerate(kept)}
    class_names = [known[label] for label in kept]
    return SubsetDataset(dataset, chosen, classes=classes, class_names=class_names)


def require_training_clouds(train: PointDataset, config: DataConfig) -> None:
    """Refuse classes that nothing can be learnt about, unless the settings allow them.

    Readers of few-shot folds look at this themselves: their head may have more outputs than a fold classes.

    Raises:
        DataError: if classes have no training clouds; names them.
    """
    counts = torch.bincount(train.labels, minlength=len(train.class_names))
    empty = [name for name, count in zip(train.class_names, counts.tolist(), strict=True) if not count]
    if empty and not (config.allow_empty_classes or config.shots_in_reader):
        listed = ", ".join(empty[:8]) + (", ..." if len(empty) > 8 else "")
        raise DataError(
            config.root or config.name,
            f"{len(empty)} of {len(counts)} classes have no training clouds: {listed}",
            "add clouds, take the names out of the class list, or set data.allow_empty_classes=true to train "
            "all the same",
        )


def choose_per_class(
    labels: Tensor,
    class_names: Sequence[str],
    count: int,
    seed: int,
    *,
    place: str = "data.shots",
    allow_empty: bool = False,
) -> Tensor:
    """Choose equally many samples of every class.

    A smaller count chooses a part of what a larger one does, so that shots grow by adding samples.

    Args:
        labels: (n,), int64.
        class_names: every one of them gives samples.
        count: how many a class.
        seed: decides which.
        place: the setting or file that an error names.
        allow_empty: leave out classes without any sample.

    Returns:
        (classes x count,), int64, ascending indices.

    Raises:
        DataError: if classes have fewer samples; names all of them.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen, short = [], []
    for label, name in enumerate(class_names):
        members = torch.nonzero(labels == label).flatten()
        order = torch.randperm(len(members), generator=generator)
        if len(members) < count and not (allow_empty and not len(members)):
            short.append(f"{name} ({len(members)})")
        chosen.append(members[order[:count]])
    if short:
        listed = line_of(short, 8)
        raise DataError(
            place,
            f"{count} training clouds of every class are asked for, but {len(short)} of {len(class_names)} "
            f"have fewer: {listed}",
            "lower data.shots, add clouds, or leave these classes out",
        )
    return torch.cat(chosen).sort().values
