"""Evaluation: deterministic test points, no gradients, all metrics from one confusion matrix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcl_clora.data import Batch, PointDataset, PointLoader, Sample, fps_resample, make_augment, resample
from pcl_clora.engine.metrics import ClassificationMetrics, ConfusionMatrix
from pcl_clora.engine.seed import make_generator


def evaluate(
    model: nn.Module,
    loader: PointLoader,
    *,
    num_classes: int,
    num_points: int,
    votes: int = 1,
    vote_augment: str = "none",
    seed: int = 0,
    amp: bool = False,
    keep_logits: bool = False,
) -> ClassificationMetrics:
    """Classify every cloud of a loader and measure the result.

    Without votes a cloud is thinned by farthest point sampling, so nothing is random. With votes it is
    thinned that many times by a seeded random choice, and the logits are averaged; each vote costs a whole
    evaluation.

    Args:
        model: points (B, N, 3) -> logits (B, C); put into evaluation mode, and back as it was.
        loader: which clouds; not shuffled, nothing dropped.
        num_classes: C.
        num_points: N that the model gets; no cloud may have fewer.
        votes: resamplings per cloud.
        vote_augment: augmentation preset of the resamplings.
        seed: decides the resamplings.
        amp: bfloat16 where it is safe.
        keep_logits: also return logits and indices.

    Returns:
        Metrics with the mean cross entropy of the (averaged) logits.

    Source: averaging logits over resamplings follows the released evaluation of Point-MAE and its relatives,
        with a fixed number of votes instead of the best of many.
    """
    device = next(model.parameters()).device
    confusion = ConfusionMatrix(num_classes, device)
    loss_sum, count = torch.zeros((), dtype=torch.float64, device=device), 0
    kept: list[Tensor] = []
    indices: list[Tensor] = []
    with evaluation_mode(model), torch.inference_mode(), autocast(device, amp):
        for number, batch in enumerate(loader.batches(0)):
            points, label = batch.points.to(device), batch.label.to(device)
            logits = _vote(model, points, num_points, votes, vote_augment, (seed, number))
            loss_sum += F.cross_entropy(logits, label, reduction="sum").double()
            count += len(label)
            confusion.update(logits, label)
            if keep_logits:
                kept.append(logits.cpu())
                indices.append(batch.index.cpu())
    metrics = confusion.metrics()
    extra: dict[str, Any] = {"loss": float(loss_sum) / count}
    if keep_logits:
        extra |= {"logits": torch.cat(kept).clone(), "indices": torch.cat(indices)}
    return ClassificationMetrics(**{**vars(metrics), **extra})


def _vote(
    model: nn.Module, points: Tensor, num_points: int, votes: int, augment_name: str, key: tuple[int, int]
) -> Tensor:
    """(B, N, 3) -> (B, C) float32 logits, averaged over the votes."""
    if votes == 1:
        return cast(Tensor, model(fps_resample(points, num_points))).float()
    augment = make_augment(augment_name)
    seed, number = key
    total: Tensor | None = None
    for vote in range(votes):
        chosen = resample(points, num_points, make_generator(seed, "vote", vote))
        moved = augment(chosen, make_generator(seed, "vote augment", vote, number))
        logits = model(moved).float()
        total = logits if total is None else total + logits
    assert total is not None
    return total / votes


class ThinnedDataset:
    """A data set thinned by farthest point sampling; every cloud once, then it is remembered.

    Args:
        dataset: clouds of at least num_points points; read as it is where they have exactly that many.
        num_points: points to keep.
    """

    def __init__(self, dataset: PointDataset, num_points: int) -> None:
        self._dataset, self._num_points = dataset, num_points
        self.class_names, self.labels = dataset.class_names, dataset.labels
        self._points = torch.empty(0)
        self._known = torch.zeros(len(dataset), dtype=torch.bool)

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Sample:
        sample = self._dataset[index]
        return replace(sample, points=fps_resample(sample.points[None], self._num_points)[0])

    def read_batch(self, indices: Sequence[int] | Tensor) -> Batch:
        """Copy clouds of num_points points into one batch."""
        index = torch.as_tensor(indices, dtype=torch.int64)
        if bool(self._known[index].all()):
            return Batch(points=self._points[index], label=self.labels[index], index=index)
        batch = self._dataset.read_batch(index)
        points = fps_resample(batch.points, self._num_points)
        if self._points.numel() == 0:
            self._points = points.new_empty(len(self), *points.shape[1:])
        self._points[index], self._known[index] = points, True
        return Batch(points=points, label=batch.label, index=batch.index)


def autocast(device: torch.device, enabled: bool) -> torch.autocast:
    """Run matrix products in bfloat16, if enabled."""
    return torch.autocast(device_type=device.type, dtype=torch.bfloat16, enabled=enabled)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode, and back into the mode it was in."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
