"""What depends on the task: how a model is called, what is minimised, measured and reported."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcl_clora.adapters import AdaptedModel
from pcl_clora.config import ConfigError
from pcl_clora.data import (
    Batch,
    PartDataset,
    PartTaxonomy,
    PointDataset,
    PointLoader,
    resample_index,
)
from pcl_clora.data.input_rule import thin
from pcl_clora.engine.losses import LossTerms, classification_loss, segmentation_loss
from pcl_clora.engine.metrics.classification import ClassificationMetrics, ConfusionMatrix
from pcl_clora.engine.metrics.reconstruction import ReconstructionMeter, ReconstructionMetrics
from pcl_clora.engine.metrics.segmentation import SegmentationMeter, SegmentationMetrics, mask_other_parts
from pcl_clora.engine.modes import evaluation_mode
from pcl_clora.engine.probes.features import FeatureProbe
from pcl_clora.engine.randomness import make_generator
from pcl_clora.engine.run_pictures import draw_parts, draw_reconstructions, shown_clouds
from pcl_clora.io.text import line_of
from pcl_clora.models import ModelConfig, PretrainingOutput

Output = Tensor | PretrainingOutput  # of a model: logits, or what pre-training computed
Picture = tuple[str, np.ndarray]  # what it shows; (H, W, 3), uint8
Metrics = ClassificationMetrics | SegmentationMetrics | ReconstructionMetrics


class Meter(Protocol):
    """Sums from which the metrics of a task follow."""

    def state(self) -> Mapping[str, Tensor]:
        """Return the sums by name."""
        ...

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Take over sums."""
        ...

    def reset(self) -> None:
        """Forget everything."""
        ...

    def metrics(self) -> Metrics:
        """Compute the metrics."""
        ...


@dataclass(frozen=True)
class Headline:
    """A number that tables show first.

    Attributes:
        key: its name in the metrics, such as "oa".
        label: its name for people, such as "OA".
        title: its name in a sentence.
    """

    key: str
    label: str
    title: str


class Task(ABC):
    """One task.

    Attributes:
        name: as `model.task` says it.
        headlines: what tables show; the first one chooses an epoch.
        class_names: what clouds are sorted into: classes, or categories.
        logit_names: name of every logit.
        uses_labels: whether anything is learnt from labels.
        unit: what gets a label of its own: "clouds" or "points"; "" where nothing does.
        views: how many views of every cloud a training step is given.
    """

    name: ClassVar[str]
    headlines: ClassVar[tuple[Headline, ...]]
    class_names: tuple[str, ...]
    logit_names: tuple[str, ...]
    uses_labels: ClassVar[bool] = True
    unit: ClassVar[str] = ""
    views: int = 1

    @abstractmethod
    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        """Pick from a batch what the model takes."""

    def run(self, model: nn.Module, batch: Batch) -> Output:
        """Run a model in training."""
        output: Output = model(*self.inputs(batch))
        return output

    def predict(self, model: nn.Module, batch: Batch, seed: int) -> Output:
        """Run a model in evaluation: float32, and the same for the same batch and seed."""
        return as_logits(model(*self.inputs(batch))).float()

    @abstractmethod
    def loss(
        self, output: Output, batch: Batch, extra: Mapping[str, Tensor], label_smoothing: float
    ) -> LossTerms:
        """Compute what is minimised, and its terms."""

    @abstractmethod
    def loss_sum(self, output: Output, batch: Batch) -> Tensor:
        """Sum the loss of every cloud, without smoothing: ()."""

    @abstractmethod
    def meter(self, device: torch.device | str) -> Any:
        """Make an empty meter."""

    @abstractmethod
    def count(self, meter: Any, output: Output, batch: Batch) -> None:
        """Count the predictions of a batch."""

    def confidence(self, output: Output, batch: Batch) -> tuple[Tensor, Tensor]:
        """Say how sure the predictions are, and whether they are right: (n,) float64 and (n,) bool.

        Raises:
            ConfigError: if the task predicts no labels.
        """
        raise ConfigError(f"Task {self.name} predicts no labels, so it has no confidences.")

    @abstractmethod
    def vote(self, batch: Batch, num_points: int, generator: torch.Generator) -> tuple[Batch, Tensor | None]:
        """Draw the points of one vote; with the order that puts the logits of points back, if they differ."""

    def check_splits(self, train: PointDataset, test: PointDataset) -> None:  # noqa: B027 - nothing to check
        """Refuse splits that do not fit together; a task says why.

        Raises:
            ConfigError: naming what is wrong.
        """

    def after_epoch(
        self, model: AdaptedModel, probe: FeatureProbe | None, epoch: int, epochs: int
    ) -> Mapping[str, Any] | None:
        """Measure what else the epoch (0-based) of a training is worth; None where nothing is due."""
        return None

    def pictures(self, model: nn.Module, loader: PointLoader, num_points: int, seed: int) -> Picture | None:
        """Draw a few clouds of a split for the log: what the picture shows, and its pixels; None for nothing.

        Args:
            model: on the device to use; put into evaluation mode, and back.
            loader: of the split.
            num_points: N that the model gets.
            seed: of the run.
        """
        return None

    @property
    def key(self) -> str:
        """Name of the number that chooses an epoch."""
        return self.headlines[0].key


class ClassificationTask(Task):
    """One label a cloud.

    Args:
        class_names: in label order; or only how many there are.
    """

    name = "classification"
    unit = "clouds"
    headlines = (Headline("oa", "OA", "overall accuracy"), Headline("macc", "mAcc", "mean class accuracy"))

    def __init__(self, class_names: Sequence[str] | int) -> None:
        if isinstance(class_names, int):
            class_names = [f"class{number}" for number in range(class_names)]
        self.class_names = self.logit_names = tuple(class_names)

    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        """Points only."""
        return (batch.points,)

    def loss(
        self, output: Output, batch: Batch, extra: Mapping[str, Tensor], label_smoothing: float
    ) -> LossTerms:
        """Cross entropy of the clouds, plus the extra terms."""
        return classification_loss(as_logits(output), batch.label, extra, label_smoothing=label_smoothing)

    def loss_sum(self, output: Output, batch: Batch) -> Tensor:
        """Sum the cross entropy of the clouds: ()."""
        return F.cross_entropy(as_logits(output), batch.label, reduction="sum")

    def meter(self, device: torch.device | str) -> ConfusionMatrix:
        """Make an empty confusion matrix."""
        return ConfusionMatrix(len(self.class_names), device)

    def count(self, meter: ConfusionMatrix, output: Output, batch: Batch) -> None:
        """Count the predicted classes of a batch."""
        meter.update(as_logits(output), batch.label)

    def confidence(self, output: Output, batch: Batch) -> tuple[Tensor, Tensor]:
        """The largest softmax probability of every cloud."""
        probability, said = as_logits(output).double().softmax(-1).max(-1)
        return probability, said == batch.label

    def vote(self, batch: Batch, num_points: int, generator: torch.Generator) -> tuple[Batch, Tensor | None]:
        """Draw other points of the clouds."""
        return batch.take(resample_index(batch.points, num_points, generator)), None


class PartSegmentationTask(Task):
    """One label a point, among the parts of the cloud's category, which the model is told.

    Args:
        taxonomy: categories and parts.
    """

    name = "part_segmentation"
    unit = "points"
    headlines = (
        Headline("instance_miou", "inst. mIoU", "instance mIoU"),
        Headline("class_miou", "class mIoU", "class mIoU"),
    )

    def __init__(self, taxonomy: PartTaxonomy) -> None:
        self.taxonomy = taxonomy
        self.class_names, self.logit_names = taxonomy.categories, taxonomy.part_names

    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        """Points and category."""
        return batch.points, _known(batch.category)

    def loss(
        self, output: Output, batch: Batch, extra: Mapping[str, Tensor], label_smoothing: float
    ) -> LossTerms:
        """Cross entropy of the points over all parts, plus the extra terms."""
        labels = _known(batch.part_labels)
        return segmentation_loss(as_logits(output), labels, extra, label_smoothing=label_smoothing)

    def loss_sum(self, output: Output, batch: Batch) -> Tensor:
        """Sum over clouds of the mean cross entropy of their points: ()."""
        labels = _known(batch.part_labels)
        return F.cross_entropy(as_logits(output).transpose(1, 2), labels, reduction="sum") / labels.shape[1]

    def check_splits(self, train: PointDataset, test: PointDataset) -> None:
        """Refuse test categories that have no training clouds: their parts cannot be learnt.

        Raises:
            ConfigError: naming the categories.
        """
        unseen = sorted(set(test.labels.tolist()) - set(train.labels.tolist()))
        if unseen:
            names = line_of((self.class_names[label] for label in unseen), 8)
            raise ConfigError(
                f"{len(unseen)} categories of test have no training clouds: {names}; add clouds, or leave "
                "these categories out. `pcl-clora data check` says more."
            )

    def meter(self, device: torch.device | str) -> SegmentationMeter:
        """Make empty sums."""
        return SegmentationMeter(self.taxonomy, device)

    def count(self, meter: SegmentationMeter, output: Output, batch: Batch) -> None:
        """Count the predicted parts of a batch."""
        meter.update(as_logits(output), _known(batch.part_labels), _known(batch.category))

    def confidence(self, output: Output, batch: Batch) -> tuple[Tensor, Tensor]:
        """The largest softmax probability of every point, among the parts of its cloud's category."""
        logits = as_logits(output)
        own = mask_other_parts(logits, _known(batch.category), self.taxonomy.mask().to(logits.device))
        probability, said = own.double().softmax(-1).max(-1)
        return probability.flatten(), said.eq(_known(batch.part_labels)).flatten()

    def vote(self, batch: Batch, num_points: int, generator: torch.Generator) -> tuple[Batch, Tensor | None]:
        """Keep the points and mix their order: another one starts the grouping."""
        batch = thin(batch, num_points)
        order = torch.randperm(num_points, generator=generator).to(batch.points.device)
        return batch.take(order.expand(len(batch), -1)), order.argsort()

    def pictures(self, model: nn.Module, loader: PointLoader, num_points: int, seed: int) -> Picture | None:
        """Draw truth, prediction and errors."""
        device = next(model.parameters()).device
        batch = thin(shown_clouds(loader), num_points).to(device)
        with evaluation_mode(model), torch.inference_mode():
            logits = as_logits(self.predict(model, batch, 0))
            said = self.meter(device).predict(logits, _known(batch.category))
        return "truth, prediction, errors", draw_parts(batch, said, self.taxonomy)


class PretrainingTask(Task):
    """Hidden patches are rebuilt from the others; labels are not looked at.

    Masks of training are drawn from the global generator, which a checkpoint holds; those of evaluation are
    fixed: (seed, first cloud of the batch) decide them.

    Args:
        class_names: what the data set calls its classes, for the record.
        views: of every cloud in a training step.
    """

    name = "pretraining"
    headlines = (Headline("loss", "loss", "reconstruction loss"),)
    uses_labels = False

    def __init__(self, class_names: Sequence[str], views: int = 1) -> None:
        self.class_names, self.logit_names, self.views = tuple(class_names), (), views

    def inputs(self, batch: Batch) -> tuple[Tensor, ...]:
        """Points only."""
        return (batch.points,)

    def predict(self, model: nn.Module, batch: Batch, seed: int) -> PretrainingOutput:
        """Rebuild the patches that fixed masks hide."""
        generator = make_generator(seed, "fixed masks", int(batch.index[0]))
        output: PretrainingOutput = model(*self.inputs(batch), generator)
        return output

    def loss(
        self, output: Output, batch: Batch, extra: Mapping[str, Tensor], label_smoothing: float
    ) -> LossTerms:
        """Take the loss that the model computed, plus the terms of the method."""
        rebuilt = _rebuilt(output)
        first, *others = rebuilt.terms.items()
        total = rebuilt.loss
        for term in extra.values():
            total = total + term
        return LossTerms(total=total, task=first[1], extra={**dict(others), **extra})

    def loss_sum(self, output: Output, batch: Batch) -> Tensor:
        """Sum the loss of the clouds: ()."""
        return _rebuilt(output).loss.double() * len(batch)

    def meter(self, device: torch.device | str) -> ReconstructionMeter:
        """Make empty sums."""
        return ReconstructionMeter(device)

    def count(self, meter: ReconstructionMeter, output: Output, batch: Batch) -> None:
        """Count the loss of a batch."""
        meter.update(_rebuilt(output).loss, len(batch))

    def vote(self, batch: Batch, num_points: int, generator: torch.Generator) -> tuple[Batch, Tensor | None]:
        """Refuse: there is nothing to vote on.

        Raises:
            ConfigError: always.
        """
        raise ConfigError("Pre-training has no votes; set protocol.votes=1.")

    def after_epoch(
        self, model: AdaptedModel, probe: FeatureProbe | None, epoch: int, epochs: int
    ) -> Mapping[str, Any] | None:
        """Probe the features, where the settings ask for it."""
        if probe is None or not probe.due(epoch, epochs):
            return None
        with evaluation_mode(model):
            return probe.run(model.base)

    def pictures(self, model: nn.Module, loader: PointLoader, num_points: int, seed: int) -> Picture | None:
        """Draw clouds whole, what is visible of them, and what is rebuilt."""
        points = thin(shown_clouds(loader), num_points).points.to(next(model.parameters()).device)
        return "whole, visible, rebuilt", draw_reconstructions(model, points, seed)


TASKS: Mapping[str, type[Task]] = {
    task.name: task for task in (ClassificationTask, PartSegmentationTask, PretrainingTask)
}


def headlines(task: str) -> tuple[Headline, ...]:
    """Say what tables show of a task; the first number chooses an epoch."""
    return TASKS[task].headlines


def make_task(model: ModelConfig, dataset: PointDataset) -> Task:
    """Make the task that a model was built for, with the names of a data set.

    Raises:
        ConfigError: if the model and the data set do not fit together; the message names the setting.
    """
    if model.task == ClassificationTask.name:
        _require("num_classes", model, len(dataset.class_names), "classes")
        return ClassificationTask(dataset.class_names)
    if model.task == PretrainingTask.name:
        return PretrainingTask(dataset.class_names, model.num_views)
    if model.task != PartSegmentationTask.name:
        raise ConfigError(
            f"model.task={model.task!r} cannot be run here; it can be one of {', '.join(TASKS)}."
        )
    if not isinstance(dataset, PartDataset):
        raise ConfigError(
            "model.task=part_segmentation needs a data set with part labels, such as shapenetpart_txt, "
            "shapenetpart_hdf5 or procedural; choose another data.name."
        )
    _require("num_parts", model, dataset.taxonomy.num_parts, "parts")
    _require("num_categories", model, dataset.taxonomy.num_categories, "categories")
    return PartSegmentationTask(dataset.taxonomy)


def _require(setting: str, model: ModelConfig, expected: int, what: str) -> None:
    given = getattr(model, setting)
    if given != expected:
        raise ConfigError(
            f"model.{setting}={given}, but the data set has {expected} {what}; set "
            f"model.{setting}={expected}."
        )


def _known(value: Tensor | None) -> Tensor:
    assert value is not None  # make_task has refused data sets without parts
    return value


def as_logits(output: Output) -> Tensor:
    """Take what a model of a task with labels gave."""
    assert isinstance(output, Tensor)  # make_task has chosen task and model together
    return output


def _rebuilt(output: Output) -> PretrainingOutput:
    assert isinstance(output, PretrainingOutput)
    return output
