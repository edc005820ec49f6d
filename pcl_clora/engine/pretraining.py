"""What pre-training looks at besides its loss: probes of the frozen features, pictures of reconstructions."""

from __future__ import annotations

import time
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from pcl_clora.config import ConfigError
from pcl_clora.data import PointLoader, build_dataset
from pcl_clora.engine.config import ProbeConfig
from pcl_clora.engine.evaluate import evaluation_mode, thin
from pcl_clora.engine.probes import extract_features, knn_accuracy, svm_accuracy
from pcl_clora.engine.randomness import make_generator
from pcl_clora.models import PretrainingOutput

BATCH_SIZE = 64
NUM_PICTURES = 6  # clouds of a picture of reconstructions
CELL = 160  # pixels of one cloud


class FeatureProbe:
    """Nearest-neighbour and linear-SVM accuracy of the features on labelled clouds.

    The clouds are the same in every epoch and for every seed of a run, so that curves can be compared.
    Nothing is drawn from the global generators.

    Args:
        config: which clouds, and how often.

    Raises:
        ConfigError: if the data set has fewer clouds than asked for.
        DataError: if files are at fault.
    """

    def __init__(self, config: ProbeConfig) -> None:
        self.config = config
        self._train = self._loader("train", config.num_train)
        self._test = self._loader("test", config.num_test)

    @property
    def sizes(self) -> dict[str, int]:
        """How many clouds are known ("num_train") and classified ("num_test")."""
        return {"num_train": len(self._train.indices), "num_test": len(self._test.indices)}

    def due(self, epoch: int, epochs: int) -> bool:
        """Tell whether to probe after an epoch (0-based): every so many, and after the last."""
        return (epoch + 1) % self.config.every_epochs == 0 or epoch + 1 == epochs

    def run(self, model: nn.Module) -> dict[str, Any]:
        """Probe a backbone, which stays as it is.

        Args:
            model: a network of `create_model`, without adapter, in evaluation mode.

        Returns:
            "knn_acc" and, if asked for, "svm_acc", both in [0, 1]; "seconds".
        """
        began, num_points = time.monotonic(), self.config.data.num_points
        train = extract_features(model, self._train, num_points)
        test = extract_features(model, self._test, num_points)
        found = {"knn_acc": knn_accuracy(train, test)}
        if self.config.svm:
            found["svm_acc"] = svm_accuracy(train, test)
        return {**found, "seconds": round(time.monotonic() - began, 3)}

    def _loader(self, split: str, count: int) -> PointLoader:
        dataset = build_dataset(self.config.data, split)
        if count > len(dataset):
            raise ConfigError(
                f"probe.num_{split}={count}, but the {split} split of {self.config.data.name} has "
                f"{len(dataset)} clouds; set it to that or less, or to 0 for all."
            )
        order = torch.randperm(len(dataset), generator=make_generator("probe", split))
        indices = order[: count or len(dataset)].sort().values
        return PointLoader(dataset, BATCH_SIZE, indices=indices)


def draw_reconstructions(model: nn.Module, points: Tensor, seed: int) -> np.ndarray:
    """Draw clouds three times side by side: whole, what is visible, visible beside what was rebuilt.

    Args:
        model: maps (points, generator) to `PretrainingOutput`; put into evaluation mode, and back.
        points: (B, N, 3) in the unit sphere; the first few are drawn.
        seed: decides the masks.

    Returns:
        (H, W, 3) uint8: one row a cloud.
    """
    points = points[:NUM_PICTURES]
    with evaluation_mode(model), torch.inference_mode():
        output: PretrainingOutput = model(points, make_generator(seed, "picture masks"))
    center, mask = output.center, output.mask
    batch, hidden = (
        torch.arange(len(points), device=mask.device)[:, None],
        mask.int().argsort(dim=1, stable=True),
    )
    kept = hidden[:, : int((~mask[0]).sum())]
    nearest = torch.cdist(points, center).argmin(dim=2)
    rows = []
    for number, cloud in enumerate(points):
        seen = cloud[torch.isin(nearest[number], kept[number])]
        moved = output.predicted + center[batch, hidden[:, kept.shape[1] :]][:, :, None]
        rebuilt = moved[number].flatten(0, 1)
        cells = [draw_points([cloud]), draw_points([seen]), draw_points([seen, rebuilt])]
        rows.append(np.concatenate(cells, axis=1))
    return np.concatenate(rows, axis=0)


COLOURS = ((70, 70, 80), (220, 95, 40))  # what was given, what was rebuilt


def draw_points(clouds: list[Tensor], size: int = CELL) -> np.ndarray:
    """Draw clouds into one picture, seen from the front, the right and above; y points up.

    Args:
        clouds: each (N, 3), in the unit sphere; one colour a cloud.
        size: pixels of the picture's sides.

    Returns:
        (size, size, 3) uint8, on white; points are 2 x 2 pixels, near ones darker and over far ones.
    """
    turn, tilt = 0.6, 0.35
    across = np.array([np.cos(turn), 0.0, -np.sin(turn)])
    towards = np.array([np.sin(turn) * np.cos(tilt), np.sin(tilt), np.cos(turn) * np.cos(tilt)])
    upwards = np.cross(towards, across)
    xyz = np.concatenate([cloud.detach().cpu().double().numpy() for cloud in clouds])
    kinds = np.repeat(np.arange(len(clouds)), [len(cloud) for cloud in clouds])
    depth = xyz @ towards
    order = np.argsort(depth, kind="stable")
    scale = 0.48 * size
    column = np.clip(size / 2 + scale * (xyz @ across), 0, size - 2).astype(int)[order]
    row = np.clip(size / 2 - scale * (xyz @ upwards), 0, size - 2).astype(int)[order]
    fade = np.clip((1 - depth[order]) / 2, 0, 1)[:, None] * 0.65
    colour = np.array(COLOURS)[kinds[order]] * (1 - fade) + 255 * fade
    picture = np.full((size, size, 3), 255, np.uint8)
    for down in (0, 1):
        for right in (0, 1):
            picture[row + down, column + right] = colour.astype(np.uint8)
    return picture


def draw_page(clouds: Tensor, columns: int, size: int = 110) -> np.ndarray:
    """Draw clouds (B, N, 3) in rows of `columns`, each `size` pixels wide: (H, W, 3) uint8."""
    cells = [draw_points([cloud], size) for cloud in clouds]
    rows = [np.concatenate(cells[at : at + columns], axis=1) for at in range(0, len(cells), columns)]
    return np.concatenate(rows, axis=0)


def first_clouds(loader: PointLoader, num_points: int) -> Tensor:
    """Read the clouds that pictures show: the first of a loader, thinned to num_points."""
    batch = loader.dataset.read_batch(loader.indices[:NUM_PICTURES])
    return cast(Tensor, thin(batch, num_points).points)
