"""Evaluation: deterministic test points, no gradients, all metrics from sums over clouds."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from pcl_clora.data import Batch, PointLoader, make_augment
from pcl_clora.data.input_rule import thin
from pcl_clora.engine.metrics.calibration import ReliabilityMeter
from pcl_clora.engine.modes import autocast, evaluation_mode
from pcl_clora.engine.patch_memory import EvaluatedTokens
from pcl_clora.engine.randomness import make_generator
from pcl_clora.engine.tasks import ClassificationTask, Output, Task, as_logits
from pcl_clora.errors import UserValueError
from pcl_clora.models.layers.shared_patches import shared_patches


def evaluate(
    model: nn.Module,
    loader: PointLoader,
    *,
    num_points: int,
    task: Task | None = None,
    num_classes: int = 0,
    votes: int = 1,
    vote_augment: str = "none",
    seed: int = 0,
    amp: bool = False,
    reliability: bool = False,
    keep_logits: bool = False,
    watch: Callable[[Output, Batch], None] | None = None,
    tokens: EvaluatedTokens | None = None,
) -> Any:
    """Predict every cloud of a loader and measure the result.

    Without votes a cloud is thinned by farthest point sampling, so nothing is random. With votes logits are
    averaged over that many passes, each a whole evaluation: in classification over seeded random choices of
    points, in part segmentation over seeded orders of the same points.

    Args:
        model: what the task gives it -> logits; put into evaluation mode, and back as it was.
        loader: which clouds; not shuffled, nothing dropped.
        num_points: N that the model gets; no cloud may have fewer.
        task: what to do; None for classification into num_classes.
        num_classes: C, where no task is given.
        votes: passes per cloud.
        vote_augment: augmentation preset of the passes.
        seed: decides the passes.
        amp: bfloat16 where it is safe.
        reliability: also compare confidences with accuracies, where the task predicts labels.
        keep_logits: also return logits and indices.
        watch: called with what the model said of every batch, and the batch.
        tokens: of the patches, from an earlier evaluation of this loader; not looked at with votes.

    Returns:
        `ClassificationMetrics` or `SegmentationMetrics`, with the mean cross entropy of the (averaged)
        logits; in pre-training `ReconstructionMetrics`, with masks that `seed` fixes.

    Source: averaging logits over resamplings follows the released evaluation of Point-MAE and its relatives,
        with a fixed number of votes instead of the best of many.
    """
    task = ClassificationTask(num_classes) if task is None else task
    if keep_logits and not task.logit_names:
        raise UserValueError(f"keep_logits=True, but task {task.name} has no logits; leave it out.")
    device = next(model.parameters()).device
    meter = task.meter(device)
    bins = ReliabilityMeter(task.unit, device=device) if reliability and task.unit else None
    loss_sum, count = torch.zeros((), dtype=torch.float64, device=device), 0
    kept: list[Tensor] = []
    indices: list[Tensor] = []
    with evaluation_mode(model), torch.inference_mode(), autocast(device, amp):
        for number, read in enumerate(loader.batches(0)):
            batch = read.to(device)
            if votes == 1:
                batch = thin(batch, num_points)
                known = None if tokens is None else tokens.of(batch.index, batch.points)
                with nullcontext() if known is None else shared_patches(known):
                    output = task.predict(model, batch, seed)
            else:
                output = _vote(model, task, batch, num_points, votes, vote_augment, (seed, number))
                batch = thin(batch, num_points) if task.unit == "points" else batch
            loss_sum += task.loss_sum(output, batch).double()
            count += len(batch)
            task.count(meter, output, batch)
            if watch is not None:
                watch(output, batch)
            if bins is not None:
                bins.update(*task.confidence(output, batch))
            if keep_logits:
                kept.append(as_logits(output).cpu())
                indices.append(batch.index.cpu())
    extra: dict[str, Any] = {"loss": float(loss_sum) / max(count, 1)}
    if bins is not None and count:
        extra["reliability"] = bins.reliability()
    if keep_logits and kept:
        extra |= {"logits": torch.cat(kept).clone(), "indices": torch.cat(indices)}
    return replace(meter.metrics(), **extra)


def _vote(
    model: nn.Module,
    task: Task,
    batch: Batch,
    num_points: int,
    votes: int,
    augment_name: str,
    key: tuple[int, int],
) -> Tensor:
    """Average float32 logits over the votes."""
    augment = make_augment(augment_name)
    seed, number = key
    total: Tensor | None = None
    for vote in range(votes):
        chosen, back = task.vote(batch, num_points, make_generator(seed, "vote", vote))
        moved = augment(chosen.points, make_generator(seed, "vote augment", vote, number))
        logits = as_logits(task.predict(model, replace(chosen, points=moved), seed))
        logits = logits if back is None else logits[:, back]
        total = logits if total is None else total + logits
    assert total is not None
    return total / votes
