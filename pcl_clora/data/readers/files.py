"""A data set with one file a cloud, each read when its sample is first asked for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from pcl_clora.data.dataset import Batch, Sample, stack_samples
from pcl_clora.errors import UserIndexError, UserTypeError
from pcl_clora.io import DataError

MAX_PROBLEMS = 20  # problems that one message lists


class FileDataset:
    """Base of such data sets; a subclass says how a file is read.

    Args:
        entries: (file, label) of every sample.
        class_names: in label order.
        keep: keep samples in memory once they are read.
    """

    def __init__(
        self, entries: Sequence[tuple[Path, int]], class_names: Sequence[str], *, keep: bool
    ) -> None:
        self.class_names = tuple(class_names)
        self.labels = torch.tensor([label for _, label in entries], dtype=torch.int64)
        self._files = [file for file, _ in entries]
        self._keep = keep
        self._kept: dict[int, Sample] = {}

    def read_file(self, file: Path, label: int, index: int) -> Sample:
        """Read one sample; called at most once for each index if samples are kept."""
        raise UserTypeError(f"{type(self).__name__} must say how a file is read")

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Sample:
        if not -len(self) <= index < len(self):
            raise UserIndexError(f"index {index} is out of range: the data set has {len(self)} samples.")
        sample = self._sample(index % len(self))
        return replace(
            sample,
            points=sample.points.clone(),
            part_labels=None if sample.part_labels is None else sample.part_labels.clone(),
            mask=None if sample.mask is None else sample.mask.clone(),
        )

    def read_batch(self, indices: Sequence[int] | Tensor) -> Batch:
        """Read several samples into one batch, in the order given."""
        return stack_samples([self._sample(index) for index in torch.as_tensor(indices).tolist()])

    def _sample(self, index: int) -> Sample:
        sample = self._kept.get(index)
        if sample is None:
            sample = self.read_file(self._files[index], int(self.labels[index]), index)
            if self._keep:
                self._kept[index] = sample
        return sample


def raise_all(root: str, problems: Sequence[DataError]) -> None:
    """Raise one error for all problems that were found; nothing if there are none."""
    if len(problems) == 1:
        raise problems[0]
    if problems:
        lines = [f"\n  {one.file}: {one.problem}; {one.remedy}." for one in problems[:MAX_PROBLEMS]]
        left = len(problems) - MAX_PROBLEMS
        more = f"\n  and {left} more" if left > 0 else ""
        raise DataError(
            root,
            f"{len(problems)} problems:" + "".join(lines) + more,
            "\nmend them; `pcl-clora data check` lists all",
        )
