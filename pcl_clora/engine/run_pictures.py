"""Pictures for the log of a run: parts beside their truth, clouds beside what was rebuilt of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from pcl_clora.data import Batch, PartTaxonomy, PointLoader
from pcl_clora.engine.modes import evaluation_mode
from pcl_clora.engine.randomness import make_generator
from pcl_clora.io.pictures import draw_cloud, part_colour, rgb
from pcl_clora.models import PretrainingOutput

NUM_PICTURES = 4  # clouds of a picture
CELL = 180  # pixels of the sides of one cloud
WRONG, RIGHT = rgb("#d55e00"), rgb("#b4bec8")
GIVEN, REBUILT = rgb("#46464f"), rgb("#dc5f28")


def shown_clouds(loader: PointLoader) -> Batch:
    """Read the clouds of a split that pictures show: spread evenly over it, the same ones every time."""
    known = loader.indices
    chosen = torch.linspace(0, len(known) - 1, min(NUM_PICTURES, len(known)), device="cpu").long()
    return loader.dataset.read_batch(known[chosen])


def draw_parts(batch: Batch, said: Tensor, taxonomy: PartTaxonomy) -> np.ndarray:
    """Draw clouds three times side by side: true parts, predicted parts, and where they differ.

    Args:
        batch: clouds with part labels.
        said: (B, N), int64, the predicted parts.
        taxonomy: whose parts are coloured in the order of their category.

    Returns:
        (H, W, 3), uint8, one row a cloud.
    """
    assert batch.part_labels is not None
    colours = np.zeros((taxonomy.num_parts, 3), np.uint8)
    for ids in taxonomy.ids:
        for place, part in enumerate(ids):
            colours[part] = rgb(part_colour(place))
    errors = np.array([WRONG, RIGHT], dtype=np.uint8)
    truth, points = batch.part_labels.cpu().numpy(), batch.points.cpu().numpy()
    rows = []
    for cloud, true, predicted in zip(points, truth, said.cpu().numpy(), strict=True):
        shown = (colours[true], colours[predicted], errors[(true == predicted).astype(np.int64)])
        rows.append(np.concatenate([draw_cloud(cloud, each, size=CELL) for each in shown], axis=1))
    return np.concatenate(rows, axis=0)


def draw_reconstructions(model: nn.Module, points: Tensor, seed: int) -> np.ndarray:
    """Draw clouds three times side by side: whole, what is visible, visible beside what was rebuilt.

    Args:
        model: maps (points, generator) to `PretrainingOutput`; put into evaluation mode, and back.
        points: (B, N, 3), all of them are drawn.
        seed: decides the masks.

    Returns:
        (H, W, 3) uint8: one row a cloud.
    """
    with evaluation_mode(model), torch.inference_mode():
        output: PretrainingOutput = model(points, make_generator(seed, "picture masks"))
    center, mask = output.center, output.mask
    hidden = mask.int().argsort(dim=1, stable=True)
    num_kept = int((~mask[0]).sum())
    nearest = torch.cdist(points, center).argmin(dim=2)
    rows = []
    for number, cloud in enumerate(points):
        kept, rebuilt_groups = hidden[number].tensor_split([num_kept])
        seen = cloud[torch.isin(nearest[number], kept)]
        rebuilt = (output.predicted[number] + center[number, rebuilt_groups][:, None]).flatten(0, 1)
        cells = [_draw([cloud], cloud), _draw([seen], cloud), _draw([seen, rebuilt], cloud)]
        rows.append(np.concatenate(cells, axis=1))
    return np.concatenate(rows, axis=0)


def draw_page(clouds: Tensor, columns: int, size: int = 110) -> np.ndarray:
    """Draw clouds (B, N, 3) in rows of `columns`, each `size` pixels wide: (H, W, 3) uint8."""
    cells = [_draw([cloud], cloud, size) for cloud in clouds]
    rows = [np.concatenate(cells[at : at + columns], axis=1) for at in range(0, len(cells), columns)]
    return np.concatenate(rows, axis=0)


def _draw(clouds: Sequence[Tensor], frame: Tensor, size: int = CELL) -> np.ndarray:
    """Draw what was given, and what was rebuilt if there is a second cloud, in the frame of a third."""
    points = torch.cat(list(clouds)).cpu().numpy()
    counts = [len(cloud) for cloud in clouds]
    colours = np.repeat(np.array([GIVEN, REBUILT], np.uint8)[: len(counts)], counts, axis=0)
    return draw_cloud(points, colours, size=size, frame=frame.cpu().numpy())
