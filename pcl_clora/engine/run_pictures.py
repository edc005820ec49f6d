"""Pictures of segmentations for the training log."""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
from torch import nn

from pcl_clora.data import Batch, PointLoader
from pcl_clora.engine.evaluate import evaluation_mode
from pcl_clora.engine.tasks import PartSegmentationTask, Task, thin
from pcl_clora.io.pictures import draw_cloud, part_colour, rgb

NUM_PICTURES = 4
CELL = 200  # pixels of the sides of one cloud
WRONG, RIGHT = rgb("#d55e00"), rgb("#b4bec8")


def draw_segmentations(
    model: nn.Module, loader: PointLoader, task: Task, num_points: int, device: torch.device
) -> np.ndarray | None:
    """Draw a few clouds of a split: truth, prediction, and where they differ.

    Args:
        model: as the task runs it; put into evaluation mode, and back.
        loader: of the split; the clouds are spread evenly over it, the same every time.
        task: what is done.
        num_points: N that the model gets.
        device: where the model is.

    Returns:
        (H, W, 3), uint8, one row a cloud; None for tasks without parts.
    """
    if not isinstance(task, PartSegmentationTask):
        return None
    known = loader.indices
    chosen = known[torch.linspace(0, len(known) - 1, min(NUM_PICTURES, len(known)), device="cpu").long()]
    batch = cast(Batch, thin(loader.dataset.read_batch(chosen), num_points).to(device))
    assert batch.category is not None
    assert batch.part_labels is not None
    with evaluation_mode(model), torch.inference_mode():
        logits = task.predict(model, batch, 0)
        said = task.meter(device).predict(logits, batch.category).cpu().numpy()
    truth, points = batch.part_labels.cpu().numpy(), batch.points.cpu().numpy()
    colours = np.zeros((task.taxonomy.num_parts, 3), np.uint8)
    for ids in task.taxonomy.ids:
        for place, part in enumerate(ids):
            colours[part] = rgb(part_colour(place))
    errors = np.array([WRONG, RIGHT], dtype=np.uint8)
    rows = []
    for cloud, true, predicted in zip(points, truth, said, strict=True):
        shown = (colours[true], colours[predicted], errors[(true == predicted).astype(np.int64)])
        rows.append(np.concatenate([draw_cloud(cloud, each, size=CELL) for each in shown], axis=1))
    return np.concatenate(rows, axis=0)
