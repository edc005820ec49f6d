"""What a run says about one cloud."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pcl_clora import ops
from pcl_clora.data.input_rule import SeenCloud

CHUNK = 65536  # points that get their nearest one at once


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a run says about one cloud.

    Attributes:
        names: name of every class, or of every part.
        seen_probability: (C,) of the classes, or (M, P) of the parts of the points that the model saw;
            float32. Parts of other categories than the cloud's have 0.
        input: the cloud as the model saw it.
        category: name of the category that the model was told; empty in classification.
        feature: (F,), float32, what entered the head: the cloud as one vector; None if it was not kept.
        novelty: how unlike the training clouds the feature is: 1 is what 95 of 100 held-out ones stay below;
            None where the run has no calibration.
    """

    names: tuple[str, ...]
    seen_probability: NDArray[np.float32]
    input: SeenCloud
    category: str = ""
    feature: NDArray[np.float32] | None = None
    novelty: float | None = None

    @property
    def is_segmentation(self) -> bool:
        """Whether every point has a label of its own."""
        return self.seen_probability.ndim == 2

    @property
    def probability(self) -> NDArray[np.float32]:
        """Probabilities of the classes, (C,), or of the parts of all points of the file, (N, P); float32."""
        return self._to_all(self.seen_probability)

    @cached_property
    def label(self) -> NDArray[np.int64]:
        """The most probable class, (), or part of every point, (N,); int64."""
        return self._to_all(np.asarray(self.seen_probability.argmax(axis=-1), dtype=np.int64))

    @cached_property
    def confidence(self) -> NDArray[np.float32]:
        """Its probability, () or (N,), float32."""
        return self._to_all(np.asarray(self.seen_probability.max(axis=-1), dtype=np.float32))

    @property
    def name(self) -> str:
        """Name of the most probable class; of a segmentation the category that the model was told."""
        return self.category if self.is_segmentation else self.names[int(self.label)]

    @property
    def is_novel(self) -> bool:
        """Whether the cloud is less like the training clouds than 95 of 100 held-out ones."""
        return self.novelty is not None and self.novelty > 1

    def _to_all(self, values: NDArray[Any]) -> NDArray[Any]:
        """Hand values of the seen points (M, ...) to all of the file (N, ...), from the nearest."""
        return values[self.nearest.numpy()] if self.is_segmentation else values

    @property
    def cloud(self) -> Tensor:
        """All points of the file in the frame of the model, (N, 3), float32."""
        return self.input.whole

    @property
    def seen(self) -> Tensor:
        """The points that the model was given, (M, 3), float32."""
        return self.input.points

    @property
    def kept(self) -> NDArray[np.int64] | None:
        """Places of these points in the file, (M,), int64; None where they were drawn from a mesh."""
        return None if self.input.kept is None else np.asarray(self.input.kept.numpy(), dtype=np.int64)

    @cached_property
    def nearest(self) -> Tensor:
        """The seen point that is nearest to every point of the file: (N,), int64, places in `seen`."""
        return nearest_of(self.cloud, self.seen)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Why the answer may be wrong."""
        return self.input.doubts

    def best(self, count: int = 5) -> list[tuple[str, float]]:
        """List the most probable classes, or the largest parts by their share of the points, from the first.

        Args:
            count: how many at most.
        """
        shares = self.seen_probability
        if self.is_segmentation:
            shares = np.bincount(self.label, minlength=len(self.names)) / np.float32(len(self.label))
        order = np.argsort(-shares, kind="stable")[:count]
        return [(self.names[k], float(shares[k])) for k in order if shares[k] > 0 or not self.is_segmentation]

    def as_json(self, count: int = 5) -> dict[str, Any]:
        """Return what fits into json: the classes with their probabilities, or the parts with their sizes.

        Args:
            count: of the most probable classes that are listed.
        """
        novelty = {} if self.novelty is None else {"novelty": round(self.novelty, 4)}
        doubts = {**novelty, "warnings": list(self.warnings)}
        if self.is_segmentation:
            counts = np.bincount(self.label, minlength=len(self.names))
            sizes = {name: int(count) for name, count in zip(self.names, counts, strict=True) if count}
            mean = round(float(self.confidence.mean()), 6)
            said = {"category": self.category, "points": len(self.label), "parts": sizes, "confidence": mean}
            return {**said, **doubts}
        best = [{"name": name, "probability": round(share, 6)} for name, share in self.best(count)]
        return {"label": self.name, "confidence": round(float(self.confidence), 6), "best": best, **doubts}


def nearest_kept(cloud: Tensor, kept: Tensor) -> Tensor:
    """Find for every point of (N, 3) the nearest of the kept ones: (N,), int64, places in `kept`."""
    return nearest_of(cloud, cloud[kept])


def nearest_of(cloud: Tensor, known: Tensor) -> Tensor:
    """Find for every point of (N, 3) the nearest of the known ones (M, 3): (N,), int64, places in these."""
    parts = torch.split(cloud, CHUNK)
    return torch.cat([ops.knn(known[None], part[None], 1).idx[0, :, 0] for part in parts])
