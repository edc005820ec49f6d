"""From a run and its data, or from a file of points, to panels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pcl_clora import ops
from pcl_clora.data import PartTaxonomy, Sample
from pcl_clora.engine import SegmentationMeter
from pcl_clora.errors import UserValueError
from pcl_clora.io.pictures import draw_cloud, encode_png
from pcl_clora.predict import Prediction, Predictor, part_colours
from pcl_clora.vis.html import Item
from pcl_clora.vis.look import Look, watching
from pcl_clora.vis.panel import Legend, Panel

ERROR_LEGEND = Legend({0: "right", 1: "wrong"}, {0: "#b4bec8", 1: "#d55e00"})
THUMBNAIL = 150  # pixels


@dataclass(frozen=True, eq=False)
class Answer:
    """What is known about one cloud.

    Attributes:
        name: of the cloud.
        points: (N, 3), float32.
        prediction: (N,), int64, predicted parts; None where nothing was predicted.
        truth: (N,), int64, true parts; None where they are not known.
        confidence: (N,), float32, probability of the predicted part.
        legend: what the parts are called; None to name them by number.
        category: of the cloud, or "".
        iou: part -> IoU in this cloud, where both sides are known.
        miou: mean of them.
        centers: (G, 3), centres of patches, or None.
        patch: (N,), int64, nearest patch, or None.
        attention: (N,), float32, attention that the nearest patch gets, or None.
        attention_name: what it is.
        method: what predicted.
        said: the class that a classifier chose, with its probability, or "".
    """

    name: str
    points: np.ndarray
    prediction: np.ndarray | None = None
    truth: np.ndarray | None = None
    confidence: np.ndarray | None = None
    legend: Legend | None = None
    category: str = ""
    miou: float | None = None
    centers: np.ndarray | None = None
    patch: np.ndarray | None = None
    attention: np.ndarray | None = None
    attention_name: str = "attention"
    method: str = ""
    said: str = ""

    def panels(self, *, details: bool = True, named: bool = False) -> tuple[Panel, ...]:
        """Make panels: truth, prediction, errors, and with details confidence, patches and attention.

        Every panel can show everything that is known; they differ in what they show first.

        Args:
            details: also for confidence, patches and attention.
            named: the titles name the cloud.
        """
        labels: dict[str, np.ndarray] = {}
        legends: dict[str, Any] = {}
        titles = {}
        known = (("truth", self.truth), ("prediction", self.prediction))
        for name, values in known:
            if values is not None:
                labels[name] = values
                legends[name] = self._legend(name)
                titles[name] = name
        if self.truth is not None and self.prediction is not None:
            labels["error"], legends["error"] = self.truth != self.prediction, ERROR_LEGEND
            titles["error"] = "error"
        scalars = {}
        if self.confidence is not None:
            scalars["confidence"] = self.confidence
        if self.patch is not None:
            labels["patches"] = self.patch
            legends["patches"] = Legend({k: f"patch {k}" for k in range(int(self.patch.max()) + 1)})
        if self.attention is not None:
            scalars[self.attention_name] = self.attention
        first = [*titles, *(name for name in (*labels, *scalars) if name not in titles and details)]
        whole = Panel(self.points, labels=labels, scalars=scalars, legend=legends, centers=self.centers)
        return tuple(
            whole.showing(
                name,
                title=f"{self.name}: {name}" if named and name else self._title(name),
                note=self._note(name),
            )
            for name in first or [""]
        )

    def _title(self, name: str) -> str:
        text = name or self.name
        return f"{text}, {self.method}" if self.method and name == "prediction" else text

    def _note(self, name: str) -> str:
        if name == "prediction" and self.miou is not None:
            return f"mean IoU {100 * self.miou:.1f} %"
        if name == "error" and self.truth is not None and self.prediction is not None:
            return f"{100 * float((self.truth != self.prediction).mean()):.1f} % of the points"
        return self.said

    def _legend(self, name: str) -> Legend | None:
        if name == "prediction" or self.legend is None:
            return self.legend
        return Legend(self.legend.names, self.legend.colours)

    def item(self, up: str = "y") -> Item:
        """Make the entry of a gallery, with truth and prediction as its picture."""
        panels = self.panels()
        shown = [panel for panel in panels if panel.show in ("truth", "prediction")] or panels[:1]
        pictures = [draw_cloud(panel.points, panel.rgb(), size=THUMBNAIL, up=up) for panel in shown]
        png = encode_png(np.concatenate(pictures, axis=1))
        return Item(self.name, panels, png, self.miou, self.category)


def side_by_side(found: Sequence[Answer]) -> list[Panel]:
    """Put the panels of several methods on one cloud side by side; those of one method as they are."""
    if len(found) == 1:
        return list(found[0].panels())
    panels: list[Panel] = []
    for number, one in enumerate(found):
        if one.prediction is None:
            panels += [replace(panel, title=f"{panel.title}, {one.method}") for panel in one.panels()]
            continue
        made = one.panels(details=False)
        panels += [panel for panel in made if panel.show == "truth" and number == 0]
        panels += [panel for panel in made if panel.show == "prediction"]
    panels += [
        replace(panel, title=f"error, {one.method}")
        for one in found
        for panel in one.panels(details=False)
        if panel.show == "error"
    ]
    return panels


def segment_sample(predictor: Predictor, sample: Sample, *, method: str = "") -> Answer:
    """Segment one cloud of a data set and look into the model.

    Args:
        predictor: of a part segmentation run.
        sample: with part labels and a category.
        method: what the panels call the predictor.

    Raises:
        ValueError: if the sample has no part labels.
    """
    if sample.category is None or sample.part_labels is None:
        raise UserValueError(f"{sample.path or sample.index}: the cloud has no part labels.")
    name = Path(sample.path).name if sample.path else f"cloud {sample.index}"
    with watching(predictor.model) as seen:
        said = predictor.predict_sample(sample)
    return _answer(predictor, name, sample.points.numpy(), said, seen, sample.part_labels.numpy(), method)


def segment_points(
    predictor: Predictor,
    name: str,
    points: np.ndarray,
    *,
    category: str = "",
    truth: np.ndarray | None = None,
    method: str = "",
    path: str | Path = "",
) -> Answer:
    """Segment the points of a file and look into the model; a classifier says its class and is looked into.

    Args:
        predictor: of a finished run.
        name: of the cloud.
        points: (N, 3).
        category: its name; may be left out where the run knows only one.
        truth: (N,), true parts as the run numbers them, or None.
        method: what the panels call the predictor.
        path: the file, where they come from one: what else stands in it, such as the faces of a mesh, decides
            what the model sees.
    """
    if truth is not None and not predictor.segments:
        raise UserValueError(f"{name}: a classification run has no parts; leave the labels of points out.")
    number = predictor.category(category) if predictor.segments else ""
    with watching(predictor.model) as seen:
        said = predictor.predict_file(path, number) if path else predictor(points, number)
    return _answer(predictor, name, points, said, seen, truth, method)


def _answer(
    predictor: Predictor,
    name: str,
    points: np.ndarray,
    said: Prediction,
    seen: Callable[[Tensor], Look],
    truth: np.ndarray | None,
    method: str,
) -> Answer:
    """Put together what was said and seen; of a classifier patches and attention are all that there is."""
    found = seen(said.seen.to(predictor.device))
    patch = found.patch.cpu()[said.nearest]
    answer = Answer(
        name=name,
        points=points,
        truth=truth,
        centers=_back(found.center.cpu(), said.cloud, points),
        patch=patch.numpy(),
        attention=None if found.attention is None else found.attention.cpu()[patch].numpy(),
        attention_name=found.attention_name,
        method=method,
    )
    if not said.is_segmentation:
        label = said.names[int(said.label)]
        return replace(answer, said=f"{label}, {100 * float(said.confidence):.1f} %")
    taxonomy = predictor.taxonomy
    category = taxonomy.categories.index(said.category)
    ious, miou = (None, None)
    if truth is not None:
        _check_truth(truth, taxonomy, category, len(points), name)
        ious, miou = cloud_iou(taxonomy, category, truth, said.label)
    legend = part_legend(taxonomy, category, ious)
    return replace(
        answer,
        prediction=said.label,
        confidence=said.confidence,
        legend=legend,
        category=said.category,
        miou=miou,
    )


def _back(center: Tensor, cloud: Tensor, points: np.ndarray) -> np.ndarray:
    """Move centres from the model's coordinates to those of the file."""
    nearest = ops.knn(cloud[None], center[None], 1).idx[0, :, 0]
    return np.asarray(points).take(nearest.numpy(), axis=0)


def _check_truth(truth: np.ndarray, taxonomy: PartTaxonomy, category: int, count: int, name: str) -> None:
    if truth.shape != (count,):
        raise UserValueError(f"{name}: {truth.shape} labels for {count} points; give one label a point.")
    ids = taxonomy.ids[category]
    unknown = sorted(set(np.unique(truth).tolist()) - set(ids))
    if unknown:
        raise UserValueError(
            f"{name}: labels {unknown[:8]} are no parts of {taxonomy.categories[category]!r}, which has "
            f"{list(ids)}; number them as the run's data do."
        )


def part_legend(taxonomy: PartTaxonomy, category: int, ious: dict[int, float | None] | None = None) -> Legend:
    """Name and colour the parts of a category."""
    colours = part_colours(taxonomy)
    ids = taxonomy.ids[category]
    names = {part: taxonomy.part_names[part].rpartition("/")[2] for part in ids}
    return Legend(names, {part: colours[part] for part in ids}, ious or {})


def cloud_iou(
    taxonomy: PartTaxonomy, category: int, truth: np.ndarray, prediction: np.ndarray
) -> tuple[dict[int, float | None], float]:
    """Measure one cloud as the evaluation does: part -> IoU, and their mean."""
    meter = SegmentationMeter(taxonomy)
    labels = torch.from_numpy(np.asarray(truth, dtype=np.int64))[None]
    said = torch.from_numpy(np.asarray(prediction, dtype=np.int64))[None]
    meter.update(said, labels, torch.tensor([category]))
    metrics = meter.metrics()
    return {part: metrics.per_part[part] for part in taxonomy.ids[category]}, metrics.instance_miou


def segment_test_set(
    predictor: Predictor, indices: Sequence[int] | None = None, *, method: str = ""
) -> Iterator[Answer]:
    """Segment clouds of a run's test split, one after another.

    Args:
        predictor: of a part segmentation run.
        indices: which; None for all.
        method: what the panels call the predictor.

    Raises:
        ValueError: if an index is not there.
    """
    dataset = predictor.dataset()
    chosen = list(range(len(dataset))) if indices is None else list(indices)
    for index in chosen:
        if not 0 <= index < len(dataset):
            raise UserValueError(f"index {index} is not there: the test split has {len(dataset)} clouds.")
        yield segment_sample(predictor, dataset[index], method=method)
