"""What is sent back: json with its shape in words for the documentation, a labelled file, a page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, Field

from pcl_clora.io import write_points
from pcl_clora.io.text import visible
from pcl_clora.predict import Prediction, Predictor, write_prediction
from pcl_clora.serve.service import Said
from pcl_clora.vis import HtmlPage, render_html
from pcl_clora.vis.predictions import prediction_item

DIGITS = 6


class Best(BaseModel):
    """A class with its probability."""

    name: str
    probability: float


class ModelAnswer(BaseModel):
    """What one model says of a cloud."""

    model: str = Field(description="Name of the run's folder or of the adapter file.")
    adapter_sha256: str
    label: str | None = Field(None, description="The most probable class; models of parts have none.")
    category: str | None = Field(None, description="What a model of parts was told that the cloud shows.")
    confidence: float = Field(description="Probability of the label; of parts, the mean over the points.")
    best: list[Best] | None = Field(None, description="The most probable classes, from the first.")
    parts: dict[str, int] | None = Field(None, description="Points of every part.")
    novelty: float | None = Field(
        None, description="1 is what 95 of 100 held-out training clouds stay below."
    )
    novel: bool = Field(description="Whether the cloud is not like the training data.")
    warnings: list[str] = Field(description="Why the answer may be wrong.")
    labels: list[int] | None = Field(None, description="With output=labels: part or class of every point.")
    names: list[str] | None = Field(None, description="With output=labels: names of these numbers.")


class PredictAnswer(BaseModel):
    """Answer of /predict."""

    file: str
    points: int = Field(description="Of the file, or vertices of a mesh.")
    seconds: float = Field(description="From the first byte of the request.")
    answers: list[ModelAnswer]


class EmbedAnswer(BaseModel):
    """Answer of /embed."""

    file: str
    model: str
    dim: int
    vector: list[float] = Field(description="Clouds that look alike have near ones.")


class Fault(BaseModel):
    """What went wrong."""

    code: str = Field(description="For programs, such as queue_full.")
    message: str
    remedy: str = Field(description="What to do.")


class FaultAnswer(BaseModel):
    """Answer of every request that fails."""

    error: Fault


class Health(BaseModel):
    """Answer of /health."""

    status: str = Field(description='"ok", or "stopping" with status 503.')
    version: str
    models: list[dict[str, Any]]


def describe_models(predictors: list[Predictor]) -> list[dict[str, Any]]:
    """List models for /health: name, task, classes or categories."""
    return [
        {
            "name": one.name,
            "task": "part_segmentation" if one.segments else "classification",
            "classes": list(one.names),
            **({"categories": list(one.taxonomy.categories)} if one.segments else {}),
            "adapter_sha256": one.digest,
        }
        for one in predictors
    ]


def as_json(name: str, said: Said, topk: int, *, labels: bool) -> dict[str, Any]:
    """Write an answer of /predict."""
    return {
        "file": visible(name),
        "points": len(said.whole.points),
        "seconds": round(said.seconds, 4),
        "answers": [_of_model(one, what, said, topk, labels) for one, what in said.predictions],
    }


def _of_model(
    predictor: Predictor, said: Prediction, all_said: Said, topk: int, labels: bool
) -> dict[str, Any]:
    content = said.as_json(topk)
    if labels:
        content["labels"] = labels_of(said, len(all_said.whole.points)).tolist()
        content["names"] = list(predictor.names)
    return {
        "model": predictor.name,
        "adapter_sha256": predictor.digest,
        **content,
        "novel": said.is_novel,
        "warnings": warnings_of(predictor, said, all_said.whole.up),
    }


def warnings_of(predictor: Predictor, said: Prediction, up: str) -> list[str]:
    """Say why an answer may be wrong, the axis among it that the file's format says points up."""
    other = up and up != predictor.rule.up
    turned = [f"{up} points up in such files, and {predictor.rule.up} is taken to; ask with up={up}"]
    return [*said.warnings, *(turned if other else [])]


def labels_of(said: Prediction, points: int) -> np.ndarray:
    """Label every point: its part, or the class of the cloud; (N,), int64."""
    return said.label if said.is_segmentation else np.full(points, int(said.label), np.int64)


def write_labelled(folder: Path, said: Said, place: int = 0) -> Path:
    """Write the points with labels and confidence as ply; parts have colours."""
    predictor, prediction = said.predictions[place]
    points = said.whole.points
    if prediction.is_segmentation:
        written = write_prediction(folder, "labelled", points, prediction, predictor, kinds=("ply",))
        return Path(written["ply"])
    path = folder / "labelled.ply"
    labels = labels_of(prediction, len(points)).astype(np.int32)
    confidence = np.full(len(points), float(prediction.confidence), np.float32)
    write_points(path, points, {"labels": labels, "confidence": confidence}, said.whole.faces)
    return path


def page_of(name: str, said: Said) -> HtmlPage:
    """Make the page of a cloud: the viewer with a panel of every model."""
    items = [prediction_item(one, visible(name), what) for one, what in said.predictions]
    return render_html(None, [panel for item in items for panel in item.panels], title=visible(name))
