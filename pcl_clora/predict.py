"""Classify and segment point files with a finished run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pcl_clora import ops
from pcl_clora.adapters import AdaptedModel
from pcl_clora.config import ConfigError
from pcl_clora.data import PartTaxonomy, PointDataset, build_dataset, fps_index, normalize_unit_sphere
from pcl_clora.engine import (
    ClassificationTask,
    PartSegmentationTask,
    RunConfig,
    RunFolder,
    Task,
    choose_device,
    load_run,
    make_task,
)
from pcl_clora.errors import UserValueError
from pcl_clora.io import load_tensors, write_json, write_points
from pcl_clora.io.pictures import part_colour, rgb

CHUNK = 65536  # points that get their labels at once


@dataclass(frozen=True)
class Prediction:
    """What a run says about one cloud.

    Attributes:
        names: name of every class, or of every part.
        probability: (C,) of the classes, or (N, P) of the parts of every point; float32. Parts of other
            categories than the cloud's have 0.
        category: name of the category that the model was told; empty in classification.
        kept: (M,), int64, the points that the model saw; the labels of the others are those of the nearest
            one.
    """

    names: tuple[str, ...]
    probability: np.ndarray
    category: str = ""
    kept: np.ndarray | None = None

    @property
    def is_segmentation(self) -> bool:
        """Whether every point has a label of its own."""
        return self.probability.ndim == 2

    @property
    def label(self) -> np.ndarray:
        """The most probable class, (), or part of every point, (N,); int64."""
        return np.asarray(self.probability.argmax(axis=-1), dtype=np.int64)

    @property
    def confidence(self) -> np.ndarray:
        """Its probability, () or (N,), float32."""
        return np.asarray(self.probability.max(axis=-1), dtype=np.float32)

    def as_json(self) -> dict[str, Any]:
        """Return what fits into json: the classes with their probabilities, or the parts with their sizes."""
        if self.is_segmentation:
            counts = np.bincount(self.label, minlength=len(self.names))
            sizes = {name: int(count) for name, count in zip(self.names, counts, strict=True) if count}
            mean = round(float(self.confidence.mean()), 6)
            return {"category": self.category, "points": len(self.label), "parts": sizes, "confidence": mean}
        order = np.argsort(-self.probability, kind="stable")[:5]
        best = [{"name": self.names[k], "probability": round(float(self.probability[k]), 6)} for k in order]
        return {"label": self.names[int(self.label)], "confidence": best[0]["probability"], "best": best}


class Predictor:
    """The model of a finished run, ready for clouds of any number of points.

    A cloud is moved and scaled into the unit sphere, unless the run's data were not; thinned by farthest
    point sampling to the number of points that the run was trained with, or filled up with copies; and the
    labels of points go back to all points from their nearest thinned one.

    Args:
        run: folder of a finished run.
        data: folder of the data, where it is not where the run found it; only asked for names.
        device: "auto", "cpu" or "cuda".

    Raises:
        ConfigError: if the folder holds no finished run, or its task has no labels.
    """

    cfg: RunConfig
    model: AdaptedModel
    task: Task

    def __init__(self, run: str | Path, *, data: str | Path | None = None, device: str = "auto") -> None:
        self.cfg, model = load_run(run)
        if data is not None:
            values = {**self.cfg.data.model_dump(), "root": str(data)}
            self.cfg = self.cfg.model_copy(update={"data": type(self.cfg.data).model_validate(values)})
        self.device = choose_device(device)
        self.model = model.to(self.device)
        self._dataset: PointDataset | None = None
        self.task = self._make_task(Path(run))

    def _make_task(self, run: Path) -> Task:
        if self.cfg.model.task == ClassificationTask.name:
            header = load_tensors(RunFolder(run).chosen)[1]
            names = tuple(header.get("classes") or ())
            return ClassificationTask(names if names else int(self.model.num_classes or 0))
        if self.cfg.model.task == PartSegmentationTask.name:
            header = load_tensors(RunFolder(run).chosen)[1]
            taxonomy = _taxonomy(RunFolder(run), tuple(header.get("classes") or ()))
            return (
                make_task(self.cfg.model, self.dataset())
                if taxonomy is None
                else PartSegmentationTask(taxonomy)
            )
        raise ConfigError(f"{run}: a run of the task {self.cfg.model.task!r} predicts no labels.")

    def dataset(self) -> PointDataset:
        """Open the test split of the run's data; once."""
        if self._dataset is None:
            self._dataset = build_dataset(self.cfg.data, "test")
        return self._dataset

    @property
    def taxonomy(self) -> PartTaxonomy:
        """Categories and parts of a part segmentation run.

        Raises:
            ConfigError: if the run classifies whole clouds.
        """
        if not isinstance(self.task, PartSegmentationTask):
            raise ConfigError("This run classifies whole clouds; a part segmentation run is needed.")
        return self.task.taxonomy

    def category(self, name: str) -> int:
        """Find a category by its name; it can be left out where there is one only.

        Raises:
            ConfigError: listing the categories.
        """
        known = self.taxonomy.categories
        if not name and len(known) == 1:
            return 0
        if name not in known:
            what = f"category {name!r} is not known" if name else "part segmentation needs the category"
            raise ConfigError(f"{what}; choose one of {', '.join(known)}.")
        return known.index(name)

    def prepare(self, points: np.ndarray | Tensor) -> tuple[Tensor, Tensor]:
        """Normalise and thin a cloud: (N, 3) -> whole cloud (N, 3), and the kept points (M,), int64.

        Raises:
            ValueError: if points is not (N, 3), is empty, or not finite.
        """
        cloud = torch.as_tensor(np.asarray(points))
        if cloud.dim() != 2 or cloud.shape[1] != 3 or not len(cloud):
            raise UserValueError(f"points are {tuple(cloud.shape)}; expected (N, 3), N >= 1.")
        if not bool(cloud.isfinite().all()):
            raise UserValueError("points are not all finite; remove those that are not.")
        cloud = cloud - cloud.double().mean(dim=0)  # far from the origin float32 would lose the shape
        cloud = cloud.float()
        if getattr(self.cfg.data, "normalize", True):
            cloud = normalize_unit_sphere(cloud)
        wanted = self.cfg.data.num_points
        if len(cloud) > wanted:
            return cloud, fps_index(cloud[None], wanted)[0]
        return cloud, torch.arange(wanted) % len(cloud)

    def __call__(self, points: np.ndarray | Tensor, category: str | int = "") -> Prediction:
        """Predict one cloud.

        Args:
            points: (N, 3), finite, any unit and number.
            category: name or number of the category, in part segmentation with several categories.
        """
        cloud, kept = self.prepare(points)
        few = cloud[kept][None].to(self.device)
        with torch.inference_mode():
            if not isinstance(self.task, PartSegmentationTask):
                probability = self.model(few).float().softmax(-1)[0]
                return Prediction(self.task.logit_names, probability.cpu().numpy())
            number = category if isinstance(category, int) else self.category(category)
            chosen = torch.tensor([number], device=self.device)
            probability = self.part_probability(self.model(few, chosen), chosen)[0].cpu()
        nearest = nearest_kept(cloud, kept)
        taxonomy = self.taxonomy
        return Prediction(
            taxonomy.part_names, probability[nearest].numpy(), taxonomy.categories[number], kept.numpy()
        )

    def part_probability(self, logits: Tensor, category: Tensor) -> Tensor:
        """Turn logits (B, N, P) into probabilities among the parts of the clouds' categories (B,)."""
        allowed = self.taxonomy.mask().to(logits.device)[category][:, None]
        return logits.float().masked_fill(~allowed, -torch.inf).softmax(-1)


def nearest_kept(cloud: Tensor, kept: Tensor) -> Tensor:
    """Find for every point of (N, 3) the nearest of the kept ones: (N,), int64, places in `kept`."""
    known = cloud[kept]
    found = [ops.knn(known[None], part[None], 1).idx[0, :, 0] for part in cloud.split(CHUNK)]
    return torch.cat(found)


def _taxonomy(files: RunFolder, part_names: tuple[str, ...]) -> PartTaxonomy | None:
    """Put categories and parts together from what a run wrote, so that its data need not be there."""
    if not files.result.is_file():
        return None
    metrics = json.loads(files.result.read_text(encoding="utf-8"))["metrics"]
    categories = tuple(metrics.get("per_category", ()))
    ids = [tuple(k for k, n in enumerate(part_names) if n.rpartition("/")[0] == name) for name in categories]
    try:
        return PartTaxonomy(categories, tuple(ids), part_names)
    except ValueError:  # parts that are not named after their category; the data know more
        return None


def part_colours(taxonomy: PartTaxonomy) -> Mapping[int, str]:
    """Choose the colour "#rrggbb" of every part: those of a category start from the first colour."""
    return {part: part_colour(place) for ids in taxonomy.ids for place, part in enumerate(ids)}


def write_prediction(
    folder: str | Path, name: str, points: np.ndarray, prediction: Prediction, predictor: Predictor
) -> dict[str, str]:
    """Write what was predicted for one file.

    NAME.json always; in part segmentation also NAME.npz (points, prediction, confidence), which
    `pcl-clora view` shows, and NAME.ply with colours, for other programs.

    Args:
        folder: where to; made if it is missing.
        name: of the files.
        points: (N, 3), as they were read.
        prediction: what the predictor said.
        predictor: knows the parts.

    Returns:
        ending -> path of what was written.
    """
    folder = Path(folder)
    written = {"json": folder / f"{name}.json"}
    write_json(written["json"], prediction.as_json())
    if prediction.is_segmentation:
        label, confidence = prediction.label, prediction.confidence
        palette = part_colours(predictor.taxonomy)
        table = np.array([rgb(palette[part]) for part in range(len(palette))], dtype=np.uint8)
        written |= {"npz": folder / f"{name}.npz", "ply": folder / f"{name}.ply"}
        write_points(written["npz"], points, {"prediction": label, "confidence": confidence})
        fields = {"colors": table[label], "labels": label.astype(np.int32), "confidence": confidence}
        write_points(written["ply"], points, fields)
    return {kind: str(path) for kind, path in written.items()}
