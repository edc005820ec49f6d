"""How accuracy falls when clouds are corrupted: every corruption at every severity, from one seed."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from pcl_clora.data import Batch, PointDataset, PointLoader, Sample, fps_resample, stack_samples
from pcl_clora.data.corruptions import FAMILIES, SEVERITIES, corrupt, list_corruptions
from pcl_clora.engine.evaluate import evaluate
from pcl_clora.engine.modes import evaluation_mode
from pcl_clora.engine.randomness import make_generator
from pcl_clora.engine.tasks import Output
from pcl_clora.errors import UserValueError
from pcl_clora.io import finite


class CorruptedDataset:
    """A data set whose clouds are thinned by farthest point sampling and then corrupted, when they are read.

    The corruption of a cloud depends on (seed, corruption, severity, index of the cloud) only.

    Args:
        dataset: clouds of at least num_points points, in the unit sphere.
        name: one of `list_corruptions()`.
        severity: 1 to 5.
        num_points: points of a cloud before it is corrupted.
        seed: decides all random choices.
    """

    def __init__(
        self, dataset: PointDataset, name: str, severity: int, *, num_points: int, seed: int
    ) -> None:
        self._dataset, self._name, self._severity = dataset, name, severity
        self._num_points, self._seed = num_points, seed
        self.class_names, self.labels = dataset.class_names, dataset.labels

    def __len__(self) -> int:
        return len(self._dataset)

    def __getitem__(self, index: int) -> Sample:
        sample = self._dataset[index]
        points = fps_resample(sample.points[None], self._num_points)[0]
        return replace(sample, points=self._corrupt(points, sample.index), part_labels=None)

    def read_batch(self, indices: Sequence[int] | Tensor) -> Batch:
        """Read clouds of one size into one batch."""
        return stack_samples([self[int(index)] for index in indices])

    def _corrupt(self, points: Tensor, index: int) -> Tensor:
        generator = make_generator(self._seed, "corrupt", self._name, self._severity, index)
        return corrupt(points, self._name, self._severity, generator)


@dataclass(frozen=True)
class RobustnessResult:
    """Accuracy under corruption.

    Attributes:
        clean: overall accuracy on the clouds as they are, in [0, 1].
        accuracy: corruption -> overall accuracy at severities 1 to 5, in [0, 1]; None where the model refuses
            the clouds that are left.
        seed: that decided the corruptions.
        num_points: points of a cloud before it is corrupted.
        num_clouds: clouds of every evaluation.
        left_out: "corruption, severity" -> why it is None.
    """

    clean: float
    accuracy: Mapping[str, tuple[float | None, ...]]
    seed: int
    num_points: int
    num_clouds: int
    left_out: Mapping[str, str] = field(default_factory=dict)

    def families(self) -> tuple[str, ...]:
        """List the families that were measured."""
        return tuple(family for family in FAMILIES if any(self._of(family)))

    def _of(self, family: str) -> list[str]:
        return [name for name in self.accuracy if name.startswith(f"{family}.")]

    def mean_error(self, family: str) -> float:
        """Mean error rate over the corruptions and severities of a family that were measured, in [0, 1].

        This is the mean corruption error of ModelNet40-C, which divides by no other model's errors; nan where
        nothing was measured.
        """
        known = [value for name in self._of(family) for value in self.accuracy[name] if value is not None]
        return statistics.fmean(1 - value for value in known) if known else float("nan")

    def relative_error(self, family: str, reference: RobustnessResult) -> tuple[float, float]:
        """Mean corruption error relative to another model, and the same for the error that corruption adds.

        Returns:
            (mCE, RmCE) of PointCloud-C: the mean over corruptions of error / error of the reference, and of
            (error - clean error) / (the same of the reference); nan where the reference has no such error.

        Source: Ren et al., ICML 2022, section 3.3.
        """
        errors, added = [], []
        for name in self._of(family):
            pairs = zip(self.accuracy[name], reference.accuracy[name], strict=True)
            known = [(one, two) for one, two in pairs if one is not None and two is not None]
            mine, theirs = sum(1 - one for one, _ in known), sum(1 - two for _, two in known)
            count = len(known)
            errors.append(_ratio(mine, theirs))
            added.append(_ratio(mine - count * (1 - self.clean), theirs - count * (1 - reference.clean)))
        return statistics.fmean(errors), statistics.fmean(added)

    def as_json(self) -> dict[str, Any]:
        """Return everything in json types."""
        return {
            "clean_oa": self.clean,
            "seed": self.seed,
            "num_points": self.num_points,
            "num_clouds": self.num_clouds,
            "severities": list(SEVERITIES),
            "mean_corruption_error": finite({family: self.mean_error(family) for family in self.families()}),
            "oa": {name: list(values) for name, values in self.accuracy.items()},
            **({"left_out": dict(self.left_out)} if self.left_out else {}),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> RobustnessResult:
        """Read what `as_json` gave.

        Raises:
            ValueError: if something is missing.
        """
        try:
            return cls(
                clean=float(content["clean_oa"]),
                accuracy={
                    name: tuple(None if value is None else float(value) for value in values)
                    for name, values in content["oa"].items()
                },
                seed=int(content["seed"]),
                num_points=int(content["num_points"]),
                num_clouds=int(content["num_clouds"]),
                left_out=dict(content.get("left_out", {})),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise UserValueError(
                f"This is no result of a robustness test ({error!r} is missing or odd)."
            ) from error


def _refusals(model: nn.Module, points: Tensor, names: Sequence[str]) -> dict[tuple[str, int], str]:
    """Let the model see a cloud of every size that corruptions leave: (corruption, severity) -> refusal."""
    generator, refusals = torch.Generator().manual_seed(0), dict[int, str]()
    clouds = {
        (name, severity): corrupt(points, name, severity, generator)
        for name in names
        for severity in SEVERITIES
    }
    by_size = {len(cloud): cloud for cloud in [*clouds.values(), points]}
    with evaluation_mode(model), torch.inference_mode():
        for size, cloud in by_size.items():
            try:
                model(cloud[None].to(next(model.parameters()).device))
            except UserValueError as error:
                if size == len(points):
                    raise
                refusals[size] = str(error)
    return {place: refusals[len(cloud)] for place, cloud in clouds.items() if len(cloud) in refusals}


def _ratio(above: float, below: float) -> float:
    return above / below if below else float("nan")


def corrupted_accuracy(
    model: nn.Module,
    dataset: PointDataset,
    name: str,
    severity: int,
    *,
    num_classes: int,
    num_points: int,
    batch_size: int,
    seed: int = 0,
    amp: bool = False,
    watch: Callable[[Output, Batch], None] | None = None,
) -> float:
    """Classify the clouds of a data set under one corruption: overall accuracy, in [0, 1].

    Args:
        model: points (B, N, 3) -> logits (B, C), for any N that the corruption leaves.
        dataset: clouds of at least num_points points.
        name: one of `list_corruptions()`.
        severity: 1 to 5.
        num_classes: C.
        num_points: points of a cloud before it is corrupted.
        batch_size: clouds at a time.
        seed: decides the corruption.
        amp: bfloat16 where it is safe.
        watch: called with what the model said of every batch, and the batch.

    Raises:
        ValueError: if the corruption is not known, or leaves fewer points than the model needs.
    """
    clouds = CorruptedDataset(dataset, name, severity, num_points=num_points, seed=seed)
    size = clouds[0].points.shape[0]
    loader = PointLoader(clouds, batch_size, seed=seed)
    found = evaluate(model, loader, num_classes=num_classes, num_points=size, amp=amp, watch=watch)
    return float(found.oa)


def evaluate_robustness(
    model: nn.Module,
    dataset: PointDataset,
    *,
    num_classes: int,
    num_points: int,
    batch_size: int,
    corruptions: Sequence[str] = (),
    seed: int = 0,
    amp: bool = False,
    on_step: Callable[[str, int, float | None], None] | None = None,
) -> RobustnessResult:
    """Classify the clouds of a data set clean, and under every corruption at every severity.

    Clouds are not thinned after a corruption, so the model sees all points that were added.

    Args:
        model: points (B, N, 3) -> logits (B, C), for any N that a corruption leaves.
        dataset: clouds of at least num_points points.
        num_classes: C.
        num_points: points of a cloud before it is corrupted.
        batch_size: clouds at a time.
        corruptions: which; all by default.
        seed: decides the corruptions.
        amp: bfloat16 where it is safe.
        on_step: called with corruption, severity and accuracy after each evaluation; with None where the
            model refuses what a corruption leaves.

    Returns:
        Overall accuracies; where a corruption leaves fewer points than the model needs, the reason instead.

    Raises:
        ValueError: if a corruption is not known, or the model refuses the clouds as they are.
    """
    names = list(corruptions) or list(list_corruptions())
    refusals = _refusals(model, fps_resample(dataset[0].points[None], num_points)[0], names)
    loader = PointLoader(dataset, batch_size, seed=seed)
    clean = float(evaluate(model, loader, num_classes=num_classes, num_points=num_points, amp=amp).oa)
    measured: dict[str, tuple[float | None, ...]] = {}
    for name in names:
        values: list[float | None] = []
        for severity in SEVERITIES:
            values.append(
                None
                if (name, severity) in refusals
                else corrupted_accuracy(
                    model,
                    dataset,
                    name,
                    severity,
                    num_classes=num_classes,
                    num_points=num_points,
                    batch_size=batch_size,
                    seed=seed,
                    amp=amp,
                )
            )
            if on_step is not None:
                on_step(name, severity, values[-1])
        measured[name] = tuple(values)
    left_out = {f"{name}, {severity}": why for (name, severity), why in refusals.items()}
    return RobustnessResult(clean, measured, seed, num_points, len(dataset), left_out)
