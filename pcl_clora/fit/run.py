"""Train on a folder of files: look at it, cross-validate where there are few, train, and write a page."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pcl_clora.config import build, merge, parse_overrides
from pcl_clora.data.input_rule import Up
from pcl_clora.data.readers.folder import FolderConfig
from pcl_clora.engine import RunConfig, RunResult, Trainer
from pcl_clora.errors import UserValueError
from pcl_clora.fit.look import Look, look
from pcl_clora.io import write_json
from pcl_clora.report import write_report

STEPS = 400  # optimiser steps at least; the epochs follow
BATCH_SIZE = 16
FOLDS = 5
FEW = 150  # clouds up to which a folder without splits is cross-validated
Pose = Up | Literal["auto", "mixed"]
Tell = Callable[[str], None]


@dataclass(frozen=True)
class FitResult:
    """A trained model and what is known of it.

    Attributes:
        run_dir: the run folder: what `predict --run`, `view --run` and `pcl_clora.load` take.
        accuracy: share of clouds that were right: of the test split, or of all clouds, each judged by a model
            that had not seen it, where the folder was cross-validated.
        interval: its 95 % confidence interval (Wilson).
        judged: how many clouds were judged.
        cross_validated: whether it was.
        looked: what the folder holds.
        page: fit.html.
    """

    run_dir: Path
    accuracy: float
    interval: tuple[float, float]
    judged: int
    cross_validated: bool
    looked: Look
    page: Path


def fit(
    folder: str | Path,
    out: str | Path,
    *,
    method: str = "clora",
    model: str = "point_mae_tiny",
    weights: str = "builtin",
    up: Pose = "auto",
    steps: int = STEPS,
    num_points: int = 1024,
    folds: int | None = None,
    seed: int = 0,
    overrides: tuple[str, ...] = (),
    tell: Tell = print,
) -> FitResult:
    """Adapt the weights in the package to a folder of files, one folder a class.

    Args:
        folder: ROOT/<class>/<file>, which is split by the seed, or with splits of its own, see
            `data.readers.folder`; any mix of formats.
        out: folder of the run; a run that was interrupted goes on.
        method: of the adapter.
        model: backbone.
        weights: its weights.
        up: axis that points up in the files; "auto" chooses by frozen features, "mixed" trains on all
            rotations.
        steps: optimiser steps at least.
        num_points: points of a cloud that the model sees.
        folds: of the cross-validation; 0 for none, None for 5 where a folder without splits has up to 150
            clouds.
        seed: of splits, folds and training.
        overrides: key=value settings of the run, which come last.
        tell: called with a line about every step.

    Raises:
        DataError: if the folder has no classes or broken files.
        UserValueError: if a setting is wrong.
    """
    if steps < 1:
        raise UserValueError(f"steps={steps}; give 1 or more.")
    out = Path(out)
    data = FolderConfig(root=str(folder), num_points=num_points, repeat=True, seed=seed)
    axis: Up | None = None if up == "auto" else "y" if up == "mixed" else up
    looked = look(data, up=axis, model=model, weights=weights)
    total = sum(looked.counts.values())
    tell(f"{total} clouds of {len(looked.counts)} classes: " + _listed(looked.counts))
    if looked.poses:
        tell(
            f"up axis: {looked.up} (nearest neighbour of frozen features right: "
            + ", ".join(f"{axis} {100 * value:.1f} %" for axis, value in looked.poses.items())
            + "); --up decides otherwise"
        )
    for warning in looked.warnings:
        tell(f"warning: {warning}")
    made = _Maker(data, out, method, model, weights, looked, up == "mixed", steps, seed, overrides)
    wanted = _folds(folds, looked, total)
    confusion: list[list[int]] | None = None
    for fold in range(wanted):
        result = Trainer(made.config(fold, wanted), run_dir=out / f"fold_{fold}").fit()
        confusion = _added(confusion, result.result["metrics"]["confusion"])
        right, judged = _right(confusion)
        tell(f"fold {fold + 1} of {wanted}: {right} of {judged} right so far")
    run = Trainer(made.config(), run_dir=out).fit()
    if confusion is None:
        confusion = run.result["metrics"]["confusion"]
    right, judged = _right(confusion)
    interval = wilson(right, judged)
    write_report(run.run_dir)
    page = _write(out, run, looked, confusion, interval, wanted)
    tell(
        f"{right} of {judged} right: {100 * right / judged:.1f} % (95 %: {100 * interval[0]:.1f} to "
        f"{100 * interval[1]:.1f} %){', each by a model that had not seen it' if wanted else ''}"
    )
    return FitResult(run.run_dir, right / judged, interval, judged, bool(wanted), looked, page)


@dataclass(frozen=True)
class _Maker:
    """Makes the settings of the run and of its folds."""

    data: FolderConfig
    out: Path
    method: str
    model: str
    weights: str
    looked: Look
    mixed: bool
    steps: int
    seed: int
    overrides: tuple[str, ...]

    def config(self, fold: int = 0, folds: int = 0) -> RunConfig:
        """Return the settings of a fold; of the run itself with folds=0."""
        total = sum(self.looked.counts.values())
        train = total - self.looked.test if self.looked.test else int(total * (1 - self.data.test_fraction))
        batch = max(2, min(BATCH_SIZE, train // 2))
        epochs = math.ceil(self.steps / max(train // batch, 1))
        data = self.data.model_dump(exclude_defaults=True)
        values: dict[str, Any] = {
            "name": self.out.name or "fit",
            "output": str(self.out.parent),
            "seed": self.seed,
            "model": {"name": self.model, "num_classes": len(self.looked.counts), "head_dropout": 0.3},
            "weights": {"path": self.weights},
            "adapter": {"method": self.method},
            "data": {**data, "name": "folder", "root": self.data.root, "up": self.looked.up},
            "optim": {
                **{"epochs": epochs, "batch_size": batch, "lr": 2e-3, "step_unit": "step"},
                **{"warmup_epochs": min(2.0, epochs / 10), "label_smoothing": 0.1},
            },
            "augment": "so3+scale_shift" if self.mixed else "scale_shift",
            "train": {"checkpoint_every_steps": 0, "progress": "off", "eval_every_epochs": epochs},
        }
        if folds:
            values["data"].update(folds=folds, fold=fold)
        return build(RunConfig, merge(values, parse_overrides(list(self.overrides))), source="fit")


def _folds(asked: int | None, looked: Look, total: int) -> int:
    splits = looked.index.layout != "class"
    if asked is None:
        smallest = min(looked.counts.values())
        return min(FOLDS, smallest) if not splits and total <= FEW and smallest > 1 else 0
    if asked == 1 or asked < 0:
        raise UserValueError(f"folds={asked}; give 2 or more, or 0 for none.")
    if asked and splits:
        raise UserValueError(f"folds={asked}, but the folder has splits of its own; leave folds out.")
    return asked


def wilson(right: int, judged: int, z: float = 1.959963985) -> tuple[float, float]:
    """Return the confidence interval of a share.

    Args:
        right: how many of
        judged: were right.
        z: quantile of the normal distribution; 95 % by default.

    Source: Wilson, Probable Inference, JASA 1927.
    """
    share, square = right / judged, z * z / judged
    middle = (share + square / 2) / (1 + square)
    half = z * math.sqrt(share * (1 - share) / judged + square / (4 * judged)) / (1 + square)
    return max(0.0, middle - half), min(1.0, middle + half)


def _added(first: list[list[int]] | None, second: list[list[int]]) -> list[list[int]]:
    if first is None:
        return second
    return [[a + b for a, b in zip(*rows, strict=True)] for rows in zip(first, second, strict=True)]


def _right(confusion: list[list[int]]) -> tuple[int, int]:
    return sum(row[at] for at, row in enumerate(confusion)), sum(map(sum, confusion))


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def _write(
    out: Path,
    run: RunResult,
    looked: Look,
    confusion: list[list[int]],
    interval: tuple[float, float],
    folds: int,
) -> Path:
    """Write fit.json and the page."""
    from pcl_clora.fit.page import write_page

    right, judged = _right(confusion)
    content = {
        "accuracy": right / judged,
        "interval": list(interval),
        "right": right,
        "judged": judged,
        "folds": folds,
        "confusion": confusion,
        "classes": looked.counts,
        "up": looked.up,
        "poses": looked.poses,
        "warnings": list(looked.warnings),
        "precision": run.result.get("precision"),
        "versions": run.result.get("versions"),
    }
    write_json(out / "fit.json", content)
    return write_page(out, content)
